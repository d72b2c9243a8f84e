"""Machines whose clocks are hours apart share a map; a store that refuses one of them over it says which machine it is."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import botocore.auth
import pytest

from infra import storage as storage_module
from infra.commits import list_versions, read_head, read_manifest
from infra.leases import lease, live_leases
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.maintain.gc import gc
from pipelines.maintain.verify import verify
from pipelines.maintain.versions import rollback
from schemas.errors import StorageError
from tests.faults.ceph import Gateway
from tests.faults.conftest import SmallCity

SETTINGS = Settings(threads=1)


@contextmanager
def on_a_machine(hours: float) -> Iterator[None]:
    """Turn the clock of this machine, as far as Folio asks it; not that of the store."""

    class Turned(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    turned = SimpleNamespace(**{**vars(time), "time": lambda: time.time() + 3600 * hours})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("infra.commits", "infra.leases", "pipelines.maintain.status"):
            patch.setattr(f"{module}.datetime", Turned)
        for module in ("infra.leases", "pipelines.build.build", "pipelines.build.progress"):
            patch.setattr(f"{module}.time", turned)
        yield


def test_the_version_published_last_is_the_newest_whatever_the_clocks_say(small_city: SmallCity, tmp_path: Path):
    request, place = small_city.request(str(tmp_path / "map")), open_storage(str(tmp_path / "map"), SETTINGS)
    with on_a_machine(hours=1):
        run_build(request, SETTINGS)
    with on_a_machine(hours=-1):
        rollback(place, 1)
        assert run_build(request, SETTINGS).published is False
        (small_city.photos / "one more.jpg").write_bytes(next(small_city.photos.glob("*.jpg")).read_bytes())
        try:
            later = run_build(request, SETTINGS)
        finally:
            (small_city.photos / "one more.jpg").unlink()

    versions = list_versions(place)
    assert later.version == read_head(place).version == versions[-1]
    assert read_manifest(place, versions[0]).created_at > read_head(place).created_at, "the clocks were not turned"
    assert verify(place).problems == []


@pytest.mark.parametrize("hours", [-200.0, -1.0, 1.0, 200.0])
def test_gc_on_a_machine_with_a_wrong_clock_sees_who_is_at_work_and_takes_nothing_young(
    small_city: SmallCity, tmp_path: Path, hours: float
):
    """By the machine's own clock all of the map would be eight days old, or of tomorrow."""
    place = open_storage(str(tmp_path / "map"), SETTINGS)
    with on_a_machine(hours=-hours):
        run_build(small_city.request(str(tmp_path / "map")), SETTINGS)
    left_over = "segments/left/over/images.parquet"
    place.put(left_over, b"of a killed worker")
    with on_a_machine(hours=-hours), lease(place, run_id="r1", action="build") as held:
        with on_a_machine(hours):
            assert [one.run_id for one in live_leases(place)] == ["r1"]
            collected = gc(place, delete=True)
        held.require()

    assert (collected.paths, collected.at_work) == ([], ["r1"])
    place.delete(left_over)
    small_city.check(place)


@pytest.mark.parametrize(("hours", "way"), [(1, "ahead of"), (-1, "behind")])
def test_a_store_that_refuses_a_wrong_clock_is_no_riddle(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, hours: float, way: str
):
    storage = open_storage(f"s3://maps/{uuid4().hex}", Settings(threads=1, s3_endpoint_url=gateway.endpoint))
    storage.put("there", b"")
    signed_at, now, turn = botocore.auth.get_current_datetime, storage_module._now, timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *args, **kwargs: signed_at(*args, **kwargs) + turn)
    monkeypatch.setattr(storage_module, "_now", lambda: now() + turn)

    said = rf"the clock of this machine, {platform.node()}, is 60 minutes {way} that of the store\..* Set it right"
    for ask in (lambda: storage.put("a", b""), lambda: storage.get("there"), lambda: storage.info("there")):
        with pytest.raises(StorageError, match=said):
            ask()


def test_a_refusal_with_the_right_clock_says_nothing_of_clocks(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    storage = open_storage(f"s3://maps/{uuid4().hex}", Settings(threads=1, s3_endpoint_url=gateway.endpoint))

    with pytest.raises(StorageError, match="Check space, permissions and connection") as caught:
        storage.put("a", b"")
    assert "clock" not in str(caught.value)
