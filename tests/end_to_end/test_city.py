"""The main job on the sample city: build, query, geotag, evaluate, report; and what repeating and changing it does."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.commits import read_head, read_version
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.membership import live_rows
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from pipelines.evaluate.evaluate import run_evaluation
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from pipelines.ivfpq import IndexConfig
from pipelines.maintain.verify import verify
from pipelines.maintain.versions import rollback, versions
from tests.end_to_end.conftest import City, Ran


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def segment_content(folder: Path) -> dict[str, str]:
    """Files of all segments without the name of the attempt, which differs from run to run."""
    return {
        "/".join([*parts[:2], *parts[3:]]): digest
        for name, digest in files_of(folder).items()
        if (parts := name.split("/"))[0] == "segments"
    }


def test_every_photo_of_the_city_is_in_the_map(city: City) -> None:
    photos = len(list(city.database.iterdir()))

    assert city.built.photos == city.built.encoded == photos
    assert city.built.rejected == {}
    assert verify(open_storage(str(city.map), Settings(threads=1))).problems == []


def test_the_same_build_again_changes_no_byte(city: City, settings: Settings) -> None:
    before = files_of(city.map)

    again = run_build(BuildRequest(recipe="tiny", map_url=str(city.map), photos=(str(city.database),)), settings)

    assert not again.published
    assert again.encoded == 0
    assert files_of(city.map) == before


def test_a_photo_of_the_map_finds_itself_and_its_place(city: City, settings: Settings, tmp_path: Path) -> None:
    """Seeded weights have seen no photo, so this is the most that can be promised of them: the same pixels, the same place."""
    queries = tmp_path / "queries"
    queries.mkdir()
    for photo in sorted(city.database.iterdir())[::22]:
        shutil.copy(photo, queries)

    summary = run_geotag(GeotagRequest(map_url=str(city.map), photos=(str(queries),), out=str(tmp_path / "out")), settings)
    metrics = run_evaluation(str(tmp_path / "out"), radius_m=25.0, settings=settings)

    values = {(row["metric"], row["stage"], row["at"]): row["value"] for row in metrics.to_pylist()}
    assert summary.answered == summary.photos == 12
    assert values["recall", "global", 1.0] == values["recall", "reranked", 1.0] == 1.0
    assert values["position_error", "geotag", 95.0] < 10
    assert not summary.trained
    assert json.loads(pq.read_metadata(tmp_path / "out" / "geotags.parquet").metadata[b"folio"])["trained"] is False


def test_the_answer_does_not_depend_on_how_photos_were_cut(city: City, settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "other"
    request = BuildRequest(
        recipe="tiny",
        map_url=str(other),
        photos=(str(city.database),),
        partition=PartitionConfig(max_photos=23, min_photos=1),
        index=IndexConfig(shard_photos=100),
    )
    built = run_build(request, settings)
    assert built.shards > city.built.shards
    assert built.segments > city.built.segments
    queries = tmp_path / "queries"
    queries.mkdir()
    for photo in sorted(city.queries.iterdir())[:12]:
        shutil.copy(photo, queries)

    for name, place in (("one", city.map), ("two", other)):
        run_geotag(GeotagRequest(map_url=str(place), photos=(str(queries),), out=str(tmp_path / name)), settings)

    one, two = (pq.read_table(tmp_path / name / "results.parquet") for name in ("one", "two"))
    assert one.equals(two)


def test_backfill_adds_photos_and_touches_nothing_else(city: City, settings: Settings, tmp_path: Path) -> None:
    names = sorted(city.database.iterdir())
    first, second = tmp_path / "drives" / "first", tmp_path / "drives" / "second"
    for folder, photos in ((first, names[:256]), (second, names[256:])):
        folder.mkdir(parents=True)
        for photo in photos:
            shutil.copy(photo, folder)
    place = tmp_path / "map"
    run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(first),)), settings)
    before, old = files_of(place), read_head(open_storage(str(place), settings))

    summary = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(second),), mode="backfill"), settings)

    after, new = files_of(place), read_head(open_storage(str(place), settings))
    assert summary.photos == len(names)
    assert before.items() <= after.items()
    assert [segment for segment in new.segments if segment in old.segments] == old.segments
    assert [shard for shard in new.index.shards if shard in old.index.shards] == old.index.shards
    assert new.index.quantizer == old.index.quantizer


def test_a_build_drops_vanished_photos_without_the_network(city: City, settings: Settings, tmp_path: Path) -> None:
    database, place = tmp_path / "database", tmp_path / "map"
    shutil.copytree(city.database, database)
    run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(database),)), settings)
    gone = sorted(database.iterdir())[::60]
    for photo in gone:
        photo.unlink()

    summary = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(database),)), settings)

    head = read_head(open_storage(str(place), settings))
    assert summary.encoded == 0
    assert summary.dropped == len(gone)
    assert sum(int(live_rows(entry).sum()) for entry in head.segments) == summary.photos == len(list(database.iterdir()))
    assert head.index.shards == read_version(open_storage(str(place), settings), 1).index.shards  # readers pass over them

    back = rollback(open_storage(str(place), settings), 1)
    assert back.version == 3
    assert back.content_id == versions(open_storage(str(place), settings))[0].content_id


def test_twenty_photos_make_a_map_too(city: City, settings: Settings, tmp_path: Path) -> None:
    """Too few to train a quantizer: the index is flat, and the manifest says so."""
    database = tmp_path / "database"
    database.mkdir()
    for photo in sorted(city.database.iterdir())[:20]:
        shutil.copy(photo, database)

    run_build(BuildRequest(recipe="tiny", map_url=str(tmp_path / "map"), photos=(str(database),)), settings)

    head = read_head(open_storage(str(tmp_path / "map"), settings))
    assert (head.index.kind, head.index.quantizer) == ("flat", None)
    out = tmp_path / "out"
    run_geotag(GeotagRequest(map_url=str(tmp_path / "map"), photos=(str(database),), out=str(out)), settings)
    first = pq.read_table(out / "results.parquet", filters=[("rank", "=", 1)])
    assert first["uri"].to_pylist() == pq.read_table(out / "queries.parquet")["uri"].to_pylist()


def test_bad_photos_are_set_aside_and_the_good_ones_are_not_affected(city: City, settings: Settings, tmp_path: Path) -> None:
    database = tmp_path / "database"
    shutil.copytree(city.database, database)
    for extra in sorted(database.iterdir())[60:]:
        extra.unlink()
    request = BuildRequest(
        recipe="tiny", map_url=str(tmp_path / "clean"), photos=(str(database),), partition=PartitionConfig(min_photos=500)
    )
    run_build(request, settings)
    good = sorted(database.iterdir())
    whole = good[0].read_bytes()
    (database / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (database / "empty.jpg").write_bytes(b"")
    (database / "text.jpg").write_text("not a picture")

    summary = run_build(
        BuildRequest(
            recipe="tiny", map_url=str(tmp_path / "map"), photos=(str(database),), partition=PartitionConfig(min_photos=500)
        ),
        settings,
    )

    assert summary.photos == 60
    assert summary.rejected == {"truncated": 1, "empty-file": 1, "not-an-image": 1}
    rejects = pq.read_table(next((tmp_path / "map" / "runs").rglob("rejects.parquet")))
    assert sorted(rejects["uri"].to_pylist()) == ["database/empty.jpg", "database/half.jpg", "database/text.jpg"]
    clean, mixed = (
        {name.split("/")[-1]: digest for name, digest in segment_content(tmp_path / place).items() if "rejects" not in name}
        for place in ("clean", "map")
    )
    assert clean == mixed


def test_the_readme_opens_a_map_without_our_code(city: City) -> None:
    """In a process of its own, where no part of Folio is imported: the photo is found by its own descriptor."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippet
    program = snippet[1].replace("lund.map", str(city.map)) + (
        "first_id = next(m['first_id'] for m in shard['segments'] if m['segment_id'] == segment['segment_id'])\n"
        "print(len(images) == len(descriptors) == local.shape[0], first_id in ids[0])\n"
    )

    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)

    assert ran.stdout.split() == ["True", "True"], ran.stderr


def test_the_map_opens_without_our_code(city: City) -> None:
    """pyarrow, zarr, faiss and GeoPandas alone: the numbers of a photo, and the photo found by its own descriptor."""
    import faiss
    import geopandas
    import zarr

    manifest = json.loads(max((city.map / "manifests").iterdir()).read_text())
    entry = manifest["segments"][0]
    folder = city.map / "segments" / entry["segment_id"] / entry["attempt"]
    frame = geopandas.read_parquet(folder / "images.parquet")
    descriptors = np.stack(pq.read_table(folder / "descriptors.parquet")["descriptor"].to_numpy(zero_copy_only=False)).astype(
        "f4"
    )
    local = zarr.open_array(folder / "local_features.zarr", mode="r")
    assert frame.crs.to_epsg() == 4326 or frame.crs.to_string() == "OGC:CRS84"
    assert len(frame) == len(descriptors) == local.shape[0] == entry["rows"]
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=2e-3)
    photo, is_feature = local[0], local[0][:, -1] == 1
    codes, patch, reliability = photo[is_feature, :-4].view("i1"), photo[is_feature, -4:-2], photo[is_feature, -2]
    assert local.attrs["precision"] == "int8"
    assert codes.shape == (103, 128)
    assert (np.abs(codes).max(axis=1) == 127).all()
    assert (patch.max(), reliability.max()) == (15, 255)
    assert not photo[~is_feature].any()

    index = manifest["index"]
    quantizer = faiss.read_index(str(city.map / index["quantizer"]["path"]))
    shard_entry = next(s for s in index["shards"] if entry["segment_id"] in [m["segment_id"] for m in s["segments"]])
    shard = faiss.read_index(str(city.map / shard_entry["file"]["path"]))
    shard.nprobe = index["parameters"]["nprobe"]
    first_id = next(m["first_id"] for m in shard_entry["segments"] if m["segment_id"] == entry["segment_id"])
    _, ids = shard.search(quantizer.chain.at(0).apply(descriptors[:5]), 10)
    assert all(first_id + row in ids[row] for row in range(5))


def test_the_command_line_does_the_whole_job(city: City, folio_process: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "out"
    query = min(city.queries.iterdir())

    asked = folio_process("query", city.map, query, "--json")
    evaluated = folio_process("evaluate", city.map, city.queries, "--radius-m", "25", "--out", out)
    reported = folio_process("report", out)

    assert asked.code == 0
    assert asked.json()["answers"][0]["uri"].endswith(query.name)
    assert asked.json()["trained"] is False
    assert evaluated.code == 0, evaluated.err
    assert "R@1:" in evaluated.out
    assert "untrained" in evaluated.out
    assert reported.code == 0, reported.err
    assert "untrained" in (out / "report.html").read_text()
    assert evaluated.err == ""  # no progress bar where there is no terminal


def test_an_evaluation_decides_on_each_photo_alone_when_asked(city: City, folio: Callable[..., Ran], tmp_path: Path) -> None:
    for options in ((), ("--alone",)):
        assert folio("evaluate", city.map, city.queries, "--out", tmp_path / "out", *options).code == 0
        sequences = set(pq.read_table(tmp_path / "out" / "geotags.parquet")["sequence_id"].to_pylist())
        assert (sequences == {None}) == bool(options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", "{tmp}/map", "{tmp}/nowhere"), "nowhere"),
        (("build", "{tmp}/map", "{tmp}/empty"), "empty"),
        (("query", "{tmp}/nomap", "{photo}"), "no map"),
        (("geotag", "{tmp}/nomap", "{photo}", "--out", "{tmp}/out"), "no map"),
        (("versions", "{tmp}/nomap"), "no map"),
        (("verify", "{tmp}/nomap"), "no map"),
        (("rollback", "{map}", "77"), "77"),
        (("build", "{tmp}/map", "{tmp}/bad.csv"), "bad.csv"),
        (("build", "{tmp}/map", "{photo}", "--recipe", "resnet"), "resnet"),
        (("build", "{tmp}/map", "{photo}", "--recipe", "fol_vits14"), "--weights"),
        (("report", "{tmp}/empty"), "empty"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], says: str, city: City, folio: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    before = files_of(tmp_path)
    photo = min(city.database.iterdir())

    ran = folio(*(argument.format(tmp=tmp_path, photo=photo, map=city.map) for argument in arguments))

    assert ran.code == 1
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""
    assert files_of(tmp_path) == before
