"""Put a position into a JPEG: the GPS directory of its EXIF block, and its XMP. Everything else stays as it is, byte for byte.

Nothing in the EXIF block moves. The new GPS directory is appended to it and one number is changed, that which says where the GPS
directory is; a block that had none gets a copy of its first directory with one more entry behind it. So maker notes, which hold
positions of bytes that only their maker understands, stay where and as they are, and so do thumbnail and unknown tags.

Why no library: pyexiv2 2.16 (exiv2) decodes the block and writes it anew. Compared by exiftool, 14 of the 62 JPEGs of
`shared/data/exif` came back from it with other changes than the GPS tags they were given: IPTC and XMP written anew although
not touched, XMP and the data behind the picture gone (drew__Issue_308), maker notes of Nikon and Canon no longer readable in
part. It is GPL besides. exiftool keeps nearly all, but is a program of its own, adds and reorders tags, and could then not be
what checks this. This way the metadata of those that are written stay as they are, and the others are refused.

Source: EXIF 2.32 (CIPA DC-008), sections 4.5 and 4.6; MPF: CIPA DC-007.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

import numpy as np
from PIL import ExifTags

from pipelines.catalog.headers import format_of, open_header, quiet_pillow, read_exif, read_ifd
from pipelines.catalog.photo_facts import PhotoFacts, photo_facts
from pipelines.catalog.positions import position_problem
from pipelines.geotag.writing.statement import NotWritten, Statement, exif_degrees, rational
from pipelines.geotag.writing.xmp import EMPTY, merge
from schemas.errors import PhotoError

SOI, SOS, EOI, APP0, APP1, APP2 = 0xD8, 0xDA, 0xD9, 0xE0, 0xE1, 0xE2
EXIF_HEADS: Final = (b"Exif\0\0", b"Exif\0\xff")
XMP_HEAD: Final = b"http://ns.adobe.com/xap/1.0/\0"
MPF_HEAD: Final = b"MPF\0"

SEGMENT_BYTES: Final = 65_533
"""What one segment of a JPEG can hold."""

MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Among compressed pixels: what is no stuffed byte, restart or filling."""

BYTE, ASCII, LONG, RATIONAL, UNDEFINED, IFD = 1, 2, 4, 5, 7, 13
"""Types of EXIF values."""

GPS_POINTER: Final = 0x8825

OF_A_FIX: Final = frozenset({0x00, 0x01, 0x02, 0x03, 0x04, 0x12, 0x1B, 0x1F, 0x08, 0x09, 0x0A, 0x0B, 0x1E})
"""GPS tags that give way: version, position, datum, method, error; and of how the old one was measured: satellites, status, mode,
DOP, differential. Altitude, direction, speed and time stay."""

TOLERANCE_DEG: Final = 1e-6


def with_position(photo: bytes, statement: Statement, *, max_pixels: int) -> bytes:
    """Give a photo with a position, and what is said of it, in its metadata.

    Args:
        photo: the file.
        statement: what to say.
        max_pixels: width times height that its header may declare.

    Raises:
        NotWritten: it is no JPEG, or it could not be changed without the risk to lose something of it.
    """
    _require_jpeg(photo)
    facts = _facts(photo, max_pixels)
    old, tags = _split(photo), _tags(photo, max_pixels)
    if ExifTags.Base.MakerNote in tags["Exif"]:
        _require_nothing_pointed_to(old)
    exif, xmp = old.only(EXIF_HEADS, "EXIF block"), old.only((XMP_HEAD,), "XMP packet")
    tiff = exif.data[6:] if exif else b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    # GPS times are in UTC, from which a camera's clock alone does not say how far it is.
    when = facts.taken_at if ExifTags.Base.OffsetTimeOriginal in tags["Exif"] else None
    new_exif = Segment(APP1, (exif.data[:6] if exif else EXIF_HEADS[0]) + _with_gps(tiff, statement, when))
    new_xmp = Segment(APP1, XMP_HEAD + merge(xmp.data[len(XMP_HEAD) :] if xmp else EMPTY, statement.xmp()))
    segments = [new_exif if each is exif else new_xmp if each is xmp else each for each in old.segments]
    if exif is None:  # the JFIF header must be the first
        segments.insert(len(list(takewhile(lambda each: each.marker == APP0, segments))), new_exif)
    if xmp is None:
        segments.insert(segments.index(new_exif) + 1, new_xmp)
    changed = replace(old, segments=segments).join()
    _check(photo, changed, statement, max_pixels)
    return changed


def has_position(photo: bytes, *, max_pixels: int) -> bool:
    """Whether a photo says itself where it was taken, be it that Folio wrote it there.

    Raises:
        NotWritten: it is no JPEG that can be read.
    """
    _require_jpeg(photo)
    return _facts(photo, max_pixels).lat_deg is not None or _position(photo, max_pixels) is not None


def _require_jpeg(photo: bytes) -> None:
    kind = format_of(photo)
    if kind not in ("JPEG", None):
        raise NotWritten("format", f"a {kind} file; only JPEGs are changed themselves. Use sidecars: --write sidecar")


def _facts(photo: bytes, max_pixels: int) -> PhotoFacts:
    try:
        return photo_facts(photo, max_pixels=max_pixels)
    except PhotoError as error:
        raise NotWritten("unreadable", str(error)) from error


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A piece of a JPEG before its pixels."""

    marker: int
    data: bytes
    """Without marker and length."""
    filling: bytes = b""
    """Bytes 0xFF before the marker, which mean nothing and stay."""

    def join(self) -> bytes:
        """Give it as it stands in a file."""
        if len(self.data) > SEGMENT_BYTES:
            what = "EXIF block" if self.data[:6] in EXIF_HEADS else "XMP packet"
            detail = f"its {what} would have {len(self.data):,} bytes, and a JPEG has room for {SEGMENT_BYTES:,}. Use sidecars"
            raise NotWritten("no-room", detail)
        return self.filling + struct.pack(">BBH", 0xFF, self.marker, len(self.data) + 2) + self.data

    @property
    def is_changed(self) -> bool:
        """Whether it is of the kinds that are written anew."""
        return self.marker == APP1 and self.data.startswith((*EXIF_HEADS, XMP_HEAD))


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpeg:
    """A JPEG in two: its segments, and all from the first scan on."""

    segments: list[Segment]
    rest: bytes

    def join(self) -> bytes:
        """Put it together again."""
        return b"\xff\xd8" + b"".join(each.join() for each in self.segments) + self.rest

    def only(self, heads: tuple[bytes, ...], what: str) -> Segment | None:
        """Find the segment that begins with one of `heads`.

        Raises:
            NotWritten: there are several.
        """
        found = [each for each in self.segments if each.marker == APP1 and each.data.startswith(heads)]
        if len(found) > 1:
            raise NotWritten("damaged", f"it has {len(found)} of what there must be one: {what}. Use sidecars")
        return found[0] if found else None


def _split(photo: bytes) -> Jpeg:
    """Cut a JPEG into its segments.

    Raises:
        NotWritten: it does not follow the format so far.
    """
    segments: list[Segment] = []
    at = 2
    while True:
        marker_at = at
        while photo[marker_at : marker_at + 2] == b"\xff\xff":
            marker_at += 1
        marker, stop = photo[marker_at + 1 : marker_at + 2], marker_at + 2
        if photo[marker_at : marker_at + 1] != b"\xff" or not marker or marker[0] in (0, 1, SOI, EOI, *range(0xD0, 0xD8)):
            raise NotWritten("damaged", f"what it has at byte {marker_at:,} is no segment of a JPEG. Use sidecars")
        if marker[0] == SOS:
            return Jpeg(segments=segments, rest=photo[at:])
        length = int.from_bytes(photo[stop : stop + 2], "big")
        if length < 2 or stop + length > len(photo):
            raise NotWritten("damaged", f"its segment at byte {marker_at:,} leads out of the file. Use sidecars")
        segments.append(Segment(marker[0], photo[stop + 2 : stop + length], photo[at:marker_at]))
        at = stop + length


def _require_nothing_pointed_to(jpeg: Jpeg) -> None:
    """Refuse a photo whose maker note may say where in the file something behind the picture is: it moves when metadata grow.

    Trailers that are found from the end of the file (SEFT, of Samsung), by the list of pictures (MPF), or by a length in the XMP
    (a film behind the picture) are no hindrance.
    """
    trailer = _trailer(jpeg.rest)
    found_otherwise = trailer.endswith(b"SEFT") or trailer[4:8] == b"ftyp" or any(map(_is_mpf, jpeg.segments))
    if trailer.strip(b"\0\xff \r\n") and not found_otherwise:
        detail = f"{len(trailer):,} bytes lie behind its picture, and its maker note may say where. Use sidecars"
        raise NotWritten("trailer", detail)


def _trailer(rest: bytes) -> bytes:
    """Give what lies behind the picture."""
    at = 0
    while found := MARKER.search(rest, at):
        at = found.end()
        if rest[at - 1] == EOI:
            return rest[at:]
        at += int.from_bytes(rest[at : at + 2], "big")
    return b""


def _is_mpf(segment: Segment) -> bool:
    return segment.marker == APP2 and segment.data.startswith(MPF_HEAD)


def _with_gps(tiff: bytes, statement: Statement, taken_at: datetime | None) -> bytes:
    """Append a GPS directory to an EXIF block and point to it.

    Raises:
        NotWritten: the block is broken.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise NotWritten("damaged", "its EXIF block is none. Use sidecars")
    first_at = struct.unpack_from(f"{order}I", tiff.ljust(8, b"\0"), 4)[0]
    first, after_first = _directory(tiff, first_at, order)
    pointers = [number for number, entry in enumerate(first) if _tag(entry, order) == GPS_POINTER]
    gps_at = None
    if pointers:
        _, kind, count, gps_at = struct.unpack(f"{order}HHII", first[pointers[0]])
        if kind not in (LONG, IFD) or count != 1 or len(pointers) > 1:
            raise NotWritten("damaged", "what points to its GPS directory does not. Use sidecars")
    old = _directory(tiff, gps_at, order)[0] if gps_at is not None else []
    kept = [entry for entry in old if _tag(entry, order) not in OF_A_FIX]
    known = {_tag(entry, order) for entry in kept}
    wanted = [value for value in _gps_values(statement, taken_at, order) if value[0] not in known]

    block = bytearray(tiff + b"\0" * (len(tiff) % 2))
    new_at = len(block)
    block += _laid_out(kept, wanted, order, new_at)
    if pointers:
        struct.pack_into(f"{order}I", block, first_at + 2 + 12 * pointers[0] + 8, new_at)
    else:
        pointer = struct.pack(f"{order}HHII", GPS_POINTER, LONG, 1, new_at)
        place = sum(_tag(entry, order) < GPS_POINTER for entry in first)
        struct.pack_into(f"{order}I", block, 4, len(block))
        block += struct.pack(f"{order}H", len(first) + 1) + b"".join([*first[:place], pointer, *first[place:]]) + after_first
    return bytes(block)


def _directory(tiff: bytes, at: int, order: str) -> tuple[list[bytes], bytes]:
    """Read a directory: its entries of 12 bytes, and the 4 bytes that say where the next one is.

    Raises:
        NotWritten: it leads out of the block.
    """
    count = struct.unpack_from(f"{order}H", tiff, at)[0] if 8 <= at <= len(tiff) - 2 else len(tiff)
    end = at + 2 + 12 * count
    if end > len(tiff):
        raise NotWritten("damaged", "a directory of its EXIF block leads out of it. Use sidecars")
    return [tiff[start : start + 12] for start in range(at + 2, end, 12)], tiff[end : end + 4].ljust(4, b"\0")


def _tag(entry: bytes, order: str) -> int:
    return int(struct.unpack_from(f"{order}H", entry)[0])


def _gps_values(statement: Statement, taken_at: datetime | None, order: str) -> Iterator[tuple[int, int, int, bytes]]:
    """Give the GPS tags to write: number, type, count, value."""

    def rationals(*pairs: tuple[int, int]) -> bytes:
        return b"".join(struct.pack(f"{order}II", *pair) for pair in pairs)

    yield 0x00, BYTE, 4, b"\2\3\0\0"
    yield 0x01, ASCII, 2, b"S\0" if statement.lat_deg < 0 else b"N\0"
    yield 0x02, RATIONAL, 3, rationals(*exif_degrees(statement.lat_deg))
    yield 0x03, ASCII, 2, b"W\0" if statement.lon_deg < 0 else b"E\0"
    yield 0x04, RATIONAL, 3, rationals(*exif_degrees(statement.lon_deg))
    if taken_at is not None:
        seconds = (taken_at.second * 1000 + taken_at.microsecond // 1000, 1000)
        yield 0x07, RATIONAL, 3, rationals((taken_at.hour, 1), (taken_at.minute, 1), seconds)
        yield 0x1D, ASCII, 11, f"{taken_at:%Y:%m:%d}\0".encode()
    yield 0x12, ASCII, 7, b"WGS-84\0"
    method = b"ASCII\0\0\0" + statement.method.encode("ascii")
    yield 0x1B, UNDEFINED, len(method), method
    if statement.error_68_m is not None:
        yield 0x1F, RATIONAL, 1, rationals(rational(statement.error_68_m))


def _laid_out(kept: list[bytes], wanted: list[tuple[int, int, int, bytes]], order: str, at: int) -> bytes:
    """Make a directory that begins at byte `at`: entries that exist, whose values stay where they are, and new ones."""
    entries = list(kept)
    values_at = at + 2 + 12 * (len(kept) + len(wanted)) + 4
    values = b""
    for tag, kind, count, value in wanted:
        if len(value) <= 4:
            place = value.ljust(4, b"\0")
        else:
            place = struct.pack(f"{order}I", values_at + len(values))
            values += value + b"\0" * (len(value) % 2)
        entries.append(struct.pack(f"{order}HHI", tag, kind, count) + place)
    entries.sort(key=lambda entry: _tag(entry, order))
    return struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + values


def _check(before: bytes, after: bytes, statement: Statement, max_pixels: int) -> None:
    """Read what was made with another reader, Pillow, and compare.

    Raises:
        NotWritten: it is not what it must be.
    """
    old, new = _split(before), _split(after)
    facts, found = _facts(before, max_pixels), _facts(after, max_pixels)
    wanted = (statement.lat_deg, statement.lon_deg)
    problems = {
        "its pixels": new.rest == old.rest,
        "its other segments": [each.join() for each in old.segments if not each.is_changed]
        == [each.join() for each in new.segments if not each.is_changed],
        "where its other pictures lie": not any(
            each.is_changed for segments in (old.segments, new.segments) for each in _after_mpf(segments)
        ),
        "its other tags": _tags(before, max_pixels) == _tags(after, max_pixels),
        "its size": (found.width_px, found.height_px) == (facts.width_px, facts.height_px),
        "its position": np.allclose(_position(after, max_pixels) or math.nan, wanted, rtol=0, atol=TOLERANCE_DEG),
    }
    if wrong := [what for what, right in problems.items() if not right]:
        raise NotWritten("damaged", f"writing would have changed {', '.join(wrong)} in a way it must not. Use sidecars")


def _after_mpf(segments: list[Segment]) -> list[Segment]:
    """Give the segments behind the list of further pictures, whose positions count from it."""
    first = next((number for number, each in enumerate(segments) if _is_mpf(each)), len(segments))
    return segments[first:]


def _position(photo: bytes, max_pixels: int) -> tuple[float, float] | None:
    """Read the GPS directory: latitude and longitude in degrees, whoever wrote them; None where there is no position."""
    with quiet_pillow():
        gps = read_ifd(read_exif(open_header(photo, max_pixels=max_pixels), photo), ExifTags.IFD.GPSInfo)
    try:
        lat_deg, lon_deg = (
            sum(float(part) / 60**power for power, part in enumerate(gps[tag])) * (-1 if str(gps[ref])[:1] in "SW" else 1)
            for tag, ref in (
                (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef),
                (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef),
            )
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return None if position_problem(lat_deg, lon_deg) else (lat_deg, lon_deg)


def _tags(photo: bytes, max_pixels: int) -> dict[str, dict[int, str]]:
    """Read all tags but GPS, as text, which also compares what is no number."""
    with quiet_pillow():
        exif = read_exif(open_header(photo, max_pixels=max_pixels), photo)
        ifds: dict[str, Any] = {"IFD0": dict(exif)}
        ifds |= {ifd.name: read_ifd(exif, ifd) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.Interop, ExifTags.IFD.IFD1)}
    return {name: {tag: repr(value) for tag, value in ifd.items() if tag != GPS_POINTER} for name, ifd in ifds.items()}
