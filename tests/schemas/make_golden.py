"""Write the golden samples of the formats that this Folio writes, into `golden/<kind>-<format number>`.

Run it once after a number in `schemas/versions.py` has risen, and commit what it adds:

    .venv/bin/python -m tests.schemas.make_golden

Never run it to make a test pass: a sample stands for the files that users have, and it refuses to replace one. When a format
changes, so may `samples.py`; `test_golden.py` then says what an older sample must be read as.
"""

from pathlib import Path
from unittest.mock import patch

import numpy as np

from infra import arrays
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import write_table
from pipelines import ivfpq
from schemas.descriptor_codes import to_codes
from schemas.local_features import bytes_per_feature
from schemas.manifest import encode_json
from schemas.versions import FORMATS
from tests.schemas import samples

GOLDEN = Path(__file__).parent / "golden"
SUFFIXES = (
    dict.fromkeys(samples.TABLES, ".parquet")
    | dict.fromkeys(samples.DOCUMENTS, ".json")
    | {"local_features": ".zarr", "descriptor_codes": ".zarr", "quantizer": ".faiss", "shard": ".faiss"}
)


def golden_name(kind: str, version: int) -> str:
    """Name the sample of a format below `GOLDEN`."""
    return f"{kind}-{version}{SUFFIXES[kind]}"


def write_sample(storage: Storage, kind: str, name: str) -> None:
    """Write the sample of a kind as this Folio writes it."""
    if kind in samples.TABLES:
        make, facts = samples.TABLES[kind]
        write_table(storage, name, make(), kind=kind, facts=facts)
    elif kind in samples.DOCUMENTS:
        storage.put(name, encode_json(samples.DOCUMENTS[kind]()))
    elif kind == "local_features":
        write_local_features(storage, name)
    elif kind == "descriptor_codes":
        arrays.write_descriptor_codes(storage, name, to_codes(samples.descriptor_numbers()))
    else:
        storage.put(name, {"quantizer": quantizer, "shard": shard}[kind]())


def write_local_features(storage: Storage, name: str) -> None:
    """Write the sample's photos, two in a shard: at the usual size the index of a shard alone would take megabytes."""
    size = samples.FEATURES_PER_PHOTO * bytes_per_feature(samples.LOCAL_DIM, "int4")
    with patch.object(arrays, "SHARD_BYTES", 2 * size):
        writer = arrays.LocalFeaturesWriter(
            storage, name, features_per_photo=samples.FEATURES_PER_PHOTO, dim=samples.LOCAL_DIM, precision="int4"
        )
    for photo in samples.local_codes():
        writer.append(photo)
    writer.close()


def quantizer() -> bytes:
    """Train the sample's quantizer."""
    return ivfpq.train_quantizer(samples.training_sample(), samples.PARAMETERS, samples.INDEX_CONFIG)


def shard() -> bytes:
    """Code the sample's photos."""
    block = (samples.descriptor_numbers().astype(np.float32), np.array(samples.SHARD_IDS))
    return ivfpq.make_shard(quantizer(), samples.DIM, [block])


def main() -> None:
    """Add the samples that are not there yet."""
    storage = open_storage(str(GOLDEN), Settings(threads=1))
    for kind, version in FORMATS.items():
        if not (GOLDEN / golden_name(kind, version)).exists():
            write_sample(storage, kind, golden_name(kind, version))


if __name__ == "__main__":
    main()
