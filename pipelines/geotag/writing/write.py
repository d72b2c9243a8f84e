"""geotags ▶ XMP sidecars, or EXIF in the photos themselves. `folio geotag --write`.

For a few photos at a time: look whether each file may be touched, make its new bytes and check them, and, unless this is a dry
run, log the changes (`journal`) and put them in place. A photo that cannot be written is left as it is, named with the
reason, and the others go on. `writes.csv` says for every photo what became of it, or would.
"""

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec

from infra.observability import progress_bar
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table_facts
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.locations import is_remote, leaves_root, locate, without_file_scheme
from pipelines.geotag.decisions import newest_format
from pipelines.geotag.writing.exif import has_position, with_position
from pipelines.geotag.writing.journal import (
    FORMAT,
    Begun,
    Change,
    Ended,
    Journal,
    Seen,
    change_of,
    look_at,
    new_journal,
    opened_journal,
    put_file,
    runs_in,
    sha256,
    sync_folder,
    temporary_of,
)
from pipelines.geotag.writing.statement import EXIF_NS, FOLIO_NS, NotWritten, Statement, statement_of
from pipelines.geotag.writing.xmp import EMPTY, merge, read_properties
from schemas.errors import CatalogError, ObjectMissing
from schemas.geotags import GeotagStatus

REPORT: Final = "writes.csv"

SIDECAR, EXIF = "sidecar", "exif"
PHOTO_STYLE, ADOBE_STYLE = "photo", "adobe"
"""Names of sidecars: IMG.JPG.xmp, which darktable, digiKam and exiftool users know; IMG.xmp, which Adobe's programs read."""

BATCH: Final = 16
"""Files that are logged at once, which saves waiting for the disk: a third of the time. Their new bytes are held in memory."""

CREATED, CHANGED, LEFT = "created", "changed", "left"

COLUMNS: Final = ("uri", "file", "outcome", "reason", "detail", "status", "lat_deg", "lon_deg")


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteRequest:
    """What a user asks for."""

    out: str
    """The results folder; its geotags are written, and what is done is logged in it."""
    kind: str
    """sidecar or exif."""
    style: str = PHOTO_STYLE
    overwrite: bool = False
    """Also photos that have a position of their own."""
    dry_run: bool = True
    limits: PhotoLimits = field(default_factory=PhotoLimits)

    def __post_init__(self) -> None:
        if self.kind not in (SIDECAR, EXIF):
            raise ValueError(f"kind must be {SIDECAR} or {EXIF}, got {self.kind}")
        if self.style not in (PHOTO_STYLE, ADOBE_STYLE):
            raise ValueError(f"style must be {PHOTO_STYLE} or {ADOBE_STYLE}, got {self.style}")


class WriteSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the photos. `folio geotag --write ... --json` prints it as `writing`."""

    kind: str
    dry_run: bool
    run: str | None
    """Folder of the run, for --undo; None when nothing was written."""
    resumed: bool
    """It went on with a run that had been stopped."""
    photos: int
    created: int
    """Sidecars; in a dry run, those that would be. Likewise below."""
    changed: int
    unproven: int
    """Of both, those that no person decided on and whose probability nobody knows: the map is not calibrated."""
    left: dict[str, int]
    """Files left as they are, by reason."""
    report: str

    def lines(self) -> list[str]:
        """Say it to a person."""
        files = "photos" if self.kind == EXIF else "sidecars"
        would = "would be " if self.dry_run else ""
        reasons = ", ".join(f"{count:,} {code}" for code, count in self.left.items())
        lines = [
            f"{self.photos:,} photos: {self.created:,} {files} {would}created, {self.changed:,} {would}changed, "
            f"{sum(self.left.values()):,} left alone{f' ({reasons})' if reasons else ''}; see {self.report}"
        ]
        if self.unproven:
            lines.insert(
                0,
                f"note: {self.unproven:,} of these positions are from a map that is not calibrated: how often they are right is "
                "not known. Look at them first: folio report",
            )
        if self.dry_run:
            return [*lines, "nothing was written: this was a dry run. To write: the same with --no-dry-run"]
        if self.resumed:
            lines.insert(0, "going on with a run that had been stopped")
        return [*lines, f"to take it back: folio geotag --undo {self.run}"] if self.created + self.changed else lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    uri: str
    status: str
    lat_deg: float | None
    lon_deg: float | None
    file: str = ""
    outcome: str = LEFT
    reason: str = ""
    detail: str = ""


def run_writing(request: WriteRequest, settings: Settings) -> WriteSummary:
    """Write the geotags of a results folder into files beside the photos, or into the photos.

    A run that was stopped goes on when the same is asked again with the same geotags.

    Raises:
        CatalogError: there are no geotags, or the folder is not on this machine.
        StorageError: what is to be changed cannot be logged. Nothing more is changed then.
        FolioError: anything else that keeps geotags from being read.
    """
    if is_remote(request.out):
        raise CatalogError(
            f"{request.out}: found a folder elsewhere, needed one on this machine, where what is written can be logged first. "
            f"Nothing was written. Copy the results folder here: folio geotag --out COPY --write {request.kind}"
        )
    storage = open_storage(request.out, settings)
    rows, facts, geotags_sha256 = _geotags(storage, request.out)
    writes = Path(without_file_scheme(request.out)).absolute() / "writes"
    begun = Begun(
        format=FORMAT,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}",
        kind=request.kind,
        style=request.style,
        overwrite=request.overwrite,
        geotags_sha256=geotags_sha256,
    )
    with ExitStack() as stack:
        journal, stopped = None, None
        if not request.dry_run:
            stopped = _unfinished(writes, begun)
            journal = stack.enter_context(opened_journal(stopped or new_journal(writes, begun)))
        writer = _Writer(request, facts.get("map_version"), journal, begun.run_id, _doubled(rows, request))
        outcomes: list[_Outcome] = []
        with progress_bar(len(rows), unit="photo", description="write") as bar:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                outcomes += writer.write(batch)
                bar.update(len(batch))
        storage.put(REPORT, _as_csv(outcomes))
        if journal:
            journal.append(Ended())
    by_outcome = Counter(each.outcome for each in outcomes)
    return WriteSummary(
        kind=request.kind,
        dry_run=request.dry_run,
        run=f"{request.out.rstrip('/')}/writes/{journal.folder.name}" if journal else None,
        resumed=stopped is not None,
        photos=len(rows),
        created=by_outcome[CREATED],
        changed=by_outcome[CHANGED],
        unproven=sum(map(_is_unproven, rows, outcomes)),
        left=dict(Counter(each.reason for each in outcomes if each.outcome == LEFT).most_common()),
        report=f"{request.out.rstrip('/')}/{REPORT}",
    )


def _is_unproven(row: dict[str, Any], outcome: _Outcome) -> bool:
    by_machine = row["status"] in (GeotagStatus.ANSWERED.value, GeotagStatus.INTERPOLATED.value)
    return outcome.outcome != LEFT and by_machine and row["probability"] is None


class _Writer:
    """Writes photos, some at a time."""

    def __init__(
        self, request: WriteRequest, map_version: int | None, journal: Journal | None, run_id: str, doubled: frozenset[Path]
    ) -> None:
        self._request, self._map_version, self._journal, self._doubled = request, map_version, journal, doubled
        self._run_id = journal.folder.name if journal else run_id
        self._logged: dict[str, Change] = {change.path: change for change in journal.changes} if journal else {}

    def write(self, rows: Sequence[dict[str, Any]]) -> list[_Outcome]:
        """Write what is known of some photos, and say of each what became of it."""
        prepared = [self._prepare(row) for row in rows]
        if self._journal and any(each.change for each in prepared):
            self._journal.append(*(each.change for each in prepared if each.change))
        outcomes = [self._put(each) for each in prepared]
        for folder in {each.target.parent for each in prepared if each.change}:
            sync_folder(folder)
        return outcomes

    def _prepare(self, row: dict[str, Any]) -> "_Prepared":
        """Make the new bytes of a photo's file and keep what it takes to have the old ones back, or say why not."""
        outcome = _Outcome(**{name: row[name] for name in ("uri", "status", "lat_deg", "lon_deg")})
        try:
            statement = statement_of(row, map_version=self._map_version, run_id=self._run_id)
            target = _target(_photo(row), self._request)
            outcome = replace(outcome, file=str(target))
            if target in self._doubled:
                detail = (
                    "it would belong to several photos; name sidecars after the whole name of the photo, without --sidecar-style"
                )
                raise NotWritten("several-photos", detail)
            return self._made(row, statement, target, outcome)
        except (NotWritten, OSError) as error:
            return _Prepared(outcome=_left(outcome, error))

    def _made(self, row: dict[str, Any], statement: Statement, target: Path, outcome: _Outcome) -> "_Prepared":
        seen = look_at(target)
        _require_touchable(target, seen)
        limit = self._request.limits.max_bytes
        if seen and seen.size_bytes > limit:
            raise NotWritten("too-many-bytes", f"{target.name} has {seen.size_bytes:,} bytes, the limit is {limit:,}")
        before = target.read_bytes() if seen else b""
        logged = self._logged.get(str(target))
        if logged and seen and sha256(before) == logged.after_sha256:  # a run that goes on had come that far
            return _Prepared(outcome=replace(outcome, outcome=CREATED if logged.before_sha256 is None else CHANGED))
        if not self._request.overwrite:
            _require_no_position(row, before, self._request)
        if self._request.kind == EXIF:
            after = with_position(before, statement, max_pixels=self._request.limits.max_pixels)
        else:
            after = merge(before if seen else EMPTY, statement.xmp())
        outcome = replace(outcome, outcome=CHANGED if seen else CREATED)
        if self._journal is None:
            return _Prepared(outcome=outcome)
        change = change_of(target, seen, before, after, whole=self._request.kind == SIDECAR, journal=self._journal)
        return _Prepared(outcome=outcome, target=target, seen=seen, after=after, change=change)

    def _put(self, prepared: "_Prepared") -> _Outcome:
        """Put the new bytes in place, now that the change is logged."""
        change = prepared.change
        if change is None:
            return prepared.outcome
        try:
            put_file(
                prepared.target,
                prepared.after,
                temporary=temporary_of(prepared.target, self._run_id),
                seen=prepared.seen,
                mode=change.mode,
                # A photo is the same picture as before; programs that read sidecars look there for what is new.
                mtime_ns=change.mtime_ns if self._request.kind == EXIF else None,
            )
        except (NotWritten, OSError) as error:
            return _left(prepared.outcome, error)
        return prepared.outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A file that is to be changed, or, without a change, what became of it already."""

    outcome: _Outcome
    target: Path = Path()
    seen: Seen | None = None
    after: bytes = b""
    change: Change | None = None


def _left(outcome: _Outcome, error: NotWritten | OSError) -> _Outcome:
    code, detail = (error.code, error.detail) if isinstance(error, NotWritten) else ("failed", error.strerror or str(error))
    return replace(outcome, outcome=LEFT, reason=code, detail=detail)


def _geotags(storage: Storage, out: str) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    try:
        table, facts = read_table_facts(storage, "geotags.parquet", kind="geotags")
        digest = sha256(storage.get("geotags.parquet"))
    except ObjectMissing as error:
        raise CatalogError(
            f"{out}: there are no geotags to write. Nothing was written. Next: folio geotag MAP ARCHIVE --out {out}"
        ) from error
    return newest_format(table).drop_columns(["geometry", "bbox"]).to_pylist(), facts, digest


def _unfinished(writes: Path, begun: Begun) -> Path | None:
    """Find the newest run that was asked for the same and was stopped."""
    for run in reversed(runs_in(writes)):
        with opened_journal(writes / run) as journal:
            same = journal.begun and msgspec.structs.replace(journal.begun, run_id=begun.run_id) == begun
            if same and not journal.is_closed:
                return writes / run
    return None


def _photo(row: dict[str, Any]) -> Path:
    """Find the file of a photo.

    Raises:
        NotWritten: it is none of this machine.
    """
    uri, root = row["uri"], without_file_scheme(row["root"])
    location = locate(uri, root)
    if not location.is_local:
        raise NotWritten("not-a-file", f"it lies in {location.storage_url}; only files of this machine are written")
    if not Path(uri).is_absolute() and leaves_root(uri):
        raise NotWritten("outside-root", "its name leads out of its folder")
    path = Path("/", location.path)
    try:
        mode = path.lstat().st_mode
    except NotADirectoryError as error:
        raise NotWritten("not-a-file", "it lies in an archive; only files of this machine are written") from error
    except FileNotFoundError as error:
        inside = next((each for each in path.parents if each.is_file()), None)
        why = f"it lies in {inside.name}" if inside else "no such file"
        raise NotWritten("not-a-file" if inside else "missing", why) from error
    if stat.S_ISLNK(mode):
        raise NotWritten("link", "it is a link to another file; write that one")
    if not stat.S_ISREG(mode):
        raise NotWritten("not-a-file", "it is no ordinary file")
    return path


def _target(photo: Path, request: WriteRequest) -> Path:
    """Name the file to write."""
    if request.kind == EXIF:
        return photo
    return photo.with_suffix(".xmp") if request.style == ADOBE_STYLE else photo.with_name(f"{photo.name}.xmp")


def _doubled(rows: Iterable[dict[str, Any]], request: WriteRequest) -> frozenset[Path]:
    """Find the files that several photos would be written to."""
    targets: Counter[Path] = Counter()
    for row in rows:
        try:
            targets[_target(_photo(row), request)] += 1
        except (NotWritten, OSError):
            continue
    return frozenset(target for target, count in targets.items() if count > 1)


def _require_touchable(target: Path, seen: Seen | None) -> None:
    """Refuse a file that must not or cannot be exchanged.

    Raises:
        NotWritten: it must not.
    """
    if seen:
        status = target.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise NotWritten("link", f"{target.name} is a link or no ordinary file")
        if status.st_nlink > 1:
            raise NotWritten("hard-links", f"it has {status.st_nlink} names (hard links), and writing would part them")
        if not seen.mode & 0o222 or not os.access(target, os.W_OK):
            raise NotWritten("read-only", f"{target.name} may not be written")
    if not os.access(target.parent, os.W_OK):
        raise NotWritten("read-only", f"{target.parent} may not be written")


def _require_no_position(row: dict[str, Any], before: bytes, request: WriteRequest) -> None:
    """Refuse a photo that has a position of its own.

    Raises:
        NotWritten: it has.
    """
    if request.kind == EXIF:
        own = has_position(before, max_pixels=request.limits.max_pixels)
    else:
        found = read_properties(before) if before else {}
        if run := found.get((FOLIO_NS, "Run")):
            raise NotWritten("own-position", f"Folio wrote one there before (run {run}); --overwrite writes all the same")
        own = (EXIF_NS, "GPSLatitude") in found
    if own or row["known_lat_deg"] is not None:
        raise NotWritten("own-position", "it has a position of its own; --overwrite writes all the same")


def _as_csv(outcomes: Iterable[_Outcome]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows([getattr(each, name) for name in COLUMNS] for each in outcomes)
    return text.getvalue().encode()
