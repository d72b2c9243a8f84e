"""The whole job on a bucket: photos in S3, map in S3, results in S3."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.storage import open_storage
from pipelines.maintain.verify import verify
from tests.end_to_end.conftest import City, Ran


def test_photos_map_and_results_may_lie_in_a_bucket(
    city: City, folio: Callable[..., Ran], s3_endpoint: str, tmp_path: Path
) -> None:
    settings = Settings(threads=2, s3_endpoint_url=s3_endpoint)
    survey = open_storage("s3://maps/survey", settings)
    for photo in sorted(city.database.iterdir())[:12]:
        survey.put(photo.name, photo.read_bytes())
    here = {"AWS_ENDPOINT_URL": s3_endpoint}

    built = folio("build", "s3://maps/town", "s3://maps/survey", "--recipe", "tiny", "--json", env=here)
    again = folio("--endpoint", s3_endpoint, "build", "s3://maps/town", "s3://maps/survey", "--recipe", "tiny", "--json")
    tagged = folio("geotag", "s3://maps/town", "s3://maps/survey", "--out", "s3://maps/geotags", "--json", env=here)

    assert built.code == again.code == tagged.code == 0, built.err + again.err + tagged.err
    assert built.json()["photos"] == 12
    assert (again.json()["published"], again.json()["encoded"]) == (False, 0)
    assert tagged.json()["answered"] == 12
    assert verify(open_storage("s3://maps/town", settings)).problems == []
    found = json.loads(open_storage("s3://maps/geotags", settings).get("geotags.geojson"))
    assert {feature["properties"]["uri"].split("/")[-1] for feature in found["features"]} == {
        photo.name for photo in sorted(city.database.iterdir())[:12]
    }
    manifest = open_storage("s3://maps/town", settings).get("manifests/00000000000000000001.json").decode()
    assert "AKIA" not in manifest
    assert str(tmp_path.parents[1]) not in manifest


@pytest.mark.slow
def test_workers_on_ray_find_the_server_named_by_the_option(
    city: City, folio_process: Callable[..., Ran], s3_endpoint: str, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted(city.database.iterdir())[:8]:
        (photos / photo.name).write_bytes(photo.read_bytes())

    built = folio_process(
        "--endpoint", s3_endpoint, "build", "s3://maps/ray", photos, "--recipe", "tiny", "--workers", "ray", "--json"
    )

    assert built.code == 0, built.err
    assert built.json()["encoded"] == 8


def test_a_photo_that_changed_in_a_bucket_is_known_by_its_etag_and_encoded_alone(
    city: City, folio: Callable[..., Ran], s3_endpoint: str, tmp_path: Path
) -> None:
    survey = open_storage("s3://maps/changing", Settings(threads=2, s3_endpoint_url=s3_endpoint))
    photos = sorted(city.database.iterdir())[:5]
    for photo in photos[:4]:
        survey.put(photo.name, photo.read_bytes())
    arguments = ("build", tmp_path / "map", "s3://maps/changing", "--recipe", "tiny", "--json")
    here = {"AWS_ENDPOINT_URL": s3_endpoint}
    folio(*arguments, env=here)
    survey.put(photos[0].name, photos[4].read_bytes())

    changed = folio(*arguments, env=here).json()

    assert (changed["encoded"], changed["dropped"], changed["known"], changed["photos"]) == (1, 1, 3, 4)
