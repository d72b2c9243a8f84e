"""manifest + ids, names or boxes ▶ manifest without those photos: gone from answers at once, from the store by the next rebuild.

Nothing but a table of tombstones and a manifest is written, so it takes as long as reading the map's tables of photos. Safe to
stop and run again, and beside any other run: whoever publishes later takes the tombstones over.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa

from infra.commits import publish, read_head
from infra.leases import lease
from infra.storage import Storage
from pipelines.build.masking import read_photos, with_masked
from pipelines.build.membership import live_rows
from pipelines.build.tombstones import read_tombstone_rows, tombstones_of, write_tombstones
from pipelines.catalog.boxes import inside, parse_box, require_box
from schemas.images import image_id
from schemas.manifest import BBox, Manifest, ObjectRef, SegmentEntry
from schemas.tombstones import TOMBSTONES
from schemas.versions import FORMATS

SHOWN: Final = 20
"""Photos of each kind that a person is shown."""

COLUMNS: Final = ["image_id", "photo_key", "uri", "checksum", "lat_deg", "lon_deg"]

_IMAGE_ID: Final = re.compile(r"[0-9a-f]{32}")

Tombstone = tuple[str, str, str]
"""Image id, photo key, checksum: a row of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakedownRequest:
    """Which photos are to go: all that any of these name."""

    image_ids: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    boxes: tuple[BBox, ...] = ()
    """A photo on the edge is inside. West beyond east: the box lies across the date line."""
    duplicates: bool = False
    """Also photos of the map with the same bytes under other names."""

    def __post_init__(self) -> None:
        if not (self.image_ids or self.uris or self.boxes):
            raise ValueError("say which photos are to be taken down: ids, uris or a box")
        for name in self.image_ids:
            if not _IMAGE_ID.fullmatch(name):
                raise ValueError(f"an image id is 32 hex digits, got {name!r}; for names of photos there are uris")
        for box in self.boxes:
            require_box(box)

    def asked(self) -> dict[str, str]:
        """Image id -> what the user called the photo, for those asked for by name."""
        return {**{name: name for name in self.image_ids}, **{image_id(uri): uri for uri in self.uris}}


class PhotoLine(msgspec.Struct, frozen=True, kw_only=True):
    """A photo of the map."""

    image_id: str
    uri: str


class TakenDown(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio takedown` did, or would do. `--json` prints it."""

    map: str
    version: int
    """The newest version afterwards."""
    published: bool
    """False: a dry run, or there was nothing left to do."""
    dry_run: bool
    photos: list[PhotoLine]
    """Taken down now, copies under other names too if these were asked for."""
    already: int
    """Asked for by name and taken down before."""
    not_found: list[str]
    """Asked for by name and not in the map. They too cannot come in any more."""
    duplicates: list[PhotoLine]
    """Photos with the same bytes under other names, that stay."""
    photos_left: int
    """In the map."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        verb = "would be taken down" if self.dry_run else "taken down"
        lines = _some([f"{photo.uri}  {photo.image_id}  {verb}" for photo in self.photos])
        lines += _some([f"{name}  not in the map; a photo of that name will not come in" for name in self.not_found])
        lines += _some(
            [f"{photo.uri}  {photo.image_id}  is a copy of one of these and stays: --duplicates" for photo in self.duplicates]
        )
        already = f", {self.already:,} were already" if self.already else ""
        missing = f", {len(self.not_found):,} not found" if self.not_found else ""
        lines.append(f"{len(self.photos):,} photos {verb}{already}{missing}")
        if self.published:
            lines.append(
                f"{self.map}: version {self.version} published, {self.photos_left:,} photos left. Answers leave these out from "
                "now on; the next folio build removes them from the store, and folio verify-deleted proves it"
            )
        else:
            lines.append(f"{self.map}: nothing was changed")
        return lines


def takedown(storage: Storage, request: TakedownRequest, *, dry_run: bool = False) -> TakenDown:
    """Take photos down.

    Args:
        storage: of the map.
        request: which.
        dry_run: only say what would happen.

    Raises:
        MapMissing: there is no map.
        DamagedError: a table of photos cannot be read, so it cannot be told what is in the map. Nothing was published.
        CommitError: nothing was published, or it is unknown whether it was.
    """
    run = _Takedown(storage, request)
    if dry_run:
        head = read_head(storage)
        run.draft(head, write=False)
        return run.outcome(head, published=False, dry_run=True)
    with lease(storage, run_id=f"takedown-{uuid4().hex[:12]}", action="takedown", waits=False) as held:
        before = read_head(storage)
        manifest = publish(storage, lambda head: run.draft(head or before, write=True), check=held.require)
    return run.outcome(manifest, published=run.changed, dry_run=False)


def request_of(*, ids: Sequence[str], uris: Sequence[str], bbox: Sequence[str], duplicates: bool) -> TakedownRequest:
    """Make a request of what stands on the command line.

    Args:
        ids: each an image id, or a file with one a line.
        uris: files with one name a line.
        bbox: each west,south,east,north.
        duplicates: as in the request.

    Raises:
        ValueError: a value cannot be understood, or a file cannot be read.
    """
    named = (name for value in ids for name in ([value] if _IMAGE_ID.fullmatch(value.lower()) else read_lines(value)))
    return TakedownRequest(
        image_ids=frozenset(name.strip().lower() for name in named),
        uris=frozenset(uri for file in uris for uri in read_lines(file)),
        boxes=tuple(parse_box(text) for text in bbox),
        duplicates=duplicates,
    )


def read_lines(file: str) -> list[str]:
    """Read what is not empty of a file with one name a line.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: no file that can be read ({error.strerror}), nor an id of 32 hex digits") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: needed UTF-8 text with one name a line, found other bytes") from error
    return [line for line in text.split("\n") if line.strip()]


class _Takedown:
    """Makes the next version, anew whenever another publisher was faster; tables of photos are read once."""

    def __init__(self, storage: Storage, request: TakedownRequest) -> None:
        self._storage = storage
        self._request = request
        self._asked = request.asked()
        self._tables: dict[tuple[str, str], pa.Table] = {}
        self._written: dict[tuple[Tombstone, ...], ObjectRef] = {}
        self.changed = False
        self._photos: list[PhotoLine] = []
        self._duplicates: list[PhotoLine] = []
        self._before: frozenset[str] = frozenset()
        self._in_map: set[str] = set()

    def draft(self, head: Manifest, *, write: bool) -> Manifest | None:
        """Make the next version; None when all are taken down already."""
        photos = self._read(head.segments)
        live = [live_rows(entry) for entry in head.segments]
        asked = [self._wanted(table, rows) for table, rows in zip(photos, live, strict=True)]
        copies = self._copies(photos, live, asked)
        goes = [one | copy for one, copy in zip(asked, copies, strict=True)] if self._request.duplicates else asked
        stays = set() if self._request.duplicates else _values(photos, copies, "checksum")

        old = read_tombstone_rows(self._storage, head.tombstones)
        new = self._tombstones(photos, goes, stays, old)
        down = tombstones_of(pa.concat_tables([old, new]))
        masks = [down.cover(table["image_id"], table["checksum"]) for table in photos]
        falls = [mask & rows for mask, rows in zip(masks, live, strict=True)]
        self._remember(photos, live, falls, copies, old)
        self.changed = bool(len(new)) or any(fall.any() for fall in falls)
        if not self.changed or not write:
            return None
        tables = [*head.tombstones, *([self._write(new)] if len(new) else [])]
        draft = with_masked(head, masks, tables)
        return msgspec.structs.replace(draft, format_version=FORMATS["manifest"], action="takedown")

    def outcome(self, manifest: Manifest, *, published: bool, dry_run: bool) -> TakenDown:
        """Say what the last draft was."""
        known = self._in_map | self._before
        return TakenDown(
            map=self._storage.url,
            version=manifest.version,
            published=published,
            dry_run=dry_run,
            photos=self._photos,
            already=len(self._asked.keys() & self._before),
            not_found=sorted(name for key, name in self._asked.items() if key not in known),
            duplicates=self._duplicates,
            photos_left=manifest.statistics["photos"] - (len(self._photos) if dry_run else 0),
        )

    def _read(self, segments: Sequence[SegmentEntry]) -> list[pa.Table]:
        fresh = [entry for entry in segments if (entry.segment_id, entry.attempt) not in self._tables]
        for entry, table in zip(fresh, read_photos(self._storage, fresh, COLUMNS), strict=True):
            self._tables[entry.segment_id, entry.attempt] = table
        return [self._tables[entry.segment_id, entry.attempt] for entry in segments]

    def _wanted(self, photos: pa.Table, live: np.ndarray) -> np.ndarray:
        """Mark the photos asked for: those in a box where they are live, those named also where they are masked."""
        wanted = _among(photos["image_id"], self._asked)
        for box in self._request.boxes:
            wanted = wanted | (live & inside(photos["lon_deg"].to_numpy(), photos["lat_deg"].to_numpy(), box))
        return wanted

    def _copies(self, photos: list[pa.Table], live: list[np.ndarray], asked: list[np.ndarray]) -> list[np.ndarray]:
        """Mark the live photos that were not asked for and have the same bytes as one that was."""
        checksums, names = (_values(photos, asked, column) for column in ("checksum", "image_id"))
        return [
            _among(table["checksum"], checksums) & ~_among(table["image_id"], names) & rows
            for table, rows in zip(photos, live, strict=True)
        ]

    def _tombstones(self, photos: list[pa.Table], goes: list[np.ndarray], stays: set[str], old: pa.Table) -> pa.Table:
        """List the tombstones that are new. One whose copies stay must not have a checksum, or it would take them along."""
        found = {
            (row["image_id"], row["photo_key"], "" if row["checksum"] in stays else row["checksum"])
            for table, rows in zip(photos, goes, strict=True)
            for row in table.select(TOMBSTONES.names).filter(pa.array(rows)).to_pylist()
        }
        named = {name for name, _, _ in found} | set(old["image_id"].to_pylist())
        found |= {(name, "", "") for name in self._asked.keys() - named}
        before = {tuple(row.values()) for row in old.to_pylist()}
        return pa.Table.from_pylist(
            [dict(zip(TOMBSTONES.names, row, strict=True)) for row in sorted(found - before)], schema=TOMBSTONES
        )

    def _write(self, rows: pa.Table) -> ObjectRef:
        content = tuple(tuple(row.values()) for row in rows.to_pylist())
        if content not in self._written:
            self._written[content] = write_tombstones(self._storage, rows)
        return self._written[content]

    def _remember(
        self,
        photos: list[pa.Table],
        live: list[np.ndarray],
        falls: list[np.ndarray],
        copies: list[np.ndarray],
        old: pa.Table,
    ) -> None:
        self._photos = _lines(photos, falls)
        self._duplicates = _lines(photos, [copy & ~fall for copy, fall in zip(copies, falls, strict=True)])
        self._before = frozenset(old["image_id"].to_pylist())
        self._in_map = _values(photos, live, "image_id")


def _among(column: pa.ChunkedArray, values: Collection[str]) -> np.ndarray:
    return np.array([value in values for value in column.to_pylist()], bool)


def _values(photos: list[pa.Table], marks: list[np.ndarray], column: str) -> set[str]:
    return {
        value for table, rows in zip(photos, marks, strict=True) for value in table[column].filter(pa.array(rows)).to_pylist()
    }


def _lines(photos: list[pa.Table], marks: list[np.ndarray]) -> list[PhotoLine]:
    found = [
        PhotoLine(image_id=row["image_id"], uri=row["uri"])
        for table, rows in zip(photos, marks, strict=True)
        for row in table.select(["image_id", "uri"]).filter(pa.array(rows)).to_pylist()
    ]
    return sorted(found, key=lambda photo: photo.uri)


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN:,} more, see --json"]
