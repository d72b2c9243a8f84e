"""kill -9 at random points of every job that changes a map, then the same command again: nothing lost, doubled or dangling."""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from infra.commits import list_versions, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.engine.partition import PartitionConfig
from pipelines.ivfpq import IndexConfig
from pipelines.maintain.verify import verify
from pipelines.query.opened_map import OpenedMap
from schemas.manifest import Manifest
from tests.faults.ceph import Gateway
from tests.faults.profile import record, rounds
from tests.faults.victim import Death, Job, die_of, end_leases, operations_of

MOMENTS = ("before", "during", "after")
ACTIONS = ("build", "backfill", "takedown", "purge", "gc")
"""`purge` is the build after a takedown."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A job, the map it finds, and what it makes of it when nothing disturbs it."""

    job: Job
    before: dict[str, bytes]
    """Path -> bytes."""
    operations: int
    after: Manifest
    versions: list[int]
    photos: list[str]
    """Image ids."""


def objects(storage: Storage) -> dict[str, bytes]:
    return {info.path: storage.get(info.path) for info in storage.list()}


def lay_out(storage: Storage, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        storage.put(path, data)


def photos_of(storage: Storage) -> list[str]:
    ids: list[str] = OpenedMap(storage, read_head(storage)).positions()["image_id"].to_pylist()
    return sorted(ids)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """Every job, done once undisturbed on disk."""
    folder = tmp_path_factory.mktemp("kills")
    write_sample_city(folder, places=9, queries=2, unmapped=0)
    city = folder / "database"
    some, more = folder / "some" / "database", folder / "more" / "database"
    for number, photo in enumerate(sorted(path for path in city.rglob("*") if path.is_file())):
        to = (some if number % 3 else more) / photo.relative_to(city)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(photo.read_bytes())
    request = BuildRequest(
        recipe="tiny",
        map_url="",
        photos=(),
        partition=PartitionConfig(min_photos=4, pieces=6),
        index=IndexConfig(),
    )
    jobs = {name: Job(action="build" if name == "purge" else name, photos=some, request=request) for name in ACTIONS}
    jobs["backfill"] = replace(jobs["backfill"], photos=more)
    found: dict[str, Scene] = {}
    stage = {}
    for name, start in (("build", None), ("backfill", "build"), ("takedown", "backfill"), ("purge", "takedown"), ("gc", "purge")):
        place = folder / name / "map"
        storage = open_storage(str(place), Settings(threads=1))
        before = stage.get(start, {})
        lay_out(storage, before)
        if name == "takedown":
            jobs[name] = replace(jobs[name], image_ids=frozenset(photos_of(storage)[::9]))
        operations = operations_of(jobs[name].on(str(place)))
        stage[name] = objects(storage)
        found[name] = Scene(
            job=jobs[name],
            before=before,
            operations=operations,
            after=read_head(storage),
            versions=list_versions(storage),
            photos=photos_of(storage),
        )
    return found


def broken_promises(storage: Storage, scene: Scene) -> list[str]:
    """Compare the map after a death and the same command again with what an undisturbed run leaves."""
    head = read_head(storage)
    found = photos_of(storage)
    checks = {
        "photos lost": set(scene.photos) <= set(found),
        "photos doubled": max(Counter(found).values()) == 1,
        "photos that should be gone": set(found) <= set(scene.photos),
        "dangling or damaged": not verify(storage).problems,
        "another content": head.content_id == scene.after.content_id,
        "versions published twice": list_versions(storage) == scene.versions,
    }
    return [promise for promise, kept in checks.items() if not kept]


def kill_again_and_again(scenes: dict[str, Scene], places: list[str], kills: int, what: str, endpoint: str | None = None) -> None:
    """Kill jobs in turn, each once or twice before it may finish, at moments spread evenly over its operations on the store."""
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    start, random, done, broken = time.monotonic(), np.random.default_rng(20261121), Counter[str](), []
    for number, place in enumerate(places):
        name = ACTIONS[number % len(ACTIONS)]
        scene = scenes[name]
        job = replace(scene.job, endpoint=endpoint, environment=credentials).on(place)
        storage = open_storage(place, job.settings)
        lay_out(storage, scene.before)
        for _ in range(int(random.integers(1, 3))):
            death = Death(operation=int(random.integers(scene.operations)), moment=MOMENTS[random.integers(len(MOMENTS))])
            if die_of(job, death):
                done[name] += 1
            end_leases(storage)
        job.run()
        if faults := broken_promises(storage, scene):
            broken.append(f"{place}: {name}, {death}: {', '.join(faults)}")
        if done.total() >= kills:
            break
    record(what, rounds=done.total(), failures=len(broken), seconds=time.monotonic() - start, note=str(dict(done)))
    assert not broken, "\n".join(broken)
    assert done.total() >= kills


@pytest.mark.timeout(3600)
def test_jobs_killed_at_any_moment_and_run_again_leave_what_an_undisturbed_run_leaves(scenes: dict[str, Scene], tmp_path: Path):
    kills = rounds(quick=10, full=150)

    kill_again_and_again(scenes, [str(tmp_path / str(n) / "map") for n in range(2 * kills)], kills, "kill -9, disk")


@pytest.mark.timeout(3600)
def test_jobs_killed_at_any_moment_on_s3_too(scenes: dict[str, Scene], gateway: Gateway):
    kills = rounds(quick=5, full=100)

    kill_again_and_again(scenes, [f"s3://maps/kills/{n}" for n in range(2 * kills)], kills, "kill -9, S3", gateway.endpoint)
