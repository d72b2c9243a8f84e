"""store ▶ what no version needs any more, removed.

Kept are the newest version, those with a tag, those that a run has pinned, and every version that was the newest at some time
within the last days (`older_than`). Of what only others name, and of what nothing names, the objects older than that go, as do
temporary files of killed writers. Days are counted by the store's clock. Manifests, tags and marks always stay.

In this order, so that a map opens whenever this stops: retirement of the versions that lose something, then a second look at
everything, then receipts, so that no build counts on what goes, then the objects. gc has a lease until the receipts are gone
(`infra/leases.py`); while a run has one, only what nothing names goes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final
from uuid import uuid4

import msgspec

from infra.commits import list_tags, manifest_path, read_head, read_manifest, receipt_path, retire
from infra.leases import GC, HeldLease, lease, live_leases, store_now
from infra.observability import progress
from infra.storage import TEMPORARY_SUFFIX, ObjectInfo, Storage
from schemas import layout
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import Manifest, Receipt, decode_receipt

SAFE_AGE: Final = timedelta(days=7)
"""Longer than any reader stays with a version and any run sleeps."""

KINDS: Final = ("segments", "receipts", "indexes", "tombstones", "runs")
"""Folders of a map that things go from."""

TEMPORARY: Final = "temporary"
"""What goes of any folder: files that a killed writer left unfinished."""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What goes, of one kind."""

    kind: str
    """Its folder in the map, or `TEMPORARY`."""
    objects: int
    size_bytes: int


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio gc` did, or would do."""

    deleted: bool
    """False: a dry run."""
    removed: list[Removed]
    paths: list[str]
    retired: list[int]
    """Versions that lose objects and are not opened any more."""
    kept: list[int]
    """Versions that stay whole."""
    at_work: list[str]
    """Runs because of which nothing goes that a receipt or manifest names."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        verb = "removed" if self.deleted else "would be removed"
        lines = [f"{one.kind:<10}  {one.objects:>9,} objects  {one.size_bytes / 1e6:>12,.1f} MB {verb}" for one in self.removed]
        if not self.removed:
            lines.append("nothing to remove")
        if self.retired:
            lines.append(f"versions {'' if self.deleted else 'to be '}retired: {', '.join(map(str, self.retired))}")
        if self.at_work:
            lines.append(f"at work, so only what nothing names goes: {', '.join(self.at_work)}")
        if self.removed and not self.deleted:
            lines.append("nothing was changed; to remove this: --delete")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Findings:
    """What one look at the map found."""

    garbage: dict[str, int]
    """Size in bytes of what can go, by path."""
    retired: set[int]
    """Versions that lose something of it and are not marked yet."""
    kept: set[int]
    at_work: list[str]


def gc(storage: Storage, *, older_than: timedelta = SAFE_AGE, delete: bool = False) -> Collected:
    """Remove what no version needs any more. Safe to stop and run again.

    Args:
        storage: of the map.
        older_than: by the store's clock. Less than `SAFE_AGE` may take from readers and sleeping runs what they stand on.
        delete: False only says what would go.

    Raises:
        MapMissing: there is no map.
        MapError: what a version that must stay consists of cannot be told; nothing was removed.
        WorkError: this run slept for so long that others may have begun since; what it had removed was not needed.
    """
    read_head(storage)
    looking = _Looking(storage, older_than)
    if not delete:
        found = looking.look(own_run=None)
        return _collected(found, found.garbage, deleted=False)
    run_id = f"gc-{uuid4().hex[:12]}"
    with lease(storage, run_id=run_id, action=GC) as held:
        found = looking.look(own_run=run_id)
        retire(storage, found.retired, reason="gc", check=held.require)
        # Whoever published, tagged or began meanwhile needs what it found: only what could go both times goes.
        again = looking.look(own_run=run_id)
        garbage = {path: size for path, size in found.garbage.items() if path in again.garbage}
        _delete(storage, [path for path in garbage if path.startswith("receipts/")], held)
    _delete(storage, [path for path in garbage if not path.startswith("receipts/")], None)
    return _collected(found, garbage, deleted=True)


def parse_duration(text: str) -> timedelta:
    """Read a time as `7d`, `36h`, `10m` or `0s`.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError(f"a time must be a number and d, h, m or s, as 7d, got {text!r}")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


class _Looking:
    """Looks at a map, more than once; a manifest is read once, as it never changes."""

    def __init__(self, storage: Storage, older_than: timedelta) -> None:
        self._storage = storage
        self._older_than = older_than
        self._manifests: dict[int, Manifest] = {}

    def look(self, *, own_run: str | None) -> _Findings:
        """Find what can go now."""
        leases = [one for one in live_leases(self._storage) if one.run_id != own_run]
        now = store_now(self._storage)
        cutoff = now - (max(self._older_than, SAFE_AGE) if leases else self._older_than)
        stored = _Stored(list(self._storage.list()), cutoff)
        kept = self._kept(stored, now) | {version for one in leases for version in one.pins}
        names = {version: self._names(version, needed=version in kept) for version in stored.versions}
        needed = _united(names[version] for version in kept & names.keys())
        if leases:  # somebody may be about to use what has a name
            needed |= _united(names.values())
        needed |= {layout.run_folder(run) for run in (own_run, *(one.run_id for one in leases)) if run}
        needed |= self._finished(stored, needed, any_of_them=bool(leases))
        garbage = stored.garbage(needed)
        gone = garbage.keys() | {stored.group(path) for path in garbage}
        unfinished = [info for info in self._storage.leftovers() if info.modified_at and info.modified_at <= cutoff]
        return _Findings(
            garbage=garbage | {info.path: info.size_bytes for info in unfinished},
            retired={version for version in names.keys() - kept - stored.retired if names[version] & gone},
            kept=kept,
            at_work=sorted(one.run_id for one in leases),
        )

    def _kept(self, stored: "_Stored", now: datetime) -> set[int]:
        """List the newest version, those with a tag, and those that were the newest since `older_than`."""
        recent = {
            version
            for version, successor in pairwise(stored.versions)
            if now - (stored.modified_at(manifest_path(successor)) or now) < self._older_than
        }
        return {stored.versions[-1]} | set(list_tags(self._storage).values()) | (recent - stored.retired)

    def _names(self, version: int, *, needed: bool) -> set[str]:
        """List what a version consists of: folders of segments, and other objects by path."""
        try:
            manifest = self._manifest(version)
        except MapError:
            if needed:
                raise
            return set()  # nobody can open it
        index = manifest.index
        return {
            *(layout.segment_folder(entry.segment_id, entry.attempt) for entry in manifest.segments),
            *(receipt_path(entry.segment_id) for entry in manifest.segments),
            *(ref.path for ref in (index.quantizer, *(shard.file for shard in index.shards), *manifest.tombstones) if ref),
        }

    def _manifest(self, version: int) -> Manifest:
        if version not in self._manifests:
            self._manifests[version] = read_manifest(self._storage, version)
        return self._manifests[version]

    def _finished(self, stored: "_Stored", needed: set[str], *, any_of_them: bool) -> set[str]:
        """List the receipts that stay and the folders they are receipts of; the two stay or go together.

        Beside those that a version needs, young ones stay, and those of photos none of which can be used, since they keep builds
        from trying these again and again.
        """
        fingerprint = self._manifest(stored.versions[-1]).model.fingerprint
        stay: set[str] = set()
        for path, folders in stored.receipts.items():
            if path in needed and folders <= needed:
                continue
            receipt = self._receipt(path)
            own = {layout.segment_folder(receipt.segment_id, receipt.attempt)} if receipt else folders
            rejects_only = receipt is not None and not receipt.rows and receipt.model_fingerprint == fingerprint
            if any_of_them or path in needed or rejects_only or stored.is_young({path, *own}):
                stay |= {path, *own}
        return stay

    def _receipt(self, path: str) -> Receipt | None:
        """Read a receipt; None: it is damaged, and of which attempt it was cannot be told."""
        try:
            return decode_receipt(self._storage.get(path), where=f"{self._storage.url}/{path}")
        except (MapError, ObjectMissing):
            return None


class _Stored:
    """A listing of a map. What was written together goes together: a run, an attempt at a segment or at an index.

    Args:
        objects: all of the map.
        cutoff: what was written later is young, and so is what its store tells no time of.
    """

    def __init__(self, objects: Sequence[ObjectInfo], cutoff: datetime) -> None:
        self._objects = {info.path: info for info in objects}
        self._young = {self.group(info.path) for info in objects if info.modified_at is None or info.modified_at > cutoff}
        self.versions: Final = self._numbers("manifests")
        self.retired: Final = set(self._numbers("retired"))
        self.receipts: Final = self._receipts()
        """All folders of attempts at its segment, by receipt."""

    def group(self, path: str) -> str:
        """Name what an object was written together with: a folder, or itself."""
        depth = {"segments": 3, "indexes": 3, "runs": 2}.get(path.partition("/")[0])
        return "/".join(path.split("/")[:depth])

    def is_young(self, groups: set[str]) -> bool:
        """Tell whether anything of these groups is young."""
        return not groups.isdisjoint(self._young)

    def modified_at(self, path: str) -> datetime | None:
        """Tell when an object was written."""
        return self._objects[path].modified_at

    def garbage(self, needed: set[str]) -> dict[str, int]:
        """List what is neither needed, by itself or with its group, nor young: size in bytes by path."""
        candidates = ((path, self.group(path)) for path in self._objects if path.partition("/")[0] in KINDS)
        return {
            path: self._objects[path].size_bytes
            for path, group in candidates
            if needed.isdisjoint({path, group}) and not self.is_young({group})
        }

    def _numbers(self, folder: str) -> list[int]:
        names = (re.fullmatch(rf"{folder}/(\d{{20}})\.json", path) for path in self._objects)
        return sorted(int(name[1]) for name in names if name)

    def _receipts(self) -> dict[str, set[str]]:
        folders: dict[str, set[str]] = {}
        for path in self._objects:
            if path.startswith("segments/"):
                folders.setdefault(receipt_path(path.split("/")[1]), set()).add(self.group(path))
        return {path: folders.get(path, set()) for path in self._objects if path.startswith("receipts/")}


def _united(sets: Iterable[set[str]]) -> set[str]:
    return set().union(*sets)


def _delete(storage: Storage, paths: Sequence[str], held: HeldLease | None) -> None:
    for path in progress(paths, total=len(paths), unit="object", description="gc"):
        if held:
            held.require()
        storage.delete(path)


def _kind(path: str) -> str:
    return TEMPORARY if path.endswith(TEMPORARY_SUFFIX) else path.partition("/")[0]


def _collected(found: _Findings, garbage: dict[str, int], *, deleted: bool) -> Collected:
    sizes = {kind: [size for path, size in garbage.items() if _kind(path) == kind] for kind in (*KINDS, TEMPORARY)}
    return Collected(
        deleted=deleted,
        removed=[Removed(kind=kind, objects=len(each), size_bytes=sum(each)) for kind, each in sizes.items() if each],
        paths=sorted(garbage),
        retired=sorted(found.retired),
        kept=sorted(found.kept),
        at_work=found.at_work,
    )
