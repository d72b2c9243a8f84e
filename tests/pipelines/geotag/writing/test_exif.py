"""A photo that gets a position keeps its pixels, its maker note and every other tag; one that could lose something is refused."""

import io
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pipelines.catalog.photo_facts import PhotoFacts, photo_facts
from pipelines.geotag.writing.exif import has_position, with_position
from pipelines.geotag.writing.statement import NotWritten, Statement, statement_of
from tests.pipelines.geotag.writing.archives import LAT_DEG, LON_DEG, geotag_row, jpeg, position

MAX_PIXELS = 10_000
MAKER_NOTE = b"MAKER\0\1\2 points at byte 777 \xff\xd8"
TAKEN = "2026:05:17 10:30:15"
GPS = {
    ExifTags.GPS.GPSLatitudeRef: "S",
    ExifTags.GPS.GPSLatitude: (1.0, 2.0, 3.0),
    ExifTags.GPS.GPSLongitudeRef: "W",
    ExifTags.GPS.GPSLongitude: (4.0, 5.0, 6.0),
    ExifTags.GPS.GPSStatus: "V",
    ExifTags.GPS.GPSDOP: 9.5,
    ExifTags.GPS.GPSAltitude: 51.25,
    ExifTags.GPS.GPSImgDirection: 270.0,
}


def said(**changes: Any) -> Statement:
    return statement_of(geotag_row("a.jpg", "/", **changes), map_version=42, run_id="run")


def photo(*, endian: str = "<", gps: dict[int, Any] | None = None, camera: dict[int, Any] | None = None) -> bytes:
    """A small JPEG of a camera, with a maker note."""
    exif = Image.Exif()
    exif.endian = endian
    exif[ExifTags.Base.Make] = "Cämera"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {ExifTags.Base.MakerNote: MAKER_NOTE, ExifTags.Base.DateTimeOriginal: TAKEN, **(camera or {})}
    )
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    return jpeg(exif=exif.tobytes())


def facts(data: bytes) -> PhotoFacts:
    return photo_facts(data, max_pixels=MAX_PIXELS)


def tags(data: bytes, ifd: ExifTags.IFD) -> dict[int, Any]:
    return dict(Image.open(io.BytesIO(data)).getexif().get_ifd(ifd))


def scan(data: bytes) -> bytes:
    return data[data.index(b"\xff\xda") :]


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("gps", [None, GPS], ids=["no GPS", "GPS"])
def test_a_photo_gets_its_position_and_keeps_the_rest(endian: str, gps: dict[int, Any] | None):
    before = photo(endian=endian, gps=gps)

    after = with_position(before, said(), max_pixels=MAX_PIXELS)

    assert position(after) == pytest.approx((LAT_DEG, LON_DEG), abs=1e-7)
    assert scan(after) == scan(before)
    assert tags(after, ExifTags.IFD.Exif) == tags(before, ExifTags.IFD.Exif)
    assert tags(after, ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] == MAKER_NOTE
    assert Image.open(io.BytesIO(after)).getexif()[ExifTags.Base.Orientation] == 6


@pytest.mark.parametrize("endian", ["<", ">"])
def test_no_byte_of_the_exif_block_moves(endian: str):
    """So a maker note's own positions stay right: the block is as before, but for the number that says where GPS is."""
    before = photo(endian=endian, gps=GPS)
    start = before.index(b"Exif\0\0") + 6
    block = before[start : start + len(Image.open(io.BytesIO(before)).info["exif"]) - 6]

    after = with_position(before, said(), max_pixels=MAX_PIXELS)

    new_start = after.index(b"Exif\0\0") + 6
    changed = [at for at, byte in enumerate(block) if after[new_start + at] != byte]
    entry = struct.pack(f"{endian}HHI", ExifTags.IFD.GPSInfo, 4, 1)
    place = block.index(entry) + len(entry)
    assert set(changed) <= set(range(place, place + 4))
    assert struct.unpack_from(f"{endian}I", after, new_start + place)[0] >= len(block)


def test_what_was_measured_with_the_old_position_goes_and_what_was_not_stays():
    after = tags(with_position(photo(gps=GPS), said(), max_pixels=MAX_PIXELS), ExifTags.IFD.GPSInfo)

    assert ExifTags.GPS.GPSStatus not in after
    assert ExifTags.GPS.GPSDOP not in after
    assert after[ExifTags.GPS.GPSAltitude] == 51.25
    assert after[ExifTags.GPS.GPSImgDirection] == 270.0
    assert after[ExifTags.GPS.GPSMapDatum] == "WGS-84"
    assert after[ExifTags.GPS.GPSProcessingMethod] == b"ASCII\0\0\0folio: visual place recognition"
    assert after[ExifTags.GPS.GPSHPositioningError] == pytest.approx(8.79, abs=0.005)


def test_a_photo_without_metadata_gets_a_block_behind_its_jfif_header():
    after = with_position(jpeg(), said(), max_pixels=MAX_PIXELS)

    assert after[2:4] == b"\xff\xe0"
    assert position(after)[0] == pytest.approx(LAT_DEG, abs=1e-7)
    assert scan(after) == scan(jpeg())


def test_the_time_is_written_only_where_it_is_known_in_utc():
    alone = tags(with_position(photo(), said(), max_pixels=MAX_PIXELS), ExifTags.IFD.GPSInfo)
    ahead = {ExifTags.Base.OffsetTimeOriginal: "+02:00"}
    with_offset = with_position(photo(camera=ahead), said(), max_pixels=MAX_PIXELS)
    fixed = {ExifTags.GPS.GPSDateStamp: "2020:01:02", ExifTags.GPS.GPSTimeStamp: (3.0, 4.0, 5.0)}
    own = tags(with_position(photo(camera=ahead, gps=fixed), said(), max_pixels=MAX_PIXELS), ExifTags.IFD.GPSInfo)

    assert ExifTags.GPS.GPSTimeStamp not in alone
    assert tags(with_offset, ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSDateStamp] == "2026:05:17"
    assert tags(with_offset, ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSTimeStamp] == (8.0, 30.0, 15.0)
    assert facts(with_offset).taken_at == facts(photo(camera=ahead)).taken_at
    assert (own[ExifTags.GPS.GPSDateStamp], own[ExifTags.GPS.GPSTimeStamp]) == ("2020:01:02", (3.0, 4.0, 5.0))


def test_written_again_it_says_the_new_position_alone():
    once = with_position(photo(gps=GPS), said(), max_pixels=MAX_PIXELS)
    twice = with_position(once, said(lat_deg=-10.5, lon_deg=-20.25), max_pixels=MAX_PIXELS)

    assert position(twice) == pytest.approx((-10.5, -20.25), abs=1e-7)
    assert twice.count(b"folio:Run") == once.count(b"folio:Run") == 1
    assert tags(twice, ExifTags.IFD.Exif) == tags(once, ExifTags.IFD.Exif)


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_any_position_is_read_back(lat_deg: float, lon_deg: float):
    if (lat_deg, lon_deg) == (0, 0):
        return
    statement = said(lat_deg=lat_deg, lon_deg=lon_deg)
    if max(abs(lat_deg), abs(lon_deg)) < 2e-8:
        return  # 2 mm from null island: it would be rounded onto it, and is refused
    found = position(with_position(photo(), statement, max_pixels=MAX_PIXELS))

    assert found == pytest.approx((lat_deg, lon_deg), abs=2e-8)


HEADER_BYTES = photo(gps=GPS).index(b"\xff\xda")


@given(st.dictionaries(st.integers(2, HEADER_BYTES - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_damage_anywhere_in_the_metadata_costs_that_photo_at_most(flipped: dict[int, int]):
    """Whatever is in it, it is written with its pixels as they were, or refused; nothing else is ever raised."""
    before = bytearray(photo(gps=GPS))
    for at, byte in flipped.items():
        before[at] = byte
    try:
        after = with_position(bytes(before), said(), max_pixels=MAX_PIXELS)
    except NotWritten:
        return
    assert after.endswith(scan(photo()))


def with_segment(data: bytes, marker: int, payload: bytes, *, at: int = 2) -> bytes:
    return data[:at] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + data[at:]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "unreadable", id="empty"),
        pytest.param(jpeg()[:100], "unreadable", id="cut off"),
        pytest.param(with_segment(photo(), 0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0"), "damaged", id="two EXIF blocks"),
        pytest.param(jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), "damaged", id="a directory that leads out"),
        pytest.param(jpeg(exif=b"Exif\0\0IX*\0"), "damaged", id="no EXIF block"),
        pytest.param(with_segment(jpeg(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"), "xmp-unreadable", id="broken XMP"),
        pytest.param(jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + b"\0" * 65_500), "no-room", id="a full block"),
        pytest.param(photo() + b"what only the maker note can find", "trailer", id="something behind the picture"),
        pytest.param(with_segment(photo(), 0xE2, b"MPF\0" + b"\0" * 60), "damaged", id="metadata behind the list of pictures"),
    ],
)
def test_a_photo_that_could_lose_something_is_refused(data: bytes, code: str):
    with pytest.raises(NotWritten) as left:
        with_position(data, said(), max_pixels=MAX_PIXELS)

    assert left.value.code == code
    assert left.value.detail


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "HEIC"])
def test_other_formats_are_refused_by_name_and_sent_to_sidecars(kind: str):
    data = io.BytesIO()
    if kind == "HEIC":
        data.write(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    else:
        Image.new("RGB", (8, 8)).save(data, kind)

    with pytest.raises(NotWritten, match=f"{kind}.*--write sidecar"):
        with_position(data.getvalue(), said(), max_pixels=MAX_PIXELS)
    with pytest.raises(NotWritten, match=f"{kind}.*--write sidecar"):
        has_position(data.getvalue(), max_pixels=MAX_PIXELS)


def test_a_film_or_samsungs_data_behind_the_picture_are_no_hindrance():
    for behind in (b"\0\0\0\x18ftypmp42" + b"film" * 10, b"data" * 10 + b"SEFT", b"\0" * 64):
        data = photo() + behind

        assert with_position(data, said(), max_pixels=MAX_PIXELS).endswith(scan(photo()) + behind)


def test_filling_before_a_segment_stays():
    data = jpeg()[:2] + b"\xff\xff\xff" + jpeg()[2:]

    assert with_position(data, said(), max_pixels=MAX_PIXELS)[2:8] == data[2:8]


def test_a_time_beyond_midnight_is_of_the_next_day():
    """22:30 at two hours behind UTC is 00:30 of the next day."""
    camera = {ExifTags.Base.DateTimeOriginal: "2026:12:31 22:30:15", ExifTags.Base.OffsetTimeOriginal: "-02:00"}

    found = tags(with_position(photo(camera=camera), said(), max_pixels=MAX_PIXELS), ExifTags.IFD.GPSInfo)

    assert (found[ExifTags.GPS.GPSDateStamp], found[ExifTags.GPS.GPSTimeStamp][0]) == ("2027:01:01", 0.0)
