"""exiftool, which has nothing to do with us, reads what was written: every hemisphere, the date line, every real camera file."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.geotag.writing.undo import run_folder, undo
from pipelines.geotag.writing.write import WriteRequest, run_writing
from tests.pipelines.geotag.writing.archives import SETTINGS, content, geotag_row, jpeg, write_geotags
from tests.pipelines.geotag.writing.test_xmp import DARKTABLE

EXIFTOOL = shutil.which("exiftool")
pytestmark = pytest.mark.skipif(EXIFTOOL is None, reason="needs exiftool (apt-get install libimage-exiftool-perl)")

PLACES = {
    "lund": (55.7001234, 13.1902345),
    "rio": (-22.9519173, -43.2104872),
    "sydney": (-33.8567844, 151.2152967),
    "san-francisco": (37.8199286, -122.4782551),
    "date-line-east": (-16.8, 179.9999999),
    "date-line-west": (-16.8, -179.9999999),
    "antimeridian": (52.0, 180.0),
    "greenwich": (51.4779, -0.0000012),
    "equator": (-0.0000021, 32.5),
    "north-pole": (90.0, 12.0),
    "a-minute-that-rounds-up": (59.99999999, -59.99999999),
}
GIVEN = re.compile(
    r"(GPS|XMP-exif):GPS(VersionID|(Lat|Long)itude(Ref)?|MapDatum|ProcessingMethod|HPositioningError"
    r"|Status|MeasureMode|DOP|Satellites|Differential)|XMP-folio:.*"
    # worked out from these by exiftool
    r"|Composite:GPS(LatitudeRef|LongitudeRef|Latitude|Longitude|Position)"
    # where exiftool found something, not what
    r"|SourceFile|System:.*|ExifTool:.*|MPImage2:MPImageStart|File:ExifByteOrder"
)
"""Tags that a photo is given, or that belong to its file."""


def read(*paths: Path, numbers: bool = True) -> Iterator[dict[str, Any]]:
    """All tags that exiftool finds, by group."""
    assert EXIFTOOL
    options = ["-a", "-G1", "-s", "-U", "-j", *(["-n"] if numbers else [])]
    run = subprocess.run([EXIFTOOL, *options, *map(str, paths)], capture_output=True, check=False)
    yield from json.loads(run.stdout)


def written(folder: Path, kind: str, **changes: Any) -> str:
    """Write to every file of an archive whose row says where it was taken."""
    rows = []
    for number, path in enumerate(sorted(each for each in folder.iterdir() if each.suffix.lower() != ".xmp")):
        lat_deg, lon_deg = PLACES.get(path.stem, (-33.5 - number / 100, -70.25 - number / 100))
        rows.append(geotag_row(path.name, str(folder), lat_deg=lat_deg, lon_deg=lon_deg, **changes))
    out = write_geotags(folder.parent / f"out-{kind}", rows)
    summary = run_writing(WriteRequest(out=out, kind=kind, dry_run=False, overwrite=True), SETTINGS)
    assert summary.run
    return summary.run


@pytest.mark.parametrize("kind", ["sidecar", "exif"])
def test_positions_are_right_in_every_hemisphere_and_over_the_date_line(tmp_path: Path, kind: str):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(PLACES):
        (folder / f"{name}.jpg").write_bytes(jpeg(number))

    written(folder, kind)

    files = [folder / (f"{name}.jpg" if kind == "exif" else f"{name}.jpg.xmp") for name in PLACES]
    found = dict(zip(PLACES, read(*files), strict=True))
    for name, (lat_deg, lon_deg) in PLACES.items():
        tags = found[name]
        for group in ["XMP-exif", *(["Composite"] if kind == "exif" else [])]:
            assert float(tags[f"{group}:GPSLatitude"]) == pytest.approx(lat_deg, abs=1e-6)
            assert float(tags[f"{group}:GPSLongitude"]) == pytest.approx(lon_deg, abs=1e-6)
        assert "ExifTool:Warning" not in tags
    if kind == "exif":
        for name, (lat_deg, lon_deg) in PLACES.items():
            tags = found[name]
            assert (tags["GPS:GPSLatitudeRef"], tags["GPS:GPSLongitudeRef"]) == ("SN"[lat_deg >= 0], "WE"[lon_deg >= 0])
            assert tags["GPS:GPSLatitude"] == pytest.approx(abs(lat_deg), abs=1e-6)


def test_everything_said_of_a_photo_is_read(tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "lund.jpg").write_bytes(jpeg())

    run = written(folder, "exif")
    written(folder, "sidecar")

    photo, sidecar = read(folder / "lund.jpg", folder / "lund.jpg.xmp")
    for tags, group in ((photo, "GPS"), (photo, "XMP-exif"), (sidecar, "XMP-exif")):
        assert tags[f"{group}:GPSMapDatum"] == "WGS-84"
        assert tags[f"{group}:GPSHPositioningError"] == 8.79
        assert tags[f"{group}:GPSProcessingMethod"] == "folio: visual place recognition"
    for tags in (photo, sidecar):
        assert tags["XMP-folio:Probability"] == pytest.approx(0.9688)
        assert tags["XMP-folio:Radius90"] == 12.5
        assert (tags["XMP-folio:Status"], tags["XMP-folio:MapVersion"]) == ("answered", 42)
        assert tags["XMP-folio:MatchedPhoto"] == 'old town/"1" <ö>.jpg'
    assert photo["XMP-folio:Run"] == Path(run).name


def test_a_merged_sidecar_says_what_it_said(tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "lund.jpg").write_bytes(jpeg())
    (folder / "lund.jpg.xmp").write_bytes(DARKTABLE)
    (before,) = read(folder / "lund.jpg.xmp")

    written(folder, "sidecar")

    (after,) = read(folder / "lund.jpg.xmp")
    assert others(before) == others(after)
    assert after["XMP-xmp:Rating"] == 4
    assert after["XMP-dc:Subject"] == ["Lund", "köksstol <3"]
    assert after["XMP-exif:GPSLatitude"] == pytest.approx(PLACES["lund"][0], abs=1e-6)


def others(tags: dict[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in tags.items() if not GIVEN.fullmatch(name)}


@pytest.fixture
def cameras(tmp_path: Path, shared_data: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in (shared_data / "exif").iterdir():
        if path.suffix not in (".md", ".csv"):
            shutil.copyfile(path, folder / path.name)
    return folder


def test_real_photos_keep_maker_notes_and_every_other_tag(cameras: Path):
    """All tags that exiftool finds in any group, unknown ones too, of the 70 files: only those that were given differ."""
    before, pixels = {tags["SourceFile"]: tags for tags in read(*sorted(cameras.iterdir()))}, content(cameras)

    run = written(cameras, "exif")

    after = {tags["SourceFile"]: tags for tags in read(*sorted(cameras.iterdir()))}
    changed = {name for name, data in content(cameras).items() if data != pixels[name]}
    assert len(pixels) == 70
    assert len(changed) >= 58
    for name in changed:
        path = str(cameras / name)
        assert others(after[path]) == others(before[path]), name
    notes = [
        name
        for name in changed
        if any("MakerNote" in tag or "Nikon" in tag or "Canon" in tag for tag in before[str(cameras / name)])
    ]
    assert len(notes) >= 10
    assert undo(run_folder(run, None)).left == []
    assert content(cameras) == pixels
