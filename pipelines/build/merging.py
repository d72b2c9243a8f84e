"""Two writers at once: what others published while a run was at work is merged with it, or the run conflicts.

A backfill only adds, so it goes on top of whatever is newest. A build says which photos the whole map has: what backfills,
takedowns and repairs did meanwhile is kept, but another build or a rollback says something else of the whole, and only one of the
two can be right. Tombstones hold for all.
"""

from collections.abc import Collection, Mapping, Set
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.commits import read_manifest
from infra.storage import Storage
from pipelines.build.membership import Selection, StoredSegment, live_selection, select
from pipelines.build.request import Mode
from pipelines.build.tombstones import Tombstones
from schemas.errors import CommitConflict
from schemas.manifest import Manifest

MERGED: Final = frozenset({"backfill", "takedown", "repair"})
"""Actions whose effect a build keeps."""


def allowed_photos(images: pa.Table, tombstones: Tombstones) -> pa.Table:
    """Leave out the photos that were taken down, by name or by their bytes."""
    return images.filter(pc.invert(pa.array(tombstones.cover(images["image_id"], images["checksum"])))) if tombstones else images


def choose(
    mode: Mode,
    images: pa.Table,
    *,
    head: Manifest | None,
    held_before: Set[str],
    stored: Mapping[str, StoredSegment],
    tombstones: Tombstones,
    planned: Collection[str] = (),
    replaced: Collection[str] = (),
) -> Selection:
    """Choose the rows of the next version.

    Args:
        mode: a build makes the map exactly `images` and what others added meanwhile; a backfill keeps everything and adds them.
        images: the photos asked for, without those taken down, in the schema of images.
        head: the newest version.
        held_before: photo keys of the version that the run started from; what a build finds beside them in `head`, others added.
        stored: every finished segment of the network.
        tombstones: of the newest version.
        planned: see `membership.select`.
        replaced: see there.
    """
    if mode == "backfill":
        kept = live_selection(head, stored)
    else:
        kept = _added_since(held_before, head, stored)
        kept = _without(kept, stored, set(images["image_id"].to_pylist()))  # the build knows better what these are now
    return select(
        stored,
        head,
        wanted=set(images["photo_key"].to_pylist()),
        kept=_without(kept, stored, tombstones.image_ids),
        planned=planned,
        replaced=replaced,
    )


def is_mergeable(storage: Storage, started: Manifest | None, head: Manifest | None, model_fingerprint: str) -> bool:
    """Tell whether a build can go on top of what was published since it started.

    Args:
        storage: of the map.
        started: the version it started from.
        head: the newest version.
        model_fingerprint: of the build's network; photos that a backfill added with another one would be lost.
    """
    if head is None or (started is not None and head.content_id == started.content_id):
        return True
    first = 1 if started is None else started.version + 1
    actions = {read_manifest(storage, version).action for version in range(first, head.version + 1)}
    return actions <= MERGED and (head.model.fingerprint == model_fingerprint or "backfill" not in actions)


def conflict(storage: Storage, started: Manifest | None, head: Manifest) -> CommitConflict:
    """Word the error for a build that cannot be merged."""
    before = f"version {started.version}" if started else "an empty map"
    return CommitConflict(
        f"{storage.url}: version {head.version} ({head.action}) was published with other photos while this build was at work on "
        f"{before}. Nothing of it is visible, and what it encoded is kept. See that version, and run the same command again if "
        "the map is still to have exactly these photos."
    )


def _added_since(held_before: Set[str], head: Manifest | None, stored: Mapping[str, StoredSegment]) -> Selection:
    """Select what a version has beside some photos. By key, because a repair may have moved photos to other segments."""

    def added(name: str) -> np.ndarray:
        return np.array([key not in held_before for key in stored[name].photo_keys], bool)

    return {name: live & added(name) for name, live in live_selection(head, stored).items()}


def _without(selection: Selection, stored: Mapping[str, StoredSegment], image_ids: Collection[str]) -> Selection:
    def others(name: str) -> np.ndarray:
        return np.array([image_id not in image_ids for image_id in stored[name].image_ids], bool)

    return {name: live & others(name) for name, live in selection.items() if live.any()} if image_ids else selection
