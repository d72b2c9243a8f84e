"""Facts from the headers of 70 real files, and of made ones where every number can be checked by hand."""

import zlib
from datetime import UTC, datetime, tzinfo

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from pipelines.catalog.headers import format_of
from pipelines.catalog.photo_facts import PhotoFacts, photo_facts
from schemas.errors import PhotoError
from schemas.reasons import RejectReason
from tests.pipelines.catalog.photos import SHARED, encoded, jpeg, manifest

GPS = ExifTags.GPS
STATES = {
    "position": None,
    "no-gps": RejectReason.NO_POSITION,
    "gps-ifd-without-position": RejectReason.NO_POSITION,
    "position-invalid": RejectReason.POSITION_INVALID,
    "null-island": RejectReason.NULL_ISLAND,
}
IN_XMP_ONLY = "mtools__adobe_coords.jpg"


def facts(data: bytes) -> PhotoFacts:
    return photo_facts(data, max_pixels=64_000_000)


def photo_with(gps: dict[int, object], camera: dict[int, object] | None = None) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    exif.get_ifd(ExifTags.IFD.Exif).update(camera or {})
    return encoded(Image.new("RGB", (4, 3)), "JPEG", exif=exif)


def photo_with_xmp(lat: str, lon: str, more: str = "") -> bytes:
    xmp = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="{lat}" exif:GPSLongitude="{lon}" {more}/>
    </rdf:RDF></x:xmpmeta>"""
    return encoded(Image.new("RGB", (4, 3)), "JPEG", xmp=xmp.encode())


PLACE = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (50.0, 30.0, 0.0),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (8.0, 0.0, 36.0),
}


IN_PROCESS = [row for row in manifest("exif") if not row["gps_state"].startswith("unreadable-by-pillow")]
"""Without three HEIC files, which test_isolated_formats.py reads."""


@pytest.mark.parametrize("expected", IN_PROCESS, ids=lambda row: row["file"])
def test_each_real_photo_has_the_position_its_manifest_names(expected: dict[str, str]):
    data = (SHARED / "exif" / expected["file"]).read_bytes()
    found = facts(data)
    if expected["file"] == IN_XMP_ONLY:
        assert expected["gps_state"] == "no-gps", "the manifest looks at EXIF alone"
        assert (found.lat_deg, found.lon_deg) == pytest.approx((-0.0702668, 34.3819352), abs=1e-6)
        return
    assert found.position_problem == STATES[expected["gps_state"]]
    position = (float(expected["lat"]), float(expected["lon"])) if expected["gps_state"] == "position" else (None, None)
    assert (found.lat_deg, found.lon_deg) == (pytest.approx(position, abs=1e-6) if position[0] is not None else position)
    altitude_m = float(expected["alt_m"]) if expected["alt_m"] else None
    assert found.altitude_m == (altitude_m if altitude_m is None else pytest.approx(altitude_m, abs=1e-2))


def test_the_manifest_of_real_photos_is_the_one_we_know(shared_data):
    assert len(manifest("exif")) == len(IN_PROCESS) + 3 == 70
    assert (shared_data / "exif" / IN_XMP_ONLY).exists()


def test_a_photo_without_metadata_has_a_size_and_nothing_else():
    found = facts(encoded(Image.new("L", (7, 5)), "PNG"))

    assert (found.width_px, found.height_px) == (7, 5)
    assert found.position_problem == RejectReason.NO_POSITION
    assert (found.lat_deg, found.altitude_m, found.heading_deg, found.taken_at) == (None, None, None, None)


def test_degrees_minutes_and_seconds_add_up():
    found = facts(photo_with(PLACE))

    assert (found.lat_deg, found.lon_deg) == pytest.approx((50.5, 8.01))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({GPS.GPSLatitudeRef: ""}, RejectReason.POSITION_INVALID),
        ({GPS.GPSLatitude: (90.0, 0.0, 36.0)}, RejectReason.POSITION_INVALID),
        ({GPS.GPSLongitude: (180.0, 0.0, 36.0)}, RejectReason.POSITION_INVALID),
        ({GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}, RejectReason.NULL_ISLAND),
    ],
)
def test_a_position_that_cannot_be_used_says_why(changed: dict[int, object], problem: RejectReason):
    assert facts(photo_with({**PLACE, **changed})).position_problem == problem


def test_half_a_position_is_invalid():
    half = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (50.0, 30.0, 0.0)}

    assert facts(photo_with(half)).position_problem == RejectReason.POSITION_INVALID


@pytest.mark.parametrize(
    ("lat", "lon", "lat_deg", "lon_deg"),
    [
        ("35,0.6N", "135,30.0E", 35.01, 135.5),
        ("35,0,36S", "135,30,0W", -35.01, -135.5),
        ("-35.01", "135.5", -35.01, 135.5),
    ],
)
def test_each_way_to_write_a_position_in_xmp_is_read(lat: str, lon: str, lat_deg: float, lon_deg: float):
    found = facts(photo_with_xmp(lat, lon))

    assert (found.lat_deg, found.lon_deg) == pytest.approx((lat_deg, lon_deg))


@pytest.mark.parametrize("lat", ["", "north", "35,0.6", "nan", "1e1", "95.0", "٣٥"])
def test_nonsense_in_xmp_is_an_invalid_position(lat: str):
    assert facts(photo_with_xmp(lat, "135.5")).position_problem == RejectReason.POSITION_INVALID


def test_xmp_nested_without_end_is_no_metadata():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b"<a>" * 5000 + b"</a>" * 5000 + b"</x:xmpmeta>"

    assert facts(encoded(Image.new("RGB", (4, 3)), "JPEG", xmp=xmp)).position_problem == RejectReason.NO_POSITION


def test_a_billion_laughs_in_xmp_are_not_expanded():
    xmp = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'

    assert facts(encoded(Image.new("RGB", (4, 3)), "JPEG", xmp=xmp)).position_problem == RejectReason.NO_POSITION


@pytest.mark.parametrize(
    ("gps", "heading_deg"),
    [
        ({GPS.GPSImgDirection: 90.0, GPS.GPSImgDirectionRef: "T", GPS.GPSTrack: 45.0}, 90.0),
        ({GPS.GPSImgDirection: 90.0, GPS.GPSImgDirectionRef: "M", GPS.GPSTrack: 45.0}, 45.0),
        ({GPS.GPSTrack: 360.0}, 0.0),
        ({GPS.GPSImgDirection: 361.0}, None),
    ],
)
def test_the_heading_is_from_true_north_and_the_camera_before_the_track(gps: dict[int, object], heading_deg: float | None):
    assert facts(photo_with(gps)).heading_deg == heading_deg


@pytest.mark.parametrize(
    ("camera", "hour", "zone"),
    [
        ({0x9003: "2026:05:01 12:00:00", 0x9011: "+02:00"}, 10, UTC),
        ({0x9003: "2026:05:01 12:00:00", 0x9011: "-01:00"}, 13, UTC),
        ({0x9003: "2026:05:01 12:00:00"}, 12, None),
        ({0x9003: "2026:05:01 12:00:00", 0x9011: "soon"}, 12, None),
    ],
)
def test_the_cameras_time_is_in_utc_where_it_gives_its_offset(camera: dict[int, object], hour: int, zone: tzinfo | None):
    assert facts(photo_with({}, camera)).taken_at == datetime(2026, 5, 1, hour, tzinfo=zone)


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [("25", 250_000), ("025", 25_000), ("1234567", 123_456), ("5  ", 500_000), ("", 0), ("x", 0), ("٣", 0)],
)
def test_the_cameras_fraction_of_a_second_is_kept(text: str, microsecond: int):
    camera = {0x9003: "2026:05:01 12:00:00", 0x9291: text.encode(errors="replace")}

    assert facts(photo_with({}, camera)).taken_at == datetime(2026, 5, 1, 12, 0, 0, microsecond)


@pytest.mark.parametrize(
    ("method", "known"),
    [
        ("folio: visual place recognition", False),
        ("folio: interpolated in a sequence", False),
        ("folio: by hand", True),
        ("GPS", True),
    ],
)
def test_a_position_that_folio_looked_up_is_not_known(method: str, known: bool):
    xmp = photo_with_xmp("50,30.0N", "8,0.6E", f'exif:GPSProcessingMethod="{method}"')
    exif = photo_with({**PLACE, GPS.GPSProcessingMethod: b"ASCII\0\0\0" + method.encode()})

    for data in (xmp, exif):
        assert facts(data).position_problem == (None if known else RejectReason.NO_POSITION)


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "9999:12:31 23:59:59", "2026:02:30 12:00:00"])
def test_a_clock_that_was_never_set_gives_no_time(text: str):
    assert facts(photo_with({}, {0x9003: text, 0x9011: "-12:00"})).taken_at is None


def test_satellite_time_goes_before_the_cameras():
    gps = {GPS.GPSDateStamp: "2026:05:01", GPS.GPSTimeStamp: (9.0, 30.0, 15.5)}

    taken_at = facts(photo_with(gps, {0x9003: "2020:01:01 00:00:00"})).taken_at

    assert taken_at == datetime(2026, 5, 1, 9, 30, 15, 500_000, tzinfo=UTC)


def test_metadata_behind_the_pixels_of_a_png_is_found_without_decoding_them(monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(PLACE)
    whole = encoded(Image.new("RGB", (4, 3)), "PNG", exif=exif)
    at = whole.index(b"eXIf") - 4
    chunk = whole[at : at + 12 + int.from_bytes(whole[at : at + 4], "big")]
    moved = whole.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))

    assert facts(moved).lat_deg == 50.5


def test_more_pixels_than_the_limit_are_refused_from_the_header():
    with pytest.raises(PhotoError, match="too-many-pixels: 100 x 90 = 9,000 pixels, the limit is 8,999"):
        photo_facts(jpeg(size=(100, 90)), max_pixels=8_999)


def test_a_bomb_that_pillow_refuses_itself_has_too_many_pixels():
    png = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    png[16:24] = (30_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")

    with pytest.raises(PhotoError, match="too-many-pixels"):
        facts(bytes(png))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty-file: 0 bytes"),
        (b"hello, world", "not-an-image: begins with b'hello, w'"),
        (b"GIF89a rest", "unsupported-format: format GIF"),
        (b"\0\0\0\x0cjP  ", "unsupported-format: format JPEG 2000"),
        (b"\0\0\0\x18ftypheic", "unsupported-format: format HEIC; it is opened in the decoder's process alone"),
        (b"\xff\xd8\xff\xe0 rest", "truncated: the JPEG file ends within its header"),
        (b"\x89PNG\r\n\x1a\n rest", "damaged: begins like a PNG file"),
    ],
)
def test_what_is_no_photo_is_refused_with_a_reason(data: bytes, message: str):
    with pytest.raises(PhotoError, match=message):
        facts(data)


def test_a_format_is_known_by_its_first_bytes():
    formats = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "ICO", "PPM"]

    assert [format_of(encoded(Image.new("L", (1, 1)), form)) for form in formats] == formats


def test_no_number_that_comes_out_is_nan():
    gps = {**PLACE, GPS.GPSAltitude: IFDRational(0, 0), GPS.GPSImgDirection: IFDRational(0, 0)}

    found = facts(photo_with(gps))

    assert (found.altitude_m, found.heading_deg) == (None, None)
