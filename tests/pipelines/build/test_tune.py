"""How a map is searched is chosen by measuring, and what is promised of it is kept.

Descriptors of 64 numbers about a few hundred places, of which codes of some bytes lose some neighbours.
"""

from collections.abc import Iterable
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest
from jaxtyping import Float32, Int64

from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines import ivfpq
from pipelines.build import tune as tuning_module
from pipelines.build.drift import outcome, reason_to_train
from pipelines.build.index import build_index
from pipelines.build.tune import NEIGHBOURS, USUAL_REFINED, require_recall, settled, tune
from pipelines.ivfpq import IndexConfig, IvfPqParameters, ShardSearcher
from schemas.errors import PlanError
from schemas.manifest import IndexEntry
from tests.pipelines.build.stored_segments import DIM as STORED_DIM
from tests.pipelines.build.stored_segments import all_of, manifest_of, stored_of, write_segment

DIM = 64
CONFIG = IndexConfig(seed=3, pca_photos=256)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


def photos_of(count: int, seed: int) -> Float32[np.ndarray, "n 64"]:
    """Make photos of 400 places; another seed makes other photos of the same places."""
    places = np.random.default_rng(0).standard_normal((400, DIM))
    rng = np.random.default_rng(seed)
    photos = places[rng.integers(0, 400, count)] + 0.8 * rng.standard_normal((count, DIM))
    return (photos / np.linalg.norm(photos, axis=1, keepdims=True)).astype(np.float32)


def parameters(code_bytes: int, nlist: int = 64) -> IvfPqParameters:
    return IvfPqParameters(pca_dim=4 * code_bytes, nlist=nlist, code_bytes=code_bytes, nprobe=nlist)


def recall(quantizer: bytes, photos: np.ndarray, queries: np.ndarray, *, nprobe: int, refined: int) -> float:
    """Search a whole map: the share of the exact neighbours among those that would be refined."""
    shard = ivfpq.make_shard(quantizer, DIM, [(photos, np.arange(len(photos)))])
    hits = ShardSearcher(quantizer, nprobe, [shard]).search(queries, refined)
    exact = np.argsort(-(queries @ photos.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    return _share(exact, ([photo for _, _, photo in row] for row in hits))


def _share(exact: Int64[np.ndarray, "q n"], found: Iterable[list[int]]) -> float:
    return float(np.mean([len(set(row.tolist()) & set(hits)) / len(row) for row, hits in zip(exact, found, strict=True)]))


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return photos_of(4_096, seed=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return photos_of(128, seed=2)


@pytest.fixture(scope="module")
def quantizer(photos: np.ndarray) -> bytes:
    ivfpq.use_threads(1)
    return ivfpq.train_quantizer(photos, parameters(4), CONFIG)


def test_what_is_measured_on_a_whole_map_is_what_a_search_of_it_finds(
    photos: np.ndarray, queries: np.ndarray, quantizer: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tuning_module, "LEAST_PROBED", 8)

    found = tune(quantizer, photos, queries, parameters=parameters(4), photos=len(photos), config=replace(CONFIG, recall=0.9))

    assert {(trial.nprobe, trial.refined) for trial in found.tried} == {
        (nprobe, refined) for nprobe in (8, 16, 32, 64) for refined in (200, 400, 800, 1600, 3200)
    }
    for trial in found.tried:
        really = recall(quantizer, photos, queries, nprobe=trial.nprobe, refined=trial.refined)
        assert trial.recall == pytest.approx(really, abs=2e-3)  # rank 200 of 200 counts as beyond


def test_looking_at_more_never_finds_less(
    photos: np.ndarray, queries: np.ndarray, quantizer: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tuning_module, "LEAST_PROBED", 8)

    tried = tune(
        quantizer, photos, queries, parameters=parameters(4), photos=len(photos), config=replace(CONFIG, recall=0.9)
    ).tried

    for one in tried:
        for other in tried:
            if one.nprobe == other.nprobe and one.refined <= other.refined:
                assert one.recall <= other.recall


def test_the_cheapest_way_that_finds_enough_is_chosen(photos: np.ndarray, queries: np.ndarray, quantizer: bytes):
    asked = replace(CONFIG, recall=0.9)

    found = tune(quantizer, photos, queries, parameters=parameters(4), photos=len(photos), config=asked)

    assert found.chosen.recall >= 0.9
    cheaper = [trial for trial in found.tried if trial.refined < found.chosen.refined]
    assert cheaper
    assert all(trial.recall < 0.9 for trial in cheaper)
    require_recall(found, photos, queries, parameters=parameters(4), photos=len(photos), config=asked)


def test_without_being_asked_no_more_than_usual_is_refined(photos: np.ndarray, queries: np.ndarray):
    trained = ivfpq.train_quantizer(photos, parameters(2), CONFIG)

    found = tune(trained, photos, queries, parameters=parameters(2), photos=len(photos), config=CONFIG)

    assert found.chosen.refined == USUAL_REFINED
    assert 0 < found.chosen.recall < 0.9


def test_what_is_measured_on_a_sample_is_kept_by_the_whole_map(queries: np.ndarray):
    """A sixteenth of the map: ranks are known in steps of sixteen."""
    whole = photos_of(32_768, seed=4)
    sample = whole[::16]
    trained = ivfpq.train_quantizer(sample, parameters(8), CONFIG)

    found = tune(trained, sample, queries, parameters=parameters(8), photos=len(whole), config=replace(CONFIG, recall=0.9))

    for trial in (found.chosen, *found.tried):
        assert recall(trained, whole, queries, nprobe=trial.nprobe, refined=trial.refined) >= trial.recall - 0.03


def test_a_recall_out_of_reach_is_refused_and_what_would_do_is_named(photos: np.ndarray, queries: np.ndarray):
    few = photos[:, :DIM]
    asked = replace(CONFIG, recall=0.999, code_bytes=2)
    small = parameters(2)
    trained = ivfpq.train_quantizer(few, small, asked)
    found = tune(trained, few, queries, parameters=small, photos=400_000, config=asked)
    assert found.chosen.recall < 0.9

    with pytest.raises(PlanError, match=r"a recall of 0\.999 was asked for, but codes of 2 bytes find at most 0\.\d+") as refused:
        require_recall(found, few, queries, parameters=small, photos=400_000, config=asked)

    assert "Nothing was published; what is encoded is kept. Ask for --bytes 8, which finds 0." in str(refused.value)
    assert f"or for --recall {np.floor(found.chosen.recall * 100) / 100:.2f}" in str(refused.value)


def test_a_map_whose_photos_are_all_refined_needs_no_measuring(photos: np.ndarray, quantizer: bytes):
    none = np.empty((0, DIM), np.float32)

    found = tune(quantizer, photos[:300], none, parameters=parameters(4), photos=300, config=replace(CONFIG, recall=1.0))

    assert (found.chosen.nprobe, found.chosen.refined, found.chosen.recall) == (64, 300, 1.0)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def test_a_map_keeps_what_it_was_asked_for_until_it_is_asked_for_something_else(storage: Storage):
    stored = stored_of(*(write_segment(storage, f"s{n}", range(100 * n, 100 * n + 100)) for n in range(6)))

    def build(config: IndexConfig, head: object = None) -> IndexEntry:
        return build_index(storage, stored, all_of(stored), head, descriptor_dim=STORED_DIM, config=config, extend=False)

    asked = IndexConfig(seed=1, code_bytes=8, recall=0.95)
    first = build(asked)
    head = manifest_of(stored, all_of(stored), first)
    head.configuration["index"] = {"code_bytes": 8, "recall": 0.95}

    assert (first.parameters["code_bytes"], first.parameters["recall"] >= 0.95) == (8, True)
    assert "of the exact neighbours" in outcome(first, None)
    unasked = settled(IndexConfig(seed=1), head)
    assert unasked == asked
    assert build(unasked, head) == first
    other = settled(IndexConfig(seed=1, code_bytes=4), head)
    assert reason_to_train(first, 600, STORED_DIM, other, extend=False) == "codes of 4 bytes were asked for, it makes 8"
    assert reason_to_train(first, 600, STORED_DIM, other, extend=True) is None
    better = settled(IndexConfig(seed=1, recall=1.0), head)
    found = first.parameters["recall"]
    expected = None if found == 1 else f"a recall of 1 was asked for, it finds {found:g}"
    assert reason_to_train(first, 600, STORED_DIM, better, extend=False) == expected


def test_an_index_that_would_find_too_little_leaves_nothing_behind(storage: Storage):
    stored = stored_of(*(write_segment(storage, f"s{n}", range(100 * n, 100 * n + 100)) for n in range(6)))
    before = {info.path for info in storage.list()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning_module, "REFINED", (10,))
        with pytest.raises(PlanError, match=r"but codes of 1 bytes find at most"):
            build_index(
                storage,
                stored,
                all_of(stored),
                None,
                descriptor_dim=STORED_DIM,
                config=IndexConfig(seed=1, code_bytes=1, recall=1.0),
                extend=False,
            )

    assert {info.path for info in storage.list()} == before
