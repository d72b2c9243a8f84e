"""store ▶ what holds photos that were taken down, removed: the last step of a rebuild.

The rebuild has published a version whose segments and shards were made without them. What is left are the objects of older
versions and of killed runs. In this order, so that every version that is not retired opens whenever this stops, and the next
rebuild finds what is left to do: retirement of the versions that name such objects, receipts, shards, what lies in segments, and
last the tables that tell of the photos; then the rejects of runs. What the newest version itself still names stays: then a photo
was taken down after the rebuild began, and the next one does it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa

from infra.commits import list_retired, list_versions, read_head, read_manifest, read_receipts, receipt_path, retire
from infra.leases import live_leases
from infra.storage import Storage
from infra.tables import read_table, write_table
from pipelines.build.tombstones import Tombstones, read_tombstones
from schemas import layout
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import Manifest
from schemas.rejects import REJECTS

THREADS: Final = 8
"""Objects that are read or deleted at once."""

_ATTEMPT: Final = re.compile(r"segments/([^/]+)/([^/]+)/.+")
_RUN_REJECTS: Final = re.compile(rf"runs/([^/]+)/{re.escape(layout.REJECTS)}")

Attempt = tuple[str, str]
"""Segment id, attempt."""


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge removed."""

    objects: int = 0
    tables: int = 0
    """Of rejects, that were written anew without some rows."""
    retired: list[int] = []
    """Versions that named such objects and are not opened any more."""
    waiting: list[str] = []
    """What other runs may be about to publish, folders and versions; the next rebuild looks again."""

    def lines(self) -> list[str]:
        """Say it to a person; nothing where there was nothing to do."""
        lines = []
        if self.objects or self.tables:
            old = f", versions {', '.join(map(str, self.retired))} retired" if self.retired else ""
            lines.append(f"photos taken down: {self.objects:,} objects removed, {self.tables:,} tables cleaned{old}")
        if self.waiting:
            lines.append(f"photos taken down: left to the next build, as another run is at work: {', '.join(self.waiting)}")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What holds photos that were taken down and is not part of the newest version."""

    receipts: dict[Attempt, str]
    """Their paths, by what they name."""
    shards: list[str]
    """And quantizers."""
    attempts: dict[Attempt, list[str]]
    """Objects of each."""
    telling: set[str]
    """Those among them that name the photos."""
    versions: list[int]
    """That name any of these."""


def purge(storage: Storage, *, own_run: str, check: Callable[[], None]) -> Purged:
    """Remove what holds photos that were taken down.

    Args:
        storage: of the map.
        own_run: the run that does this and has a lease.
        check: called before anything is removed; raises when this run's lease has lapsed.

    Raises:
        StorageError: the store does not answer; the next rebuild goes on.
        MapError: a receipt or a table of tombstones is damaged; nothing was removed.
    """
    head = read_head(storage)
    if not head.tombstones:
        return Purged()
    down = read_tombstones(storage, head.tombstones)
    first = _Looking(storage, down).look()
    if not first.attempts:
        return Purged(tables=_clean_rejects(storage, down))
    retired = sorted(set(first.versions) - list_retired(storage))
    check()
    retire(storage, retired, reason="purge")
    # Who has published meanwhile is seen by a second look. Who still is at work may be about to go back to a version that it has
    # pinned, or to publish what no version names yet, if it began before these photos were taken down.
    others = [one for one in live_leases(storage) if one.run_id != own_run]
    pinned = {version for one in others for version in one.pins}
    looking = _Looking(storage, down, pinned=pinned)
    found = looking.look()
    waiting = {attempt for attempt in found.attempts if others and attempt not in looking.named}
    check()
    segments = {path for attempt, paths in found.attempts.items() if attempt not in waiting for path in paths}
    receipts = [path for attempt, path in found.receipts.items() if attempt not in waiting]
    steps = (receipts, found.shards, segments - found.telling, segments & found.telling)
    objects = sum(_delete(storage, step) for step in steps)
    return Purged(
        objects=objects,
        tables=_clean_rejects(storage, down),
        retired=retired,
        waiting=[
            *(f"version {version}" for version in sorted(pinned & set(first.versions))),
            *sorted(layout.segment_folder(*attempt) for attempt in waiting),
        ],
    )


class _Looking:
    """One look at the whole map."""

    def __init__(self, storage: Storage, down: Tombstones, *, pinned: Collection[int] = ()) -> None:
        self._storage = storage
        self._down = down
        self._pinned = pinned
        self.named: set[Attempt] = set()
        """Attempts that a manifest names."""

    def look(self) -> _Found:
        """Find what is to go."""
        storage = self._storage
        receipts = read_receipts(storage)
        manifests = [read_manifest(storage, version) for version in list_versions(storage)]
        staying = [manifests[-1], *(one for one in manifests if one.version in self._pinned)]
        self.named = {(entry.segment_id, entry.attempt) for manifest in manifests for entry in manifest.segments}
        attempts = self._attempts({entry.segment_id for one in staying for entry in one.segments})
        with ThreadPoolExecutor(THREADS) as pool:
            telling = dict(
                zip(attempts, pool.map(lambda attempt: self._tells(attempt, attempts[attempt]), attempts), strict=True)
            )
        bad = {segment for (segment, _), tables in telling.items() if tables}
        going = [one for one in manifests[:-1] if any(entry.segment_id in bad for entry in one.segments)]
        shards = _shards(manifests, bad) - {shard.file.path for one in staying for shard in one.index.shards}
        # A new quantizer was trained if the old one had learned from such photos; else the newest version has the old one too.
        shards |= _quantizers(going) - _quantizers([*staying, *(one for one in manifests if one not in going)])
        there = {info.path for info in storage.list("indexes")}
        return _Found(
            receipts={(name, receipts[name].attempt): receipt_path(name) for name in bad & receipts.keys()},
            shards=sorted(shards & there),
            attempts={attempt: paths for attempt, paths in attempts.items() if attempt[0] in bad},
            telling=set().union(*telling.values()),
            versions=[one.version for one in going],
        )

    def _attempts(self, kept: set[str]) -> dict[Attempt, list[str]]:
        """List the objects of each attempt at a segment that does not stay."""
        found: dict[Attempt, list[str]] = {}
        for info in (*self._storage.list("segments"), *self._storage.leftovers("segments")):
            name = _ATTEMPT.fullmatch(info.path)
            if name and name[1] not in kept:
                found.setdefault((name[1], name[2]), []).append(info.path)
        return found

    def _tells(self, attempt: Attempt, paths: Sequence[str]) -> set[str]:
        """Name the tables of an attempt, as far as it has been written, that have photos which were taken down."""
        images, rejects = (f"{layout.segment_folder(*attempt)}/{name}" for name in (layout.IMAGES, layout.REJECTS))
        found = set()
        try:
            if images in paths:
                photos = read_table(self._storage, images, kind="images", columns=["image_id", "checksum"])
                found |= {images} if self._down.cover(photos["image_id"], photos["checksum"]).any() else set()
            if rejects in paths:
                table = read_table(self._storage, rejects, kind="rejects")
                found |= {rejects} if self._down.cover_rejects(table).any() else set()
        except (MapError, ObjectMissing):  # damaged, or gone since: verify-deleted names it
            return found
        return found


def _shards(manifests: Iterable[Manifest], segments: set[str]) -> set[str]:
    """Name the shards that were made of any of these segments."""
    return {
        shard.file.path
        for manifest in manifests
        for shard in manifest.index.shards
        if any(member.segment_id in segments for member in shard.segments)
    }


def _quantizers(manifests: Iterable[Manifest]) -> set[str]:
    return {one.index.quantizer.path for one in manifests if one.index.quantizer}


def _clean_rejects(storage: Storage, down: Tombstones) -> int:
    """Write the rejects of runs anew without the photos that were taken down, and say how many tables that changed."""
    changed = 0
    for path in [info.path for info in storage.list("runs") if _RUN_REJECTS.fullmatch(info.path)]:
        try:
            rejects = read_table(storage, path, kind="rejects")
        except (MapError, ObjectMissing):  # verify-deleted names it
            continue
        named = down.cover_rejects(rejects)
        if named.any():
            kept = rejects.filter(pa.array(~named)).cast(REJECTS).replace_schema_metadata(None)
            write_table(storage, path, kept, kind="rejects")
            changed += 1
    return changed


def _delete(storage: Storage, paths: Collection[str]) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return len(list(pool.map(storage.delete, paths)))
