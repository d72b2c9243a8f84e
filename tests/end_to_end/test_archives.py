"""Archives as people keep them, through the commands: what lies in tars is built into maps and answered as it is from folders."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.end_to_end.conftest import City, Ran


def in_tars(folder: Path, target: Path, *, shards: int) -> Path:
    """The photos of a folder, dealt out to tars, in a folder that may not be written to."""
    target.mkdir()
    for shard in range(shards):
        with tarfile.open(target / f"shard-{shard:04}.tar", "w", dereference=True) as tar:
            for photo in sorted(folder.iterdir())[shard::shards]:
                tar.add(photo, arcname=f"./{photo.name}")
    target.chmod(0o555)
    return target


def geotags(folio: Callable[..., Ran], city: City, photos: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Geotag photos, each for itself, as those of one folder lie in several tars: what is said of each, by file name."""
    ran = folio("geotag", city.map, photos, "--out", out, "--alone")
    assert ran.code == 0, ran.err
    dropped = ["query_id", "uri", "root"]
    table = pq.read_table(out / "geotags.parquet")
    names = [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()]
    return dict(zip(names, table.drop_columns(dropped).to_pylist(), strict=True))


def test_photos_in_tars_get_the_answers_they_get_in_a_folder(city: City, folio: Callable[..., Ran], tmp_path: Path):
    from_folder = geotags(folio, city, city.queries, tmp_path / "from folder")
    from_tars = geotags(folio, city, in_tars(city.queries, tmp_path / "tars", shards=3), tmp_path / "from tars")

    assert from_tars == from_folder
    assert len(from_tars) == 16


def test_a_map_of_tars_is_built_once_and_follows_them(city: City, folio: Callable[..., Ran], tmp_path: Path):
    few = tmp_path / "few"
    few.mkdir()
    for photo in sorted(city.database.iterdir())[:12]:
        (few / photo.name).symlink_to(photo)
    tars = in_tars(few, tmp_path / "tars", shards=2)

    first = folio("build", tmp_path / "map", tars, "--recipe", "tiny", "--json").json()
    again = folio("build", tmp_path / "map", tars, "--recipe", "tiny", "--json").json()

    assert (first["encoded"], again["encoded"], again["version"]) == (12, 0, first["version"])
    (images,) = (tmp_path / "map").glob("segments/*/*/images.parquet")
    assert {uri.partition("/")[0] for uri in pq.read_table(images)["uri"].to_pylist()} == {"tars"}
