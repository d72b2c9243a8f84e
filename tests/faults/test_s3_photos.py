"""Photos in a bucket that is slow, fails and goes away during a build: none of them loses its place in the map."""

from pathlib import Path
from uuid import uuid4

import pytest

from infra import storage as storage_module
from infra.commits import list_versions
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import encode, prepare, run_build, survey
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from schemas.errors import StorageError
from tests.faults.ceph import Gateway
from tests.faults.conftest import SmallCity
from tests.faults.proxy import SHARES, Fault, Proxy, seeded


def photos_in_a_bucket(gateway: Gateway, small_city: SmallCity) -> tuple[str, int]:
    url = f"s3://maps/photos-{uuid4().hex}"
    bucket = open_storage(url, Settings(threads=1, s3_endpoint_url=gateway.endpoint))
    photos = sorted(small_city.photos.glob("*.jpg"))
    for photo in photos:
        bucket.put(photo.name, photo.read_bytes())
    return url, len(photos)


def build_of(photos: str, folder: Path) -> BuildRequest:
    partition = PartitionConfig(min_photos=4, pieces=6)
    return BuildRequest(recipe="tiny", map_url=str(folder / "map"), photos=(photos,), partition=partition)


def test_a_source_that_is_slow_and_fails_costs_no_photo(gateway: Gateway, small_city: SmallCity, tmp_path: Path):
    url, count = photos_in_a_bucket(gateway, small_city)
    with Proxy(gateway.endpoint, seeded(1, {**SHARES, Fault.STALL: 0.05})) as proxy:
        built = run_build(build_of(url, tmp_path), Settings(threads=2, s3_endpoint_url=proxy.endpoint))

    assert sum(proxy.faults.values()) > 5, "hardly anything went wrong: the test would prove nothing"
    assert (built.photos, built.rejected) == (count, {})


def test_a_source_that_goes_away_ends_the_run_and_the_next_one_goes_on(
    gateway: Gateway, small_city: SmallCity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not all photos as rejects: the map would lose them, or seem to."""
    monkeypatch.setattr(storage_module, "ATTEMPTS", 2)
    url, count = photos_in_a_bucket(gateway, small_city)
    request, away = build_of(url, tmp_path), list[str]()

    def fails(method: str, path: str) -> Fault | None:
        return Fault.ERROR_503 if away else None

    with Proxy(gateway.endpoint, fails) as proxy:
        settings = Settings(threads=1, s3_endpoint_url=proxy.endpoint)
        prepared = prepare(survey(request, settings), settings)
        away.append("all of it")
        with pytest.raises(StorageError, match=r"s3://maps.*could not read this.*run the same command again"):
            encode(prepared, settings)
        assert list_versions(prepared.storage) == []
        away.clear()
        after = run_build(request, settings)

    assert (after.photos, after.rejected) == (count, {})
