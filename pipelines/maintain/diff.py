"""two manifests ▶ what differs between them: photos, segments, index.

Photos are compared by name and key; only segments that are not the same in both versions are read.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import pyarrow as pa

from infra.commits import list_retired, read_manifest, version_number
from infra.storage import Storage
from pipelines.build.masking import read_photos
from pipelines.build.membership import live_rows
from schemas.errors import DamagedError
from schemas.manifest import IndexEntry, Manifest, SegmentEntry

SHOWN: Final = 5
"""Photos of each kind that a person is shown."""

Content = tuple[str, str, tuple[tuple[int, int], ...]]
"""Segment id, attempt, masked rows."""


class PhotoLine(msgspec.Struct, frozen=True, kw_only=True):
    """A photo."""

    image_id: str
    uri: str


class PhotoDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What became of photos, sorted by image id."""

    added: list[PhotoLine]
    removed: list[PhotoLine]
    changed: list[PhotoLine]
    """Of the same name, but not the same file any more."""


class SegmentDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What became of segments, by id."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """In both, with other rows left out or encoded anew."""
    kept: int


class IndexDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the index."""

    kind: list[str]
    """Of A, of B."""
    retrained: bool
    """Another quantizer."""
    shards_added: int
    shards_removed: int
    shards_kept: int


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """How version B differs from version A. `folio diff --json` prints it."""

    a: int
    b: int
    photos: PhotoDiff | None
    """None: one of the two is retired and what differs is not there any more."""
    segments: SegmentDiff
    index: IndexDiff
    model_changed: bool

    def lines(self) -> list[str]:
        """Say it to a person."""
        segments, index = self.segments, self.index
        return [
            *self._photo_lines(),
            f"segments  {len(segments.added):,} added, {len(segments.removed):,} removed, {len(segments.changed):,} changed, "
            f"{segments.kept:,} the same",
            f"index     {' ▶ '.join(dict.fromkeys(index.kind))}, {'another' if index.retrained else 'the same'} quantizer; "
            f"shards: {index.shards_added:,} added, {index.shards_removed:,} removed, {index.shards_kept:,} the same",
            *(["model     another network"] if self.model_changed else []),
        ]

    def _photo_lines(self) -> list[str]:
        if self.photos is None:
            return ["photos    cannot be compared: one version is retired, and what differs is not in the store any more"]
        kinds = {"added": self.photos.added, "removed": self.photos.removed, "changed": self.photos.changed}
        lines = ["photos    " + ", ".join(f"{len(photos):,} {kind}" for kind, photos in kinds.items())]
        for kind, photos in kinds.items():
            lines += [f"  {kind}  {photo.uri}" for photo in photos[:SHOWN]]
            if len(photos) > SHOWN:
                lines.append(f"  {kind}  and {len(photos) - SHOWN:,} more, see --json")
        return lines


def diff(storage: Storage, a: int | str, b: int | str) -> Diff:
    """Compare two versions, given by number or tag.

    Raises:
        MapMissing: no such version or tag.
        DamagedError: the photos of a version that is not retired cannot be read.
    """
    before, after = (read_manifest(storage, version_number(storage, name)) for name in (a, b))
    return Diff(
        a=before.version,
        b=after.version,
        photos=_photos(storage, before, after),
        segments=_segments(before, after),
        index=_index(before.index, after.index),
        model_changed=before.model.fingerprint != after.model.fingerprint,
    )


def _photos(storage: Storage, before: Manifest, after: Manifest) -> PhotoDiff | None:
    same = set(_contents(before)) & set(_contents(after))
    try:
        old, new = (
            _read(storage, [entry for content, entry in _contents(manifest).items() if content not in same])
            for manifest in (before, after)
        )
    except DamagedError:
        if list_retired(storage).isdisjoint({before.version, after.version}):
            raise
        return None
    return PhotoDiff(
        added=_sorted(new[name][1] for name in new.keys() - old.keys()),
        removed=_sorted(old[name][1] for name in old.keys() - new.keys()),
        changed=_sorted(new[name][1] for name in new.keys() & old.keys() if new[name][0] != old[name][0]),
    )


def _contents(manifest: Manifest) -> dict[Content, SegmentEntry]:
    """The segments of a version by what a reader sees of them."""
    return {(entry.segment_id, entry.attempt, tuple(entry.masked_rows)): entry for entry in manifest.segments}


def _read(storage: Storage, entries: Sequence[SegmentEntry]) -> dict[str, tuple[str, PhotoLine]]:
    """Read the live photos of segments: image id -> (photo key, photo)."""
    found: dict[str, tuple[str, PhotoLine]] = {}
    for entry, table in zip(entries, read_photos(storage, entries, ["image_id", "photo_key", "uri"]), strict=True):
        for row in table.filter(pa.array(live_rows(entry))).to_pylist():
            found[row["image_id"]] = row["photo_key"], PhotoLine(image_id=row["image_id"], uri=row["uri"])
    return found


def _sorted(photos: Iterable[PhotoLine]) -> list[PhotoLine]:
    return sorted(photos, key=lambda photo: photo.image_id)


def _segments(before: Manifest, after: Manifest) -> SegmentDiff:
    old, new = ({entry.segment_id: entry for entry in manifest.segments} for manifest in (before, after))
    both = old.keys() & new.keys()
    same = set(_contents(before)) & set(_contents(after))
    return SegmentDiff(
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=sorted(both - {segment_id for segment_id, _, _ in same}),
        kept=len(same),
    )


def _index(before: IndexEntry, after: IndexEntry) -> IndexDiff:
    old, new = ({shard.file.sha256 for shard in index.shards} for index in (before, after))
    return IndexDiff(
        kind=[before.kind, after.kind],
        retrained=before.index_id != after.index_id,
        shards_added=len(new - old),
        shards_removed=len(old - new),
        shards_kept=len(old & new),
    )
