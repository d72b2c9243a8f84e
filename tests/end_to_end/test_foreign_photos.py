"""Photos of anything else than a place of the map get no position, although the map is too small to prove what it promises."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.geotag.geotag import GeotagRequest, run_geotag

SHARED = Path(__file__).parents[3] / "shared/data"
SETTINGS = Settings(threads=2)


@pytest.mark.skipif(not (SHARED / "exif").is_dir(), reason="no photos in ../shared/data")
def test_cameras_test_pictures_were_not_taken_in_lund(tmp_path: Path):
    lund = sorted((SHARED / "street/lund").glob("*.jpg"))
    for folder, photos in (
        ("database", lund[1::2]),
        ("walk", lund[::6]),
        ("foreign", sorted((SHARED / "exif").glob("*.jpg"))[::2]),
    ):
        (tmp_path / folder).mkdir()
        for photo in photos:
            (tmp_path / folder / photo.name).symlink_to(photo)
    place = str(tmp_path / "map")
    run_build(BuildRequest(map_url=place, photos=(str(tmp_path / "database"),), device="cpu"), SETTINGS)

    run_geotag(GeotagRequest(map_url=place, photos=(str(tmp_path),), out=str(tmp_path / "out"), device="cpu"), SETTINGS)

    rows = pq.read_table(tmp_path / "out" / "geotags.parquet").to_pylist()
    answered = {
        folder: [row["status"] == "answered" for row in rows if f"/{folder}/" in row["uri"]] for folder in ("walk", "foreign")
    }
    assert len(answered["foreign"]) > 20
    assert not any(answered["foreign"])
    assert sum(answered["walk"]) >= len(answered["walk"]) - 1 >= 3
