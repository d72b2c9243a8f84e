"""What must not be told stands in no output, and nothing is left anywhere else: on a small map, as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from infra.commits import read_head
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.geotag.decisions import apply_decisions
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from pipelines.geotag.regions import WITHHELD
from pipelines.query.opened_map import OpenedMap
from pipelines.report.page import write_report
from schemas.decisions import Decision, Decisions
from schemas.errors import CatalogError
from schemas.images import image_id
from schemas.manifest import encode_json

SETTINGS = Settings(threads=1)


@dataclass(frozen=True, kw_only=True)
class Town:
    map: Path
    queries: Path
    names: set[str]
    """Of the map's photos: file names and image ids."""
    plain: Path
    """Geotags without any of the options."""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    folder = tmp_path_factory.mktemp("town")
    write_sample_city(folder, places=8, queries=8, unmapped=1)
    run_build(BuildRequest(map_url=str(folder / "map"), photos=(str(folder / "database"),), device="cpu"), SETTINGS)
    storage = open_storage(str(folder / "map"), SETTINGS)
    images = OpenedMap(storage, read_head(storage)).positions(step=1)
    names = {path.name for path in (folder / "database").iterdir()} | {image_id(uri) for uri in images["uri"].to_pylist()}
    geotag(folder / "map", folder / "queries", folder / "plain")
    return Town(map=folder / "map", queries=folder / "queries", names=names, plain=folder / "plain")


def geotag(place: Path, queries: Path, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    run_geotag(GeotagRequest(map_url=str(place), photos=(str(queries),), out=str(out), device="cpu", **options), SETTINGS)
    return {row["uri"]: row for row in pq.read_table(out / "geotags.parquet").to_pylist()}


def told_in(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Every file of a folder, as values."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, [table.to_pylist(), {str(key): str(value) for key, value in (table.schema.metadata or {}).items()}]
        elif path.suffix in (".geojson", ".json"):
            yield path, json.loads(path.read_text())
        elif path.is_file():
            yield path, path.read_text(errors="replace")


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from (*texts(key), *texts(each))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str | bytes):
        yield value if isinstance(value, str) else value.decode(errors="replace")


def named_in(folder: Path, names: set[str]) -> set[str]:
    return {path.name for path, value in told_in(folder) for text in texts(value) if any(name in text for name in names)}


def points(value: Any) -> Iterator[tuple[float, float]]:
    """Every position that stands anywhere: longitude and latitude."""
    if isinstance(value, dict):
        for name, lat in value.items():
            if name.endswith("lat_deg") and lat is not None:
                yield value[name.replace("lat", "lon")], lat
        if value.get("xmin") is not None:
            yield value["xmin"], value["ymin"]
        if value.get("type") == "Point":
            yield tuple(value["coordinates"])
        for each in value.values():
            yield from points(each)
    elif isinstance(value, list):
        for each in value:
            yield from points(each)
    elif isinstance(value, bytes) and len(value) == 21:
        yield shapely.from_wkb(value).coords[0]


def placed_in(folder: Path, area: shapely.Polygon) -> set[str]:
    return {path.name for path, value in told_in(folder) for point in points(value) if area.covers(shapely.Point(point))}


@pytest.fixture(scope="module")
def home(town: Town, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, shapely.Polygon]:
    """A region round the place of about half of the answers."""
    rows = [row for row in pq.read_table(town.plain / "geotags.parquet").to_pylist() if row["lat_deg"] is not None]
    middle = float(np.median([row["lon_deg"] for row in rows]))
    area = shapely.box(middle, 54.0, middle + 1, 55.5)
    file = tmp_path_factory.mktemp("region") / "home.geojson"
    file.write_text(shapely.to_geojson(area))
    return file, area


def test_redacted_geotags_name_no_photo_of_the_map(town: Town, tmp_path: Path):
    found = geotag(town.map, town.queries, tmp_path / "out", redact=True)
    plain = {row["uri"]: row for row in pq.read_table(town.plain / "geotags.parquet").to_pylist()}

    assert named_in(town.plain, town.names) >= {"geotags.parquet", "results.parquet", "coverage.parquet", "geotags.geojson"}
    assert named_in(tmp_path / "out", town.names | {str(town.map.parent / "database")}) == set()
    for uri, row in found.items():
        assert {**plain[uri], "matched_uri": None, "matched_image_id": None} == row


def test_a_redacted_folder_can_be_reported_on_and_the_page_names_none_either(town: Town, tmp_path: Path):
    geotag(town.map, town.queries, tmp_path, redact=True)

    page = write_report(tmp_path, settings=SETTINGS).read_text()

    assert not any(name in page for name in town.names)


def test_where_no_answer_may_be_given_nothing_is_told(town: Town, home: tuple[Path, shapely.Polygon], tmp_path: Path):
    file, area = home
    found = geotag(town.map, town.queries, tmp_path, never_in=str(file))
    withheld = {uri for uri, row in found.items() if row["reason"] == WITHHELD}

    assert placed_in(town.plain, area) >= {
        "geotags.parquet",
        "results.parquet",
        "coverage.parquet",
        "geotags.geojson",
        "queries.parquet",
    }
    assert placed_in(tmp_path, area) == set()
    assert withheld
    assert any(row["status"] == "answered" for row in found.values())
    for uri in withheld:
        told = {name: value for name, value in found[uri].items() if value is not None}
        assert set(told) == {"query_id", "uri", "root", "status", "reason", "support", "pool_size", "taken_at"}
        assert (told["status"], told["support"], told["pool_size"]) == ("unknown", 0.0, 0)
    queries = {row["uri"]: row for row in pq.read_table(tmp_path / "queries.parquet").to_pylist()}
    assert all(queries[uri][name] is None for uri in withheld for name in ("lat_deg", "altitude_m", "heading_deg", "geometry"))
    assert write_report(tmp_path, settings=SETTINGS).exists()
    asked = {row["image_id"] for uri, row in queries.items() if uri in withheld}
    assert not asked & set(pq.read_table(tmp_path / "results.parquet")["query_id"].to_pylist())


def test_private_answers_are_nothing_that_a_later_run_starts_from_and_what_was_there_before_goes(
    town: Town, home: tuple[Path, shapely.Polygon], tmp_path: Path
):
    """Else the answers of a redacted run would be those of photos without candidates, for ever."""
    plain = {row["uri"]: row for row in pq.read_table(town.plain / "geotags.parquet").to_pylist()}
    file, area = home

    geotag(town.map, town.queries, tmp_path)
    geotag(town.map, town.queries, tmp_path, redact=True)
    assert named_in(tmp_path, town.names) == set()
    geotag(town.map, town.queries, tmp_path, never_in=str(file))
    assert placed_in(tmp_path, area) == set()
    assert geotag(town.map, town.queries, tmp_path) == plain


def test_what_may_not_be_told_is_not_told_by_a_decision_of_before(town: Town, home: tuple[Path, shapely.Polygon], tmp_path: Path):
    file, area = home
    withheld = {
        uri for uri, row in geotag(town.map, town.queries, tmp_path, never_in=str(file)).items() if row["reason"] == WITHHELD
    }
    found = geotag(town.map, town.queries, tmp_path)
    said = [Decision(query_id=row["query_id"], uri=uri, decision="accept") for uri, row in found.items() if row["lat_deg"]]
    (tmp_path / "saved.json").write_bytes(encode_json(Decisions(decisions=said)))
    apply_decisions(str(tmp_path), tmp_path / "saved.json", SETTINGS)

    again = geotag(town.map, town.queries, tmp_path, never_in=str(file))

    assert {each.uri for each in said} & withheld
    assert placed_in(tmp_path, area) - {"decisions.json"} == set()  # that file is the person's own
    assert {again[uri]["status"] for uri in withheld} == {"unknown"}
    assert {row["status"] for uri, row in again.items() if uri in {each.uri for each in said} - withheld} == {"accepted"}


@pytest.mark.parametrize("text", [None, "", "{}", '{"type": "Point", "coordinates": [2.7, 54.7]}'])
def test_a_region_that_cannot_be_read_stops_everything(town: Town, tmp_path: Path, text: str | None):
    file = tmp_path / "region.geojson"
    if text is not None:
        file.write_text(text)

    with pytest.raises(CatalogError, match=r"region.geojson: needed GeoJSON with polygons.+No photo was answered"):
        geotag(town.map, town.queries, tmp_path / "out", never_in=str(file))
    assert not (tmp_path / "out").exists()


def test_photos_leave_nothing_anywhere_but_in_the_folder_asked_for(town: Town, tmp_path: Path):
    """Home, temporary folder and current folder are watched, as are the map and the photos."""
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    watched = (tmp_path, town.map, town.queries)
    command = "from pipelines.cli import main; main(prog_name='folio')"
    before = seen(watched)
    done = subprocess.run(
        [sys.executable, "-c", command, "geotag", str(town.map), str(town.queries), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path / "here",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path / "tmp"),
            "FOLIO_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "geotags.parquet").exists()
    assert {path for path in seen(watched) - before if (tmp_path / "out") not in (path[0], *path[0].parents)} == set()


def seen(folders: tuple[Path, ...]) -> set[tuple[Path, int, int]]:
    return {
        (path, path.stat().st_size, path.stat().st_mtime_ns if path.is_file() else 0)
        for folder in folders
        for path in folder.rglob("*")
    }
