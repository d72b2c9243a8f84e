"""Where the objects of a map lie, relative to its URL. Manifests, receipts and tags: `infra/commits.py`."""

IMAGES = "images.parquet"
DESCRIPTORS = "descriptors.parquet"
DESCRIPTOR_CODES = "descriptor_codes.zarr"
LOCAL_FEATURES = "local_features.zarr"
REJECTS = "rejects.parquet"
PLAN = "plan.json"
PROGRESS = "progress.json"
TOMBSTONES = "tombstones"


def segment_folder(segment_id: str, attempt: str) -> str:
    """Name the folder of one attempt at a segment."""
    return f"segments/{segment_id}/{attempt}"


def index_folder(index_id: str, attempt: str) -> str:
    """Name the folder of one attempt at an index."""
    return f"indexes/{index_id}/{attempt}"


def run_folder(run_id: str) -> str:
    """Name the folder of a run: its plan, its rejects, and receipts of what it has made of its index."""
    return f"runs/{run_id}"


def index_receipt(run_id: str, key: str) -> str:
    """Name the receipt of a quantizer or shard that a run has made."""
    return f"{run_folder(run_id)}/index-{key}.json"
