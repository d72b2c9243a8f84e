"""segments ▶ quantizer ▶ shards: make a version searchable, redoing only what its photos ask for.

The quantizer is trained on the photos with the smallest image ids, which is a random sample that does not depend on how photos
were cut into segments. A shard is a run of segments along the Hilbert curve; an id in it is `first_id` of its segment plus the
row.
"""

import hashlib
from collections.abc import Iterator, Mapping
from uuid import uuid4

import msgspec
import numpy as np
from jaxtyping import Float32, Int64

from infra.storage import Storage
from infra.tables import get_object, put_object, read_descriptors
from pipelines import ivfpq
from pipelines.build.membership import Selection, StoredSegment, live_rows, segment_object
from pipelines.catalog.hilbert import hilbert_position
from pipelines.ivfpq import IndexConfig, IvfPqParameters
from schemas import layout
from schemas.manifest import BBox, IndexEntry, Manifest, ShardEntry, ShardSegment

Stored = Mapping[str, StoredSegment]
Group = list[ShardSegment]


def build_index(
    storage: Storage,
    stored: Stored,
    selection: Selection,
    head: Manifest | None,
    *,
    descriptor_dim: int,
    config: IndexConfig,
    extend: bool,
) -> IndexEntry:
    """Make the index of a version from stored descriptors.

    Args:
        storage: of the map.
        stored: every segment that `selection` names.
        selection: the photos of the version; at least one.
        head: the version before, made with the same network; its quantizer and shards are used again where they still fit.
        descriptor_dim: D.
        config: sizes.
        extend: True keeps all shards that are still true and adds shards for the rest (a backfill); False also merges small ones.
    """
    photos = sum(int(live.sum()) for live in selection.values())
    parameters = ivfpq.derive_parameters(photos, descriptor_dim, config)
    if head is not None and _fits(head.index, parameters, photos, config):
        index, kept = head.index, [shard for shard in head.index.shards if _still_true(shard, head, selection)]
    else:
        index, kept = _train(storage, stored, selection, parameters, config), []
    taken = {member.segment_id for shard in kept for member in shard.segments} if extend else set()
    groups = _group(stored, sorted(set(selection) - taken), config)
    if not extend:
        kept = [shard for shard in kept if shard.segments in groups]
    missing = [group for group in groups if group not in [shard.segments for shard in kept]]
    quantizer = get_object(storage, index.quantizer) if index.quantizer and missing else None
    folder = layout.index_folder(index.index_id, uuid4().hex[:12])
    made = [
        _write_shard(storage, stored, selection, group, quantizer, descriptor_dim, f"{folder}/shard-{number:05d}.faiss")
        for number, group in enumerate(missing)
    ]
    return msgspec.structs.replace(index, shards=sorted([*kept, *made], key=lambda shard: shard.segments[0].segment_id))


def _fits(index: IndexEntry, parameters: IvfPqParameters | None, photos: int, config: IndexConfig) -> bool:
    if index.kind == "flat" or parameters is None:
        return (index.kind == "flat") == (parameters is None)
    return photos <= config.retrain_growth * index.trained_for


def _still_true(shard: ShardEntry, head: Manifest, selection: Selection) -> bool:
    before = {entry.segment_id: entry for entry in head.segments}
    return all(
        member.segment_id in selection and np.array_equal(live_rows(before[member.segment_id]), selection[member.segment_id])
        for member in shard.segments
    )


def _train(
    storage: Storage, stored: Stored, selection: Selection, parameters: IvfPqParameters | None, config: IndexConfig
) -> IndexEntry:
    fingerprint = next(iter(stored.values())).receipt.model_fingerprint
    if parameters is None:
        index_id = _name([fingerprint, "flat"])
        return IndexEntry(
            kind="flat",
            index_id=index_id,
            seed=config.seed,
            trained_on=0,
            trained_for=0,
            parameters={},
            quantizer=None,
            shards=[],
        )
    sample = _sample(stored, selection, config.train_photos)
    index_id = _name([fingerprint, parameters.to_json(), config.seed, [image_id for image_id, _, _ in sample]])
    quantizer = ivfpq.train_quantizer(_gather(storage, stored, sample), parameters, config)
    path = f"{layout.index_folder(index_id, uuid4().hex[:12])}/quantizer.faiss"
    return IndexEntry(
        kind="ivfpq",
        index_id=index_id,
        seed=config.seed,
        trained_on=len(sample),
        trained_for=sum(int(live.sum()) for live in selection.values()),
        parameters=parameters.to_json(),
        quantizer=put_object(storage, path, quantizer),
        shards=[],
    )


def _sample(stored: Stored, selection: Selection, most: int) -> list[tuple[str, str, int]]:
    """Pick the live photos with the smallest image ids: (image id, segment, row), sorted."""
    photos = [
        (stored[segment].image_ids[row], segment, row)
        for segment, live in selection.items()
        for row in np.flatnonzero(live).tolist()
    ]
    return sorted(photos)[:most]


def _gather(storage: Storage, stored: Stored, sample: list[tuple[str, str, int]]) -> Float32[np.ndarray, "n D"]:
    """Read the descriptors of a sample in its order, one segment in memory at a time."""
    rows_of: dict[str, list[tuple[int, int]]] = {}
    for place, (_, segment, row) in enumerate(sample):
        rows_of.setdefault(segment, []).append((place, row))
    gathered: np.ndarray | None = None
    for segment, pairs in rows_of.items():
        descriptors = read_descriptors(storage, segment_object(stored[segment].receipt, layout.DESCRIPTORS))
        if gathered is None:
            gathered = np.empty((len(sample), descriptors.shape[1]), np.float32)
        places, rows = np.array(pairs).T
        gathered[places] = descriptors[rows]
    assert gathered is not None, "a version has at least one photo"
    return gathered


def _group(stored: Stored, segments: list[str], config: IndexConfig) -> list[Group]:
    """Put segments that lie beside each other along the Hilbert curve into shards."""
    groups: list[Group] = []
    rows = 0
    for segment in sorted(segments, key=lambda name: (_curve_position(stored[name]), name)):
        count = stored[segment].receipt.rows
        if not groups or rows + count > config.shard_photos:
            groups.append([])
            rows = 0
        groups[-1].append(ShardSegment(segment_id=segment, first_id=rows))
        rows += count
    return groups


def _curve_position(segment: StoredSegment) -> int:
    west, south, east, north = _bbox(segment)
    return int(hilbert_position(np.array([(west + east) / 2]), np.array([(south + north) / 2]))[0])


def _write_shard(
    storage: Storage,
    stored: Stored,
    selection: Selection,
    group: Group,
    quantizer: bytes | None,
    descriptor_dim: int,
    path: str,
) -> ShardEntry:
    def blocks() -> Iterator[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]]:
        for member in group:
            rows = np.flatnonzero(selection[member.segment_id])
            ref = segment_object(stored[member.segment_id].receipt, layout.DESCRIPTORS)
            yield read_descriptors(storage, ref)[rows].astype(np.float32), rows + member.first_id

    west, south, east, north = zip(*(_bbox(stored[member.segment_id]) for member in group), strict=True)
    return ShardEntry(
        file=put_object(storage, path, ivfpq.make_shard(quantizer, descriptor_dim, blocks())),
        rows=sum(int(selection[member.segment_id].sum()) for member in group),
        bbox=(min(west), min(south), max(east), max(north)),
        segments=group,
    )


def _bbox(segment: StoredSegment) -> BBox:
    assert segment.receipt.bbox is not None, "a selected segment has at least one photo"
    return segment.receipt.bbox


def _name(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
