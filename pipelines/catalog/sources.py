"""folder | bucket | tar | table ▶ images: from what a user names on the command line to the rows of a catalog.

Lists each source (`listing`), reads each photo once for its size, checksum and header (`photo_facts`), reads what lies beside it
(`sidecars`), settles what is known of it, and sorts the rows along a Hilbert curve. A bad photo becomes a reject with a reason; a
source that cannot be listed at all is an error.
"""

import math
import posixpath
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.observability import progress_bar
from infra.settings import Settings
from pipelines.catalog.claims import Claim
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.file_names import UtmZone
from pipelines.catalog.headers import ISOLATED, READABLE, format_of, is_readable, require_reader
from pipelines.catalog.hilbert import hilbert_position
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.listing import Listed, Lister
from pipelines.catalog.locations import Location, locate
from pipelines.catalog.photo_facts import PhotoFacts, photo_facts
from pipelines.catalog.positions import position_problem
from pipelines.catalog.reading import Storages, photo_errors, sha256_of
from pipelines.catalog.sidecars import MAX_BYTES, read_sidecar
from pipelines.catalog.times import EPOCH
from schemas.errors import PhotoError
from schemas.geoparquet import GEOMETRY_FIELDS, point_columns
from schemas.images import IMAGES, image_id, photo_key
from schemas.reasons import RejectReason
from schemas.rejects import REJECTS

Row: TypeAlias = dict[str, Any]
Outcome: TypeAlias = tuple[Row, None] | tuple[None, Row]
"""What became of one photo: its row of `images`, or of `rejects`."""

HEAD_BYTES: Final = 256 * 1024
"""What is read of a JPEG in a bucket; the header of nearly every photo ends before."""

READ_AHEAD: Final = 1024
"""Photos that are handed to the threads at once."""

PLAIN_IMAGES: Final = pa.schema([field for field in IMAGES if field not in GEOMETRY_FIELDS])
"""What is known of a photo once it was read."""

PROBLEMS_OF_FILES: Final = {
    RejectReason.NO_POSITION: "neither EXIF, XMP, the file name, a file beside it nor a table says where it was taken",
    RejectReason.POSITION_INVALID: "the position in its EXIF or XMP cannot be read or is not on Earth",
    RejectReason.NULL_ISLAND: "the position in its EXIF or XMP is exactly 0, 0: the camera had no fix",
}


class Known(NamedTuple):
    """What a catalog says of a photo besides its bytes, in the order in which `photo_key` takes it."""

    lat_deg: float | None
    lon_deg: float | None
    altitude_m: float | None
    heading_deg: float | None
    taken_at: datetime | None
    sequence_id: str | None


class Fetched(NamedTuple):
    """A photo that could be read."""

    size_bytes: int
    checksum: str
    header: bytes
    """The file, or enough of its beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The photos of some sources."""

    images: pa.Table
    """In the schema of images, in Hilbert order; photos without a position last."""

    rejects: pa.Table
    """In the schema of rejects, in the order of the sources."""

    notes: list[str]
    """How the sources were understood, one line each, for the user."""

    def duplicates(self) -> dict[str, str]:
        """Find photos of the same bytes: the image id of each but the first by name, to that of the first.

        By size and checksum, so that photos of a bucket, which are known by their etags, are compared among themselves alone.
        """
        columns = ("uri", "image_id", "size_bytes", "checksum")
        first: dict[tuple[int, str], str] = {}
        repeated: dict[str, str] = {}
        for _, name, *content in sorted(zip(*(self.images[column].to_pylist() for column in columns), strict=True)):
            original = first.setdefault((content[0], content[1]), name)
            if original != name:
                repeated[name] = original
        return repeated


def list_photos(
    sources: Sequence[str],
    *,
    settings: Settings,
    limits: PhotoLimits,
    needs_position: bool,
    utm_zone: str | None = None,
) -> Catalog:
    """List the photos of folders, tars, URLs, single photos and tables.

    The first mention of a photo counts. Position, altitude, heading and time come from a table or Mapillary image description,
    else the file name, else an XMP sidecar, else EXIF, else XMP in the file, else JSON beside the photo (`sidecars`). A time that
    gives its offset from UTC, or is of satellites, goes before one that gives none, which is read as UTC.

    Args:
        sources: as the user names them; at least one.
        settings: threads and store endpoints.
        limits: what one photo may cost.
        needs_position: reject photos without a position. Else they are kept without one, as queries may be.
        utm_zone: for file names like `@east@north@.jpg`: a zone such as 33U, 33north or 56south.

    Raises:
        CatalogError: a source is not there, empty or cannot be understood.
        StorageError: a store does not answer.
    """
    storages = Storages(settings)
    zone = UtmZone.parse(utm_zone) if utm_zone else None
    lister = Lister(storages=storages, utm_zone=zone, needs_position=needs_position)
    listed = deque(_without_repeats(photo for source in sources for photo in lister.list(source)))
    used, found = Sidecars(storages), _Found()
    with Headers(limits) as headers:
        examine = partial(_row_or_reject, storages=storages, headers=headers, sidecars=used, needs_position=needs_position)
        for some in _in_threads(examine, listed, settings.threads):
            found.add(some)
    return Catalog(
        images=_in_hilbert_order(found.images()),
        rejects=found.rejects(),
        notes=[*lister.notes, *used.notes(), *found.notes()],
    )


def _without_repeats(listed: Iterable[Listed]) -> Iterator[Listed]:
    """Drop what was named before; refuse another file under a name that is taken."""
    roots: dict[str, str] = {}
    seen: set[Location] = set()
    for photo in listed:
        if isinstance(photo.location, PhotoError):
            yield photo
        elif photo.location not in seen:
            seen.add(photo.location)
            if photo.uri in roots:
                detail = f"the same name was given for a file in {roots[photo.uri] or 'another place'}, which was taken"
                photo = replace(photo, location=PhotoError(RejectReason.DUPLICATE_NAME, detail))
            roots.setdefault(photo.uri, photo.root)
            yield photo


def _in_threads(
    function: Callable[[Listed], Outcome], photos: deque[Listed], threads: int
) -> Iterator[list[tuple[Listed, Outcome]]]:
    """Apply a function to all photos, in order and some at a time; `photos` is used up, so that no million of them stays."""
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="catalog") as pool,
        progress_bar(len(photos), unit="photo", description="catalog") as bar,
    ):
        while photos:
            some = [photos.popleft() for _ in range(min(READ_AHEAD, len(photos)))]
            outcomes = []
            for outcome in pool.map(function, some):
                outcomes.append(outcome)
                bar.update()
            yield list(zip(some, outcomes, strict=True))


class _Found:
    """What became of the photos. Kept as tables, since a row takes several times as much as a Python object."""

    def __init__(self) -> None:
        self._images = [PLAIN_IMAGES.empty_table()]
        self._rejects = [REJECTS.empty_table()]
        self._disbelieved = 0

    def add(self, some: Sequence[tuple[Listed, Outcome]]) -> None:
        """Take in some photos, in the order of the sources."""
        self._images.append(pa.Table.from_pylist([row for _, (row, _) in some if row], PLAIN_IMAGES))
        self._rejects.append(pa.Table.from_pylist([reject for _, (_, reject) in some if reject], REJECTS))
        self._disbelieved += sum(photo.claim.has_position for photo, (row, _) in some if row and row["lat_deg"] is None)

    def images(self) -> pa.Table:
        """Give the rows of images without their geometry, in the order of the sources."""
        return pa.concat_tables(self._images).combine_chunks()

    def rejects(self) -> pa.Table:
        """Give the rows of rejects, in the same order."""
        return pa.concat_tables(self._rejects).combine_chunks()

    def notes(self) -> list[str]:
        """Note how many photos were kept although a table or name gives them a position that cannot be."""
        count = self._disbelieved
        return [f"{count} photos are said to be nowhere on Earth; taken as unknown"] if count else []


class Headers:
    """Reads what photos say of themselves, for many threads. Use it in `with`: some formats need a process for each thread."""

    def __init__(self, limits: PhotoLimits) -> None:
        self.limits = limits
        self._of_thread = threading.local()
        self._decoders: list[PhotoDecoder] = []

    def read(self, data: bytes) -> PhotoFacts:
        """Read the facts of one photo from its bytes, or enough of their beginning.

        Raises:
            PhotoError: no photo Folio reads.
        """
        kind = format_of(data)
        if kind not in ISOLATED:
            return photo_facts(data, max_pixels=self.limits.max_pixels)
        require_reader(kind)
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = PhotoDecoder(self.limits)
            self._decoders.append(self._of_thread.decoder)
        facts: PhotoFacts = self._of_thread.decoder.facts(data)
        return facts

    def suffices(self, head: bytes, size_bytes: int) -> bool:
        """Whether the beginning of a photo says all: a JPEG has its metadata before its pixels, others may have it at the end."""
        kind = format_of(head)
        if len(head) >= size_bytes or kind not in (*READABLE, *ISOLATED):
            return True
        if kind in ISOLATED:
            return not is_readable(kind)
        return kind == "JPEG" and self._opens(head)

    def _opens(self, head: bytes) -> bool:
        try:
            photo_facts(head, max_pixels=self.limits.max_pixels)
        except PhotoError as problem:
            return problem.reason == RejectReason.TOO_MANY_PIXELS  # then more bytes would not help
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for decoder in self._decoders:
            decoder.close()


class Sidecars:
    """Reads what lies beside photos, for many threads, and remembers what to tell of it."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._read: list[str] = []
        self._unread: list[str] = []

    def read(self, photo: Listed) -> tuple[Claim, Claim]:
        """Give what its XMP sidecar and what its JSON says."""
        said = [Claim(source="")] * 2
        for uri in photo.beside:
            location = locate(uri, photo.root)
            try:
                with photo_errors(location):
                    data = self._storages.get(location, stop=MAX_BYTES + 1)
                said[uri.lower().endswith(".json")] = read_sidecar(uri, data, photo=photo.uri)
                self._read.append(posixpath.splitext(uri)[1].lower())
            except (PhotoError, ValueError):
                self._unread.append(uri)
        return said[0], said[1]

    def notes(self) -> list[str]:
        """Say what was read and what could not be."""
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(Counter(self._read).items()))
        notes = [f"read beside the photos: {kinds}"] if kinds else []
        if self._unread:
            first = min(self._unread)
            notes.append(f"{len(self._unread):,} files beside photos cannot be read and say nothing, the first is {first}")
        return notes


def _row_or_reject(photo: Listed, *, storages: Storages, headers: Headers, sidecars: Sidecars, needs_position: bool) -> Outcome:
    """Read one photo."""
    fetched = None
    try:
        fetched = _fetch(photo, storages, headers)
        facts = headers.read(fetched.header)
        xmp, beside = sidecars.read(photo)
        return _row(photo, fetched, _settled(photo.claim, xmp, facts, beside, needs_position=needs_position)), None
    except PhotoError as problem:
        key = photo_key(photo.uri, fetched.size_bytes, fetched.checksum, *[None] * len(Known._fields)) if fetched else None
        return None, {
            "uri": photo.uri.encode(errors="backslashreplace").decode(),
            "root": photo.root,
            "photo_key": key,
            "stage": "catalog",
            "reason": problem.reason.value,
            "detail": problem.detail,
        }


def _fetch(photo: Listed, storages: Storages, headers: Headers) -> Fetched:
    """Read what is needed of one photo: all of a local file, as little as possible from a bucket."""
    if isinstance(photo.location, PhotoError):
        raise photo.location
    if photo.uri.encode(errors="replace").decode() != photo.uri:
        raise PhotoError(RejectReason.UNREADABLE, "its name is not UTF-8; rename it")
    limits = headers.limits
    with photo_errors(photo.location):
        info = photo.info or storages.info(photo.location)
        if info.size_bytes > limits.max_bytes:
            raise PhotoError(RejectReason.TOO_MANY_BYTES, f"{info.size_bytes:,} bytes, the limit is {limits.max_bytes:,}")
        if info.etag:
            header = _header(storages, photo.location, info.size_bytes, headers)
            return Fetched(size_bytes=info.size_bytes, checksum=f"etag:{info.etag}", header=header)
        data = storages.get(photo.location, stop=limits.max_bytes)
    return Fetched(size_bytes=len(data), checksum=sha256_of(data), header=data)


def _header(storages: Storages, location: Location, size_bytes: int, headers: Headers) -> bytes:
    """Read the beginning of an object if that says all, else the whole."""
    head = storages.get(location, stop=HEAD_BYTES)
    return head if headers.suffices(head, size_bytes) else storages.get(location)


def _settled(claim: Claim, xmp: Claim, facts: PhotoFacts, beside: Claim, *, needs_position: bool) -> Known:
    """Decide what is known of a photo.

    Args:
        claim: what a table, description or name says. A position of these that cannot be is an error, of the others none at all.
        xmp: what its XMP sidecar says.
        facts: what the file says.
        beside: what JSON beside it says.
        needs_position: refuse a photo without one.

    Raises:
        PhotoError: a position is needed and there is none.
    """
    position = next((each for each in (claim, xmp, facts, beside) if each.lat_deg is not None or each.lon_deg is not None), None)
    lat_deg, lon_deg, problem = None, None, facts.position_problem
    detail = PROBLEMS_OF_FILES[problem] if problem else ""
    if position is not None:
        lat_deg, lon_deg = (math.nan if value is None else value for value in (position.lat_deg, position.lon_deg))
        problem = position_problem(lat_deg, lon_deg)
        detail = f"{claim.source} gives latitude {lat_deg:g}, longitude {lon_deg:g}"
    if problem and needs_position:
        raise PhotoError(problem, detail)
    return Known(
        lat_deg=None if problem else lat_deg,
        lon_deg=None if problem else lon_deg,
        altitude_m=_first(claim.altitude_m, facts.altitude_m, beside.altitude_m),
        heading_deg=_first(claim.heading_deg, facts.heading_deg, beside.heading_deg),
        taken_at=_first_time(claim.taken_at, xmp.taken_at, facts.taken_at, beside.taken_at),
        sequence_id=claim.sequence_id or beside.sequence_id,
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _first_time(*times: datetime | None) -> datetime | None:
    """Take the first time that gives its offset, else the first as UTC."""
    given = [time for time in times if time is not None]
    best = next((time for time in given if time.tzinfo is not None), given[0] if given else None)
    return best.replace(tzinfo=UTC) if best is not None and best.tzinfo is None else best


def _row(photo: Listed, fetched: Fetched, known: Known) -> Row:
    taken_at_us = None if known.taken_at is None else (known.taken_at - EPOCH) // timedelta(microseconds=1)
    facts = {**known._asdict(), "taken_at": taken_at_us}
    return {
        "image_id": image_id(photo.uri),
        "photo_key": photo_key(photo.uri, fetched.size_bytes, fetched.checksum, *facts.values()),
        "uri": photo.uri,
        "root": photo.root,
        "size_bytes": fetched.size_bytes,
        "checksum": fetched.checksum,
        **known._asdict(),
    }


def _in_hilbert_order(plain: pa.Table) -> pa.Table:
    """Complete rows of `PLAIN_IMAGES` to the schema of images, in Hilbert order, ties and rows without a position by uri."""
    lon_deg, lat_deg = plain["lon_deg"].to_numpy(), plain["lat_deg"].to_numpy()  # NaN where null
    images = pa.Table.from_arrays([*plain.columns, *point_columns(lon_deg, lat_deg)], schema=IMAGES)
    known = np.isfinite(lon_deg)
    place = np.full(len(images), np.iinfo(np.uint64).max)  # no place on the curve is that far
    place[known] = hilbert_position(lon_deg[known], lat_deg[known])
    order = pc.sort_indices(
        pa.table({"place": place, "uri": images["uri"]}), sort_keys=[("place", "ascending"), ("uri", "ascending")]
    )
    return images.take(order)
