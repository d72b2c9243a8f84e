"""segments ▶ quantizer ▶ shards: make a version searchable, redoing only what its photos ask for.

The quantizer is trained on the photos with the smallest image ids, which is a random sample that does not depend on how photos
were cut into segments; the last of them are held out to measure it (`drift`). A shard is a run of segments along the Hilbert
curve; an id in it is `first_id` of its segment plus the row.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
import numpy as np
from jaxtyping import Float16

from infra.storage import Storage
from infra.tables import DescriptorReader, get_object, put_object, read_descriptors
from pipelines import ivfpq
from pipelines.build.drift import MEASURED_PHOTOS, held_out, learned_from, learned_to, reason_to_train, with_new_photos
from pipelines.build.membership import Selection, StoredSegment, live_keys, live_rows, masked_ranges, segment_object
from pipelines.build.shards import MakeShards, ShardMember, ShardTask, keep_receipt, make_here, taken_over
from pipelines.build.tune import require_recall, tune
from pipelines.catalog.hilbert import hilbert_position
from pipelines.ivfpq import IndexConfig, IvfPqParameters
from schemas import layout
from schemas.manifest import BBox, IndexEntry, IndexReceipt, Manifest, ObjectRef, ShardEntry, ShardSegment
from schemas.versions import FORMATS

MASKED_SHARE: Final = 1 / 4
"""Share of a shard's photos that may be masked before it is made anew: memory that searches for nothing."""

SMALL_SHARD: Final = 1 / 4
"""A build merges shards of less than this share of `shard_photos`."""

SPARSE: Final = 1 / 16
"""Share of a segment's rows below which they are read alone. They lie about ten in a row group, so that at a sixteenth nearly
half of the groups are needed."""

Stored = Mapping[str, StoredSegment]
Group = list[ShardSegment]


def build_index(
    storage: Storage,
    stored: Stored,
    selection: Selection,
    head: Manifest | None,
    *,
    tombstones: Sequence[ObjectRef] = (),
    descriptor_dim: int,
    config: IndexConfig,
    extend: bool,
    run_id: str | None = None,
    make_shards: MakeShards | None = None,
) -> IndexEntry:
    """Make the index of a version from stored descriptors.

    Args:
        storage: of the map.
        stored: every segment that `selection` names.
        selection: the photos of the version; at least one.
        head: the version before, made with the same network; its quantizer and shards are used again where they still fit.
        tombstones: of the newest version.
        descriptor_dim: D.
        config: sizes.
        extend: True keeps all shards that still hold and adds shards for the rest (a backfill); False also merges small ones, and
            trains again when new photos do not fit the quantizer or it learned from photos that were taken down since.
        run_id: of the run, which may be started again and then goes on where it was; None: it is not.
        make_shards: where; None: in this thread.

    Raises:
        PlanError: the index would find less than is asked for; nothing was written.
        DamagedError: descriptors are missing or not what was written.
    """
    photos = sum(int(live.sum()) for live in selection.values())
    parameters = ivfpq.derive_parameters(photos, descriptor_dim, config)
    before = _measured(storage, stored, selection, head) if head else None
    taken_down = learned_from(storage, before, tombstones)
    why = reason_to_train(before, photos, descriptor_dim, config, taken_down=taken_down, extend=extend)
    if head is None or before is None or why:
        circumstances: dict[str, str | int] = {"trained_because": why or "", "tombstones": len(tombstones)}
        index, holding = _train(storage, stored, selection, parameters, config, circumstances, run_id), []
    else:
        index, holding = before, _still_holding(head, selection)
    kept = [shard for shard in holding if extend or not _is_small(stored, shard.segments, config)]
    taken = {member.segment_id for shard in kept for member in shard.segments}
    groups = _group(stored, sorted(set(selection) - taken), config)
    kept += [shard for shard in holding if shard.segments in groups]
    missing = [group for group in groups if group not in [shard.segments for shard in kept]]
    folder = layout.index_folder(index.index_id, uuid4().hex[:12])
    tasks = [
        _task(stored, selection, group, index, descriptor_dim, f"{folder}/shard-{number:05d}.faiss", run_id)
        for number, group in enumerate(missing)
    ]
    files = (make_shards or make_here(storage, 1))(tasks) if tasks else []
    made = [_shard_entry(stored, task, file) for task, file in zip(tasks, files, strict=True)]
    return msgspec.structs.replace(index, shards=sorted([*kept, *made], key=lambda shard: shard.segments[0].segment_id))


def _measured(storage: Storage, stored: Stored, selection: Selection, head: Manifest) -> IndexEntry:
    """Account, in the index of the version before, for the photos that this version adds."""
    index, held = head.index, live_keys(head, stored)
    if index.quantizer is None or "error" not in index.parameters:
        return index
    new = {name: live & np.array([key not in held for key in stored[name].photo_keys], bool) for name, live in selection.items()}
    count = sum(int(live.sum()) for live in new.values())
    if not count:
        return index
    sample = _gather(storage, stored, _sample(stored, new, MEASURED_PHOTOS))
    return with_new_photos(index, count, ivfpq.quantization_error(get_object(storage, index.quantizer), sample))


def _still_holding(head: Manifest, selection: Selection) -> list[ShardEntry]:
    """List the shards of a version that hold every live photo of their segments, and not too many others.

    Readers pass over masked photos, so that a photo that leaves does not cost the shard it is in.
    """
    before = {entry.segment_id: live_rows(entry) for entry in head.segments}

    def holds(shard: ShardEntry) -> bool:
        if not all(member.segment_id in selection for member in shard.segments):
            return False
        live = sum(int(selection[member.segment_id].sum()) for member in shard.segments)
        missing = any((selection[member.segment_id] & ~before[member.segment_id]).any() for member in shard.segments)
        return not missing and live >= (1 - MASKED_SHARE) * shard.rows

    return [shard for shard in head.index.shards if holds(shard)]


def _train(
    storage: Storage,
    stored: Stored,
    selection: Selection,
    parameters: IvfPqParameters | None,
    config: IndexConfig,
    circumstances: Mapping[str, str | int],
    run_id: str | None,
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
    photos = sum(int(live.sum()) for live in selection.values())
    sample = _sample(stored, selection, config.train_photos + MEASURED_PHOTOS)
    learned = min(config.train_photos, len(sample) - held_out(len(sample), config))
    learned_ids = [image_id for image_id, _, _ in sample[:learned]]
    index_id = _name([fingerprint, FORMATS["quantizer"], parameters.to_json(), config.seed, learned_ids])
    path = f"{layout.index_folder(index_id, uuid4().hex[:12])}/quantizer.faiss"
    key = _name([index_id, photos, len(sample), dict(circumstances), config.recall])
    if (before := taken_over(storage, run_id, key, path)) is not None and before.entry is not None:
        return before.entry
    descriptors = _gather(storage, stored, sample)
    quantizer = ivfpq.train_quantizer(descriptors[:learned], parameters, config)
    asked: dict[str, Any] = {"parameters": parameters, "photos": photos, "config": config}
    tuning = tune(quantizer, descriptors[:learned], descriptors[learned:], **asked)
    require_recall(tuning, descriptors[:learned], descriptors[learned:], **asked)
    error = {"error": round(ivfpq.quantization_error(quantizer, descriptors[learned:]), 6)} if learned < len(sample) else {}
    entry = IndexEntry(
        kind="ivfpq",
        index_id=index_id,
        seed=config.seed,
        trained_on=learned,
        trained_for=photos,
        parameters={
            **parameters.to_json(),
            **tuning.to_json(),
            **error,
            **circumstances,
            "learned_to": learned_to(sample[learned - 1][0]),
        },
        quantizer=put_object(storage, path, quantizer),
        shards=[],
    )
    assert entry.quantizer is not None
    keep_receipt(storage, run_id, IndexReceipt(key=key, file=entry.quantizer, entry=entry))
    return entry


def _sample(stored: Stored, selection: Selection, most: int) -> list[tuple[str, str, int]]:
    """Pick the live photos with the smallest image ids: (image id, segment, row), sorted."""
    photos = [
        (stored[segment].image_ids[row], segment, row)
        for segment, live in selection.items()
        for row in np.flatnonzero(live).tolist()
    ]
    return sorted(photos)[:most]


def _gather(storage: Storage, stored: Stored, sample: list[tuple[str, str, int]]) -> Float16[np.ndarray, "n D"]:
    """Read the descriptors of a sample in its order, one segment in memory at a time, of large maps only what is needed.

    They stay as they are stored: half the memory.
    """
    rows_of: dict[str, list[tuple[int, int]]] = {}
    for place, (_, segment, row) in enumerate(sample):
        rows_of.setdefault(segment, []).append((place, row))
    gathered: np.ndarray | None = None
    for segment, pairs in rows_of.items():
        ref = segment_object(stored[segment].receipt, layout.DESCRIPTORS)
        places, rows = np.array(pairs).T
        few = len(rows) < SPARSE * stored[segment].receipt.rows
        descriptors = DescriptorReader(storage, ref).read(rows.tolist()) if few else read_descriptors(storage, ref)[rows]
        if gathered is None:
            gathered = np.empty((len(sample), descriptors.shape[1]), descriptors.dtype)
        gathered[places] = descriptors
    assert gathered is not None, "a version has at least one photo"
    return gathered


def _group(stored: Stored, segments: list[str], config: IndexConfig) -> list[Group]:
    """Put segments into shards so that those beside each other along the Hilbert curve share one.

    Small shards among large ones are put together once more, as the next build would do it: so it has nothing to do.
    """
    groups = _packed(stored, segments, config)
    small = [group for group in groups if _is_small(stored, group, config)]
    if len(small) in (0, len(groups)):
        return groups
    loose = sorted(member.segment_id for group in small for member in group)
    return [group for group in groups if group not in small] + _group(stored, loose, config)


def _packed(stored: Stored, segments: list[str], config: IndexConfig) -> list[Group]:
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


def _is_small(stored: Stored, group: Group, config: IndexConfig) -> bool:
    return sum(stored[member.segment_id].receipt.rows for member in group) < SMALL_SHARD * config.shard_photos


def _curve_position(segment: StoredSegment) -> int:
    west, south, east, north = _bbox(segment)
    return int(hilbert_position(np.array([(west + east) / 2]), np.array([(south + north) / 2]))[0])


def _task(
    stored: Stored,
    selection: Selection,
    group: Group,
    index: IndexEntry,
    descriptor_dim: int,
    path: str,
    run_id: str | None,
) -> ShardTask:
    members = tuple(
        ShardMember(
            segment=member,
            descriptors=segment_object(stored[member.segment_id].receipt, layout.DESCRIPTORS),
            live=selection[member.segment_id],
        )
        for member in group
    )
    content = [[one.segment, one.descriptors.sha256, masked_ranges(one.live)] for one in members]
    quantizer = index.quantizer.sha256 if index.quantizer else None
    return ShardTask(
        key=_name([FORMATS["shard"], descriptor_dim, quantizer, content]),
        path=path,
        run_id=run_id,
        members=members,
        quantizer=index.quantizer,
        descriptor_dim=descriptor_dim,
    )


def _shard_entry(stored: Stored, task: ShardTask, file: ObjectRef) -> ShardEntry:
    segments = [member.segment for member in task.members]
    west, south, east, north = zip(*(_bbox(stored[member.segment_id]) for member in segments), strict=True)
    return ShardEntry(file=file, rows=task.photos, bbox=(min(west), min(south), max(east), max(north)), segments=segments)


def _bbox(segment: StoredSegment) -> BBox:
    assert segment.receipt.bbox is not None, "a selected segment has at least one photo"
    return segment.receipt.bbox


def _name(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
