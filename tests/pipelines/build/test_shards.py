"""Shards are the same bytes whoever makes them, and a run that was killed goes on with those it had made.

A store in a folder, six segments of a hundred photos, a shard of each; threads, and a real Ray cluster.
"""

from pathlib import Path

import numpy as np
import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines import ivfpq
from pipelines.build import shards as shards_module
from pipelines.build.index import build_index
from pipelines.build.membership import StoredSegment
from pipelines.build.shards import make_here
from pipelines.build.shards_on_ray import make_on_ray
from pipelines.ivfpq import IndexConfig
from pipelines.maintain.verify import Problem, _check_documents
from schemas.manifest import IndexEntry
from tests.pipelines.build.stored_segments import DIM, all_of, stored_of, write_segment

CONFIG = IndexConfig(seed=1, shard_photos=100)
RUN = "0011223344556677"

Stored = dict[str, StoredSegment]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "town.map"), Settings(threads=2))


@pytest.fixture
def stored(storage: Storage) -> Stored:
    names = [f"{number:024x}" for number in range(6)]
    return stored_of(*(write_segment(storage, name, range(100 * n, 100 * n + 100)) for n, name in enumerate(names)))


def index(storage: Storage, stored: Stored, **how: object) -> IndexEntry:
    return build_index(storage, stored, all_of(stored), None, descriptor_dim=DIM, config=CONFIG, extend=False, **how)


def contents(entry: IndexEntry) -> list[tuple[str, int, list[str]]]:
    """What an index is, wherever it lies."""
    return [(shard.file.sha256, shard.rows, [member.segment_id for member in shard.segments]) for shard in entry.shards]


def test_threads_and_ray_make_the_same_bytes(storage: Storage, stored: Stored):
    alone = index(storage, stored)

    side_by_side = index(storage, stored, make_shards=make_here(storage, 2))
    on_ray = index(storage, stored, make_shards=make_on_ray(storage.url, Settings(threads=2)))

    assert len(alone.shards) == 6
    assert contents(alone) == contents(side_by_side) == contents(on_ray)
    assert alone.quantizer is not None
    assert on_ray.quantizer is not None
    assert alone.quantizer.sha256 == on_ray.quantizer.sha256


def test_a_run_that_was_killed_makes_only_what_it_had_not_made(storage: Storage, stored: Stored, monkeypatch: pytest.MonkeyPatch):
    made, trained = [], []
    make_shard, train_quantizer = ivfpq.make_shard, ivfpq.train_quantizer

    def dies_at_the_third_shard(*args: object) -> bytes:
        if len(made) == 3:  # the first was made to tune the search
            raise KeyboardInterrupt
        made.append(make_shard(*args))
        return made[-1]

    def counted(*args: object) -> bytes:
        trained.append(train_quantizer(*args))
        return trained[-1]

    monkeypatch.setattr(shards_module.ivfpq, "make_shard", dies_at_the_third_shard)
    monkeypatch.setattr(ivfpq, "train_quantizer", counted)
    with pytest.raises(KeyboardInterrupt):
        index(storage, stored, run_id=RUN)
    left = {info.path for info in storage.list("indexes")}

    monkeypatch.setattr(shards_module.ivfpq, "make_shard", lambda *args: (made.append(make_shard(*args)), made[-1])[1])
    again = index(storage, stored, run_id=RUN)

    assert (len(made), len(trained)) == (1 + 6, 1)
    paths = {shard.file.path for shard in again.shards} | ({again.quantizer.path} if again.quantizer else set())
    assert not paths & left, "a process of a run owns all that it names"
    assert contents(again) == contents(index(storage, stored))


def test_what_was_made_and_then_removed_or_damaged_is_made_again(storage: Storage, stored: Stored):
    first = index(storage, stored, run_id=RUN)
    storage.delete(first.shards[0].file.path)
    storage.put(first.shards[1].file.path, b"x" * first.shards[1].file.size_bytes)
    receipts = [info.path for info in storage.list(f"runs/{RUN}")]
    assert len(receipts) == 7
    storage.put(receipts[-1], b"{}")

    assert contents(index(storage, stored, run_id=RUN)) == contents(first)


def test_other_photos_of_the_same_run_are_not_taken_for_these(storage: Storage, stored: Stored):
    """As after a takedown while the run was interrupted."""
    index(storage, stored, run_id=RUN)
    name = min(stored)
    fewer = all_of(stored)
    fewer[name] = np.arange(100) >= 50

    found = build_index(storage, stored, fewer, None, descriptor_dim=DIM, config=CONFIG, extend=False, run_id=RUN)

    assert sum(shard.rows for shard in found.shards) == 550


def test_verify_reads_the_receipts_of_an_index(storage: Storage, stored: Stored):
    index(storage, stored, run_id=RUN)
    problems: list[Problem] = []
    listed = {info.path: info.size_bytes for info in storage.list(f"runs/{RUN}")}

    assert _check_documents(storage, listed, problems) == 7
    assert problems == []
    storage.put(min(listed), b"{}")
    _check_documents(storage, listed, problems)
    assert len(problems) == 1
