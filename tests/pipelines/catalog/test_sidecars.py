"""What lies beside photos: found by name, read with care, and believed in a fixed order."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from infra.settings import Settings
from pipelines.catalog import sidecars
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sidecars import beside, read_sidecar
from pipelines.catalog.sources import Catalog, list_photos
from tests.pipelines.catalog.photos import encoded, jpeg
from tests.pipelines.catalog.test_tars import packed

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def catalog(source: Path, *, needs_position: bool = False) -> Catalog:
    return list_photos([str(source)], settings=Settings(threads=2), limits=PhotoLimits(), needs_position=needs_position)


def row_of(source: Path, name: str = "a.jpg") -> dict[str, Any]:
    rows = {row["uri"].rpartition("/")[2]: row for row in catalog(source).images.to_pylist()}
    return rows[name]


def write(folder: Path, files: dict[str, bytes | str | dict]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(data) if isinstance(data, dict) else data
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def takeout(lat: float = 0.0, lon: float = 0.0, *, seconds: int | str = 0, title: str = "a.jpg", **more: Any) -> dict[str, Any]:
    place = {"latitude": lat, "longitude": lon, "altitude": 0.0, "latitudeSpan": 0.0, "longitudeSpan": 0.0}
    return {"title": title, "geoData": place, "geoDataExif": place, "photoTakenTime": {"timestamp": str(seconds)}, **more}


def xmp(properties: str, children: str = "") -> str:
    return f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
    <x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
        xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" {properties}>{children}</rdf:Description>
    </rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


XMP_PLACE = 'exif:GPSLatitude="35,0.6S" exif:GPSLongitude="135,30.0W"'


def timed(**camera: str) -> bytes:
    exif = Image.Exif()
    tags = {getattr(ExifTags.Base, name): value for name, value in camera.items()}
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    return encoded(Image.new("RGB", (4, 3)), "JPEG", exif=exif)


# Names


@pytest.mark.parametrize(
    ("photo", "sidecar"),
    [
        ("IMG_1.jpg", "IMG_1.jpg.json"),
        ("IMG_1.jpg", "IMG_1.jpg.supplemental-metadata.json"),
        ("IMG_1(1).jpg", "IMG_1.jpg(1).json"),
        ("IMG_1(1).jpg", "IMG_1.jpg.supplemental-metadata(1).json"),
        ("IMG_1(1).jpg", "IMG_1(1).jpg.json"),
        ("img(18).jpg", "img.jpg.supple(18).json"),
        ("Screenshot_2017-07-05-10-05-26.png", "Screenshot_2017-07-05-10-05-26.png.supplementa.json"),
        ("D7157814-D2D5-4A62-AFCE-9CF465CB7D66.jpeg", "D7157814-D2D5-4A62-AFCE-9CF465CB7D66.jpeg.supp.json"),
        ("Screenshot_20220207_102421_com.snapchat.androidx.jpg", "Screenshot_20220207_102421_com.snapchat.androi.json"),
        ("Urlaub in Knaufspesch in der Schneifel (38).JPG", "Urlaub in Knaufspesch in der Schneifel (38).JP.json"),
        ("IMG_1-edited.jpg", "IMG_1.jpg.json"),
        ("IMG_1-edited(2).jpg", "IMG_1.jpg.supplemental-metadata(2).json"),
        ("000017.jpg", "000017.json"),
        ("dir/IMG_1.JPG", "dir/IMG_1.JPG.xmp"),
        ("dir/IMG_1.JPG", "dir/IMG_1.xmp"),
        ("dir/IMG_1.JPG", "dir/IMG_1.XMP"),
    ],
)
def test_a_sidecar_is_found_by_every_name_it_is_given(photo: str, sidecar: str):
    others = {"IMG_2.jpg.json", "IMG_1.jpg(3).json", "other/IMG_1.JPG.xmp", "metadata.json", "IMG.jpg.json"}

    assert beside(photo, (others | {sidecar}).__contains__) == (sidecar,)


@pytest.mark.parametrize(
    ("photo", "sidecar"),
    [
        ("IMG_1.jpg", "IMG_1.jpg(1).json"),
        ("IMG_1(1).jpg", "IMG_1.jpg.json"),
        ("IMG_1(1).jpg", "IMG_1.jpg(2).json"),
        ("IMG_1.jpg", "IMG_1.png.json"),
        ("IMG_1.jpg", "IMG_10.json"),
        ("IMG_1.jpg", "IMG_1.jpg.supplemental-metadata.extra.json"),
    ],
)
def test_the_sidecar_of_another_photo_is_not_taken(photo: str, sidecar: str):
    assert beside(photo, {sidecar}.__contains__) == ()


def test_of_several_the_one_with_the_whole_name_is_taken():
    names = {"a.jpg.xmp", "a.xmp", "a.jpg.json", "a.json"}

    assert beside("a.jpg", names.__contains__) == ("a.jpg.xmp", "a.jpg.json")


def test_photos_of_long_names_do_not_take_the_place_of_one_another(tmp_path: Path):
    """Both names begin with the same 46 characters, so that both find the same JSON."""
    one, other = f"{'x' * 46}1.jpg", f"{'x' * 46}2.jpg"
    write(tmp_path, {one: jpeg(), other: jpeg(), f"{'x' * 46}.json": takeout(55.5, 13.25, title=f"{'x' * 46}1 and more.jpg")})

    assert (row_of(tmp_path, one)["lat_deg"], row_of(tmp_path, other)["lat_deg"]) == (55.5, None)


# What they say


def test_takeout_says_where_and_when(tmp_path: Path):
    said = takeout(55.5, 13.25, seconds=int(NOON.timestamp()))
    said["geoData"]["altitude"] = 12.5
    row = row_of(write(tmp_path, {"a.jpg": jpeg(), "a.jpg.supplemental-metadata.json": said}))

    assert (row["lat_deg"], row["lon_deg"], row["altitude_m"], row["taken_at"]) == (55.5, 13.25, 12.5, NOON)


def test_zeros_of_takeout_stand_for_nothing_known(tmp_path: Path):
    camera = {"latitude": 1.5, "longitude": 2.5, "altitude": 0.0}
    write(tmp_path, {"a.jpg": jpeg(), "a.jpg.json": takeout(seconds=0), "b.jpg": jpeg()})
    write(tmp_path, {"b.jpg.json": takeout(geoDataExif=camera)})

    empty, placed = row_of(tmp_path), row_of(tmp_path, "b.jpg")

    assert (empty["lat_deg"], empty["altitude_m"], empty["taken_at"]) == (None, None, None)
    assert (placed["lat_deg"], placed["lon_deg"], placed["altitude_m"]) == (1.5, 2.5, None)


def test_shards_for_webdataset_have_json_with_positions(tmp_path: Path):
    said = {
        "lat": 55.5,
        "lng": "13.25",
        "heading": 361,
        "compass": -90,
        "captured_at": "2026-05-01T14:00:00+02:00",
        "sequence": 7,
    }
    shard = packed([("0001.jpg", jpeg()), ("0001.json", json.dumps(said).encode()), ("0001.txt", b"a house")])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000.tar").write_bytes(shard)

    found = catalog(tmp_path / "train", needs_position=True)

    (row,) = found.images.to_pylist()
    assert (row["lat_deg"], row["lon_deg"], row["taken_at"], row["sequence_id"]) == (55.5, 13.25, NOON, "7")
    assert found.notes == [
        f"{tmp_path}/train: 1 files that are no photos were skipped: 1 .txt",
        "read beside the photos: 1 .json",
    ]


@pytest.mark.parametrize("said", [{"x": 3, "y": 7}, {"lat": 3}, {"lat": 95, "lon": 3}, {"lat": 0, "lon": 0}, {"label": "house"}])
def test_json_without_a_position_gives_none(tmp_path: Path, said: dict):
    assert row_of(write(tmp_path, {"a.jpg": jpeg(), "a.json": said}))["lat_deg"] is None


@pytest.mark.parametrize(
    "children",
    [
        "",
        "<exif:GPSLatitude>35,0,36S</exif:GPSLatitude><exif:GPSLongitude>135,30W</exif:GPSLongitude>"
        "<photoshop:DateCreated>2026-05-01T12:00:00.25Z</photoshop:DateCreated>",
    ],
    ids=["as attributes", "as elements"],
)
@pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp"])
def test_an_xmp_sidecar_says_where_and_when(tmp_path: Path, name: str, children: str):
    time = 'xmp:CreateDate="2020-01-01T00:00:00Z" exif:DateTimeOriginal="2026-05-01T14:00:00.25+02:00"'
    row = row_of(write(tmp_path, {"a.jpg": jpeg(), name: xmp("" if children else f"{XMP_PLACE} {time}", children)}))

    assert (row["lat_deg"], row["lon_deg"]) == pytest.approx((-35.01, -135.5))
    assert row["taken_at"] == NOON.replace(microsecond=250_000)


def test_a_photo_has_the_same_key_alone_and_with_its_sidecars_in_a_folder(tmp_path: Path):
    write(tmp_path, {"a.jpg": jpeg(), "a.jpg.json": takeout(55.5, 13.25), "a.xmp": xmp("")})

    assert row_of(tmp_path / "a.jpg") == row_of(tmp_path)
    assert row_of(tmp_path)["lat_deg"] == 55.5


# Who is believed


def test_positions_are_believed_in_order(tmp_path: Path):
    """A table, then the XMP sidecar that somebody wrote later, then EXIF, then JSON."""
    write(tmp_path, {"a.jpg": jpeg(3, 3), "a.jpg.json": takeout(4, 4), "a.jpg.xmp": xmp(XMP_PLACE)})
    table = write(tmp_path, {"photos.csv": "uri,lat,lon\na.jpg,1,1\n"}) / "photos.csv"

    def lat_deg() -> float:
        return row_of(tmp_path)["lat_deg"]

    assert row_of(table)["lat_deg"] == 1
    assert lat_deg() == pytest.approx(-35.01)
    (tmp_path / "a.jpg.xmp").unlink()
    assert lat_deg() == 3
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert lat_deg() == 4


def test_a_sidecar_that_says_nonsense_stands_in_the_way_of_nobody(tmp_path: Path):
    nonsense = xmp('exif:GPSLatitude="95,0N" exif:GPSLongitude="0,0E"')
    write(
        tmp_path,
        {"a.jpg": jpeg(3, 3), "a.jpg.xmp": nonsense, "b.jpg": jpeg(), "b.jpg.xmp": nonsense, "b.json": {"lat": 4, "lon": 4}},
    )

    assert (row_of(tmp_path)["lat_deg"], row_of(tmp_path, "b.jpg")["lat_deg"]) == (3, 4)


def test_what_folio_wrote_into_a_sidecar_is_not_taken_for_known(tmp_path: Path):
    said = xmp(f'{XMP_PLACE} exif:GPSProcessingMethod="folio: visual place recognition"')

    assert row_of(write(tmp_path, {"a.jpg": jpeg(), "a.jpg.xmp": said}))["lat_deg"] is None


LOCAL = {"DateTimeOriginal": "2026:05:01 14:00:00", "SubsecTimeOriginal": "25"}


@pytest.mark.parametrize(
    ("camera", "more", "hour", "microsecond"),
    [
        ({**LOCAL, "OffsetTimeOriginal": "+02:00"}, {}, 12, 250_000),
        ({**LOCAL, "OffsetTimeOriginal": "+02:00"}, {"a.jpg.json": takeout(seconds=1)}, 12, 250_000),
        (LOCAL, {"a.jpg.json": takeout(seconds=int(NOON.timestamp()))}, 12, 0),
        (LOCAL, {"a.jpg.xmp": xmp('exif:DateTimeOriginal="2026-05-01T15:00:00"')}, 15, 0),
        (LOCAL, {"a.jpg.xmp": xmp('exif:DateTimeOriginal="2026-05-01"')}, 14, 250_000),
        (LOCAL, {}, 14, 250_000),
        ({}, {"a.jpg.json": takeout(seconds=int(NOON.timestamp()))}, 12, 0),
    ],
    ids=["offset", "offset before JSON", "JSON before no offset", "XMP before EXIF", "a day is no time", "as UTC", "JSON alone"],
)
def test_times_with_an_offset_are_believed_before_those_without(
    tmp_path: Path, camera: dict, more: dict, hour: int, microsecond: int
):
    row = row_of(write(tmp_path, {"a.jpg": timed(**camera), **more}))

    assert row["taken_at"] == datetime(2026, 5, 1, hour, 0, 0, microsecond, tzinfo=UTC)


# Files that want to hurt


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jpg.xmp", b"x"),
        ("a.jpg.xmp", b""),
        ("a.jpg.xmp", '<?xml version="1.0" encoding="klingon"?><a/>'),
        ("a.jpg.xmp", '<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'),
        ("a.jpg.xmp", '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'),
        ("a.jpg.xmp", '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><x/>'),
        ("a.jpg.xmp", xmp("x" * sidecars.MAX_BYTES)),
        ("a.jpg.json", b"{"),
        ("a.jpg.json", b"[" * 500_000),
        ("a.jpg.json", b'{"lat": NaN, "lon": 1}'),
        ("a.jpg.json", b'{"title": "\xff"}'),
        ("a.jpg.json", json.dumps({"lat": 1, "lon": 2, "more": "x" * sidecars.MAX_BYTES})),
    ],
    ids=range(12),
)
def test_a_sidecar_that_cannot_be_read_is_named_and_costs_nothing_else(tmp_path: Path, name: str, data: bytes | str):
    write(tmp_path, {"a.jpg": jpeg(3, 3), name: data})

    found = catalog(tmp_path, needs_position=True)

    assert found.images["lat_deg"].to_pylist() == [3]
    assert found.notes == [f"1 files beside photos cannot be read and say nothing, the first is {tmp_path.name}/{name}"]


def test_a_sidecar_that_is_a_folder_or_a_dead_link_says_nothing(tmp_path: Path):
    write(tmp_path, {"a.jpg": jpeg(3, 3), "a.jpg.json/b.txt": b""})
    (tmp_path / "a.jpg.xmp").symlink_to(tmp_path / "gone")

    assert row_of(tmp_path)["lat_deg"] == row_of(tmp_path / "a.jpg")["lat_deg"] == 3


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["latitude", "longitude", "altitude", "timestamp", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = ["geoData", "geoDataExif", "photoTakenTime", "title", "lat", "lon", "altitude", "heading", "time", "sequence"]


@given(st.dictionaries(st.sampled_from(KEYS), ODD) | ODD)
def test_whatever_json_says_only_what_can_be_is_believed(said: Any):
    claim = read_sidecar("a.jpg.json", json.dumps(said).encode(), photo="a.jpg")

    assert (claim.lat_deg is None) == (claim.lon_deg is None)
    if claim.lat_deg is not None and claim.lon_deg is not None:
        assert abs(claim.lat_deg) <= 90
        assert abs(claim.lon_deg) <= 180
        assert (claim.lat_deg, claim.lon_deg) != (0, 0)
    assert claim.taken_at is None or 1826 <= claim.taken_at.year < 2200
    assert claim.heading_deg is None or 0 <= claim.heading_deg <= 360
