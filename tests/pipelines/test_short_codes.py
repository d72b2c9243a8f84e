"""Searching a large map in two passes: what short codes choose, stored codes rank. Here a large map is one of 64 photos."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import ivfpq
from pipelines.ivfpq import IndexConfig, IvfPqParameters, ShardSearcher, make_shard, train_quantizer
from pipelines.short_codes import PackedShard, ShortCodes, give_back_memory

DIM = 64
PHOTOS = 3_000
PARAMETERS = IvfPqParameters(pca_dim=32, nlist=16, code_bytes=8, nprobe=16)
NO_RESET = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    ivfpq.use_threads(1)
    monkeypatch.setattr(ivfpq, "LEAST_POOL", 8)


def resident_mb() -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def photos_of(count: int, seed: int) -> np.ndarray:
    """Photos about forty places."""
    rng = np.random.default_rng([seed, 7])
    points = np.random.default_rng(0).normal(size=(40, DIM))[rng.integers(40, size=count)] + 0.7 * rng.normal(size=(count, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    return photos_of(PHOTOS, seed=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return photos_of(40, seed=2)


@pytest.fixture(scope="module")
def quantizer(descriptors: np.ndarray) -> bytes:
    return train_quantizer(descriptors, PARAMETERS, IndexConfig(seed=3, pca_photos=256))


def cut(quantizer: bytes, descriptors: np.ndarray, parts: list[np.ndarray]) -> tuple[list[bytes], list[int]]:
    """Shards whose ids start at 0, and their photos."""
    shards = [make_shard(quantizer, DIM, [(descriptors[part], np.arange(len(part)))]) for part in parts]
    return shards, [len(part) for part in parts]


def searched_twice(quantizer: bytes, shards: list[bytes], rows: list[int], **options: Any) -> ShardSearcher:
    return ShardSearcher(quantizer, options.pop("nprobe", PARAMETERS.nlist), shards, rows=rows, **options)


@given(seed=st.integers(0, 1000), k=st.integers(1, 300), shards=st.integers(1, 6), taken_down=st.sampled_from([0, 0.01, 0.6]))
@NO_RESET
def test_how_photos_are_spread_over_shards_changes_no_answer(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, seed: int, k: int, shards: int, taken_down: float
):
    """Nor do photos that were taken down, and are still in the shards: not one bit of a distance."""
    rng = np.random.default_rng(seed)
    gone = rng.random(PHOTOS) < taken_down
    left = np.flatnonzero(~gone)
    parts = np.split(rng.permutation(PHOTOS), np.sort(rng.integers(0, PHOTOS, shards - 1)))
    whole = searched_twice(quantizer, *cut(quantizer, descriptors, [left]))
    many = searched_twice(quantizer, *cut(quantizer, descriptors, parts), live=[~gone[part] for part in parts])

    of_one = [[(distance, int(left[photo])) for distance, _, photo in hits] for hits in whole.search(queries[:5], k)]
    of_many = [[(distance, int(parts[n][photo])) for distance, n, photo in hits] for hits in many.search(queries[:5], k)]

    assert [sorted(hits) for hits in of_many] == [sorted(hits) for hits in of_one]
    assert all(len(hits) >= k for hits in of_one)


def test_two_passes_find_what_one_does_and_say_the_same_of_it(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes):
    shards, rows = cut(quantizer, descriptors, np.array_split(np.arange(PHOTOS), 3))
    once = ShardSearcher(quantizer, PARAMETERS.nlist, shards).search(queries, 20)

    twice = searched_twice(quantizer, shards, rows).search(queries, 20)

    shared = []
    for one, two in zip(once, twice, strict=True):
        of_one = {(n, i): d for d, n, i in one[:20]}
        of_two = {(n, i): d for d, n, i in two[:20]}
        both = of_one.keys() & of_two.keys()
        shared.append(len(both) / 20)
        assert [of_two[place] for place in both] == pytest.approx([of_one[place] for place in both], abs=1e-5)
    assert np.mean(shared) > 0.9


def test_with_a_pool_of_all_photos_both_passes_find_exactly_the_same(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ivfpq, "POOL_TIMES", PHOTOS)
    shards, rows = cut(quantizer, descriptors, np.array_split(np.arange(PHOTOS), 3))
    once = ShardSearcher(quantizer, PARAMETERS.nlist, shards).search(queries, PHOTOS)

    twice = searched_twice(quantizer, shards, rows).search(queries, PHOTOS)

    for one, two in zip(once, twice, strict=True):
        assert sorted((n, i) for _, n, i in two) == sorted((n, i) for _, n, i in one)
        assert [d for d, *_ in two] == pytest.approx([d for d, *_ in one], abs=1e-5)


def test_equal_photos_by_the_hundred_are_found_together(descriptors: np.ndarray, quantizer: bytes):
    """They are as near as each other for short codes too, and more than the pool has room for."""
    doubled = np.concatenate([descriptors[:2_000], np.repeat(descriptors[:1], 1_000, axis=0)])
    shards, rows = cut(quantizer, doubled, np.array_split(np.random.default_rng(0).permutation(3_000), 4))

    (hits,) = searched_twice(quantizer, shards, rows).search(descriptors[:1], 10)

    assert len(hits) == 1_001
    assert len({distance for distance, *_ in hits}) == 1


@pytest.mark.parametrize("share", [0.001, 0.015, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("nprobe", [1, 16])
def test_among_some_photos_two_passes_find_what_a_search_of_everything_finds_there(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, share: float, nprobe: int, monkeypatch: pytest.MonkeyPatch
):
    """Few are copied out of the shards, many are chosen by a selector; no photo that was taken down comes back."""
    monkeypatch.setattr(ivfpq, "POOL_TIMES", PHOTOS)
    rng = np.random.default_rng(5)
    shards, rows = cut(quantizer, descriptors, np.array_split(np.arange(PHOTOS), 3))
    live = [rng.random(1_000) < 0.9 for _ in rows]
    only = {0: rng.random(1_000) < share, 2: rng.random(400) < share}
    everything = searched_twice(quantizer, shards, rows, live=live).search(queries, PHOTOS)
    searcher = searched_twice(quantizer, shards, rows, live=live, nprobe=nprobe)

    found = searcher.search(queries, PHOTOS, searcher.among(only))

    for hits, everywhere in zip(found, everything, strict=True):
        expected = [hit for hit in everywhere if hit[1] in only and only[hit[1]][hit[2] : hit[2] + 1].any()]
        assert sorted((n, i) for _, n, i in hits) == sorted((n, i) for _, n, i in expected)
        assert [d for d, *_ in hits] == pytest.approx([d for d, *_ in expected], abs=1e-5)


def ranked(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes) -> list[list[tuple[float, int]]]:
    """Every photo of a map of one shard, with its distance by the stored codes, for each query."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "POOL_TIMES", len(descriptors))
        searcher = searched_twice(quantizer, *cut(quantizer, descriptors, [np.arange(len(descriptors))]))
        return [[(distance, photo) for distance, _, photo in hits] for hits in searcher.search(queries, len(descriptors))]


def with_equals(hits: list[tuple[float, int]], k: int) -> list[tuple[float, int]]:
    """The first k, and those as near as the last of them, by photo where they are equally near."""
    return sorted(hit for hit in hits if hit[0] <= hits[min(k, len(hits)) - 1][0])


@pytest.fixture(scope="module")
def everything(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes) -> Callable[[], list[list[tuple[float, int]]]]:
    """Of the first eight queries. To be called, as Hypothesis would print it all where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "LEAST_POOL", 8)
        found = ranked(descriptors, queries[:8], quantizer)
    return lambda: found


@given(
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 7, 100, 400, PHOTOS]),
    shards=st.integers(1, 6),
    region=st.floats(0.001, 0.8),
    period=st.sampled_from([0.02, 0.5, 1.0]),
    taken_down=st.sampled_from([0, 0.01, 0.6]),
)
@NO_RESET
def test_among_few_photos_of_a_large_map_the_exhaustive_answer_is_found_to_the_bit(
    descriptors: np.ndarray,
    queries: np.ndarray,
    quantizer: bytes,
    everything: Callable[[], list[list[tuple[float, int]]]],
    seed: int,
    k: int,
    shards: int,
    region: float,
    period: float,
    taken_down: float,
):
    """Photos that follow each other, of some time, without those taken down, in any shards: what ranking every photo of the
    map by its stored code and leaving the others out gives, with all that are as near as the last."""
    rng = np.random.default_rng(seed)
    live, allowed = rng.random(PHOTOS) >= taken_down, rng.random(PHOTOS) < period
    allowed &= (np.arange(PHOTOS) + rng.integers(PHOTOS)) % PHOTOS < region * PHOTOS
    parts = np.split(rng.permutation(PHOTOS), np.sort(rng.integers(0, PHOTOS, shards - 1)))
    searcher = searched_twice(quantizer, *cut(quantizer, descriptors, parts), live=[live[part] for part in parts], nprobe=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "LEAST_POOL", PHOTOS)  # what is looked at is few now; the map was large when it was opened
        few = searcher.among({number: allowed[part] for number, part in enumerate(parts) if allowed[part].any()})

    found = searcher.search(queries[:8], k, few)

    expected = [[hit for hit in hits if live[hit[1]] and allowed[hit[1]]] for hits in everything()]
    photos = [[(distance, int(parts[number][row])) for distance, number, row in hits] for hits in found]
    assert [sorted(hits) for hits in photos] == [with_equals(hits, k) for hits in expected]
    assert all(hits == sorted(hits) for hits in found)


@pytest.mark.parametrize("k", [300, 500, 1_000, 1_500])
def test_what_halves_put_behind_the_last_place_is_found(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, k: int, monkeypatch: pytest.MonkeyPatch
):
    """Of so many photos some at the last place are nearer each other than halves can tell."""
    searcher = searched_twice(quantizer, *cut(quantizer, descriptors, [np.arange(PHOTOS)]))
    everything = ranked(descriptors, queries, quantizer)
    monkeypatch.setattr(ivfpq, "LEAST_POOL", PHOTOS)
    few = searcher.among({0: np.arange(PHOTOS) < 2_000})

    found = searcher.search(queries, k, few)

    expected = [with_equals([hit for hit in hits if hit[1] < 2_000], k) for hits in everything]
    assert [[(distance, photo) for distance, _, photo in hits] for hits in found] == expected


def test_equal_photos_by_the_hundred_are_found_together_among_few(descriptors: np.ndarray, quantizer: bytes):
    doubled = np.concatenate([descriptors[:2_000], np.repeat(descriptors[:1], 1_000, axis=0)])
    order = np.random.default_rng(0).permutation(PHOTOS)
    shards, rows = cut(quantizer, doubled[order], np.array_split(np.arange(PHOTOS), 4))
    searcher = searched_twice(quantizer, shards, rows)
    equal = np.isin(order, [0, *range(2_000, PHOTOS)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "LEAST_POOL", PHOTOS)
        few = searcher.among(dict(enumerate(np.array_split(equal | (order < 300), 4))))

    (hits,) = searcher.search(descriptors[:1], 10, few)

    assert [750 * shard + row for _, shard, row in hits] == np.flatnonzero(equal).tolist()
    assert len({distance for distance, *_ in hits}) == 1


def test_few_photos_are_searched_by_many_threads_as_by_one(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes):
    searcher = searched_twice(quantizer, *cut(quantizer, descriptors, [np.arange(PHOTOS)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "LEAST_POOL", PHOTOS)
        few = searcher.among({0: np.arange(PHOTOS) % 3 == 0})
    alone = [searcher.search(query[None], 20, few) for query in queries]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: searcher.search(query[None], 20, few), [*queries] * 5))

    assert together == alone * 5


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_among_many_photos_with_a_small_pool_only_these_are_found(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, share: float
):
    shards, rows = cut(quantizer, descriptors, [np.arange(PHOTOS)])
    allowed = np.random.default_rng(6).random(PHOTOS) < share

    found = searched_twice(quantizer, shards, rows).search(queries, 5, {0: allowed})

    assert all(len(hits) >= 5 and all(allowed[photo] for _, _, photo in hits) for hits in found)


def test_queries_together_are_answered_as_one_by_one(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes):
    """But for the last bits of their projections, which BLAS rounds in another order."""
    searcher = searched_twice(quantizer, *cut(quantizer, descriptors, np.array_split(np.arange(PHOTOS), 2)))

    together = searcher.search(queries, 30)

    for hits, query in zip(together, queries, strict=True):
        (alone,) = searcher.search(query[None], 30)
        assert [d for d, *_ in hits[:30]] == pytest.approx([d for d, *_ in alone[:30]], abs=1e-5)
        assert len({tuple(place) for _, *place in hits[:30]} & {tuple(place) for _, *place in alone[:30]}) >= 29


def test_fewer_cells_find_less(descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ivfpq, "POOL_TIMES", PHOTOS)
    shards, rows = cut(quantizer, descriptors, [np.arange(PHOTOS)])

    found = [len(searched_twice(quantizer, shards, rows, nprobe=nprobe).search(queries[:1], PHOTOS)[0]) for nprobe in (1, 4, 16)]

    assert found[0] < found[1] < found[2] == PHOTOS


def test_an_empty_shard_and_one_that_lost_all_photos_are_passed_over(
    descriptors: np.ndarray, queries: np.ndarray, quantizer: bytes
):
    none = np.arange(0)
    shards, rows = cut(quantizer, descriptors, [none, np.arange(PHOTOS), np.arange(50)])
    searcher = searched_twice(quantizer, shards, rows, live=[None, None, np.zeros(50, bool)])

    (hits,) = searcher.search(queries[:1], 10)

    assert {shard for _, shard, _ in hits} == {1}


def trained_with(code_bytes: int, descriptors: np.ndarray) -> Any:
    parameters = IvfPqParameters(pca_dim=4 * code_bytes, nlist=4, code_bytes=code_bytes, nprobe=4)
    chain = faiss.deserialize_index(np.frombuffer(train_quantizer(descriptors[:600], parameters, IndexConfig()), np.uint8))
    index = faiss.downcast_index(chain.index)
    index.referenced_objects = [chain]
    return index


def points_of(pq: Any) -> np.ndarray:
    return faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)  # type: ignore[no-any-return]


@pytest.mark.parametrize("code_bytes", [1, 3, 8])
def test_the_upper_half_of_a_byte_names_a_group_of_sixteen_points_that_are_near_its_middle(
    descriptors: np.ndarray, code_bytes: int
):
    trained = trained_with(code_bytes, descriptors)
    short = ShortCodes(trained)
    empty = short.empty()  # its parts die with it
    stored, named, middles = points_of(trained.pq), points_of(short.pq), points_of(empty.pq)

    for byte in range(code_bytes):
        assert {point.tobytes() for point in named[byte]} == {point.tobytes() for point in stored[byte]}
        assert named[byte].reshape(16, 16, 4).mean(axis=1) == pytest.approx(middles[byte], abs=1e-6)
        to_own = ((named[byte] - middles[byte].repeat(16, axis=0)) ** 2).sum(axis=1).mean()
        to_any = ((named[byte][:, None] - middles[byte]) ** 2).sum(axis=2).min(axis=1).mean()
        at_random = stored[byte].var(axis=0).sum()
        assert to_own < to_any + 0.2 * (at_random - to_any), "about as near as if groups had any size"


@pytest.mark.parametrize("code_bytes", [1, 3, 8, 300])
def test_halves_stand_for_the_points_of_the_stored_bytes(descriptors: np.ndarray, code_bytes: int):
    """Of an odd number of bytes the last half is left at zero."""
    trained = trained_with(min(8, code_bytes), descriptors)
    if code_bytes > 8:  # more than two bytes of names, and no time to train them
        trained = faiss.IndexIVFPQ(faiss.IndexFlatIP(1_200), 1_200, 4, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        made_up = np.random.default_rng(5).normal(size=code_bytes * 256 * 4).astype(np.float32)
        faiss.copy_array_to_vector(made_up, trained.pq.centroids)
    short = ShortCodes(trained)
    codes = np.random.default_rng(1).integers(0, 256, (900, code_bytes), dtype=np.uint8)

    upper, lower = short.of(codes)

    groups = np.stack([upper & 15, upper >> 4], axis=2).reshape(len(codes), -1)
    within = np.concatenate([lower & 15, lower >> 4], axis=1)
    assert upper.shape == lower.shape == (900, (code_bytes + 1) // 2)
    named = (groups << 4 | within)[:, :code_bytes]
    assert np.array_equal(short.pq.decode(named), trained.pq.decode(codes))
    assert not groups[:, code_bytes:].any()
    assert not within[:, code_bytes:].any()


@pytest.mark.parametrize("code_bytes", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (1, 0, 31, 32), (33, 64, 0, 65), (500, 15, 16, 17)])
def test_codes_are_put_together_from_where_faiss_keeps_their_halves(
    descriptors: np.ndarray, code_bytes: int, sizes: tuple[int, ...]
):
    trained, rng = trained_with(code_bytes, descriptors), np.random.default_rng(4)
    shard, codes, cells = faiss.clone_index(trained), np.empty((0, code_bytes), np.uint8), np.repeat(np.arange(4), sizes)
    for cell, size in enumerate(sizes):
        numbers = np.arange(len(codes), len(codes) + size)
        here = rng.integers(0, 256, (size, code_bytes), dtype=np.uint8)
        if size:
            shard.invlists.add_entries(cell, size, faiss.swig_ptr(numbers), faiss.swig_ptr(here))
        codes = np.concatenate([codes, here])
    shard.ntotal = len(codes)
    live = rng.random(len(codes)) < 0.8
    short = ShortCodes(trained)

    for only, left in ((None, np.arange(len(codes))), (live, np.flatnonzero(live))):
        packed = PackedShard(shard, only, short)
        for rows in (np.arange(len(left)), np.flatnonzero(rng.random(len(left)) < 0.3)):
            named, of = packed.taken(rows)
            assert np.array_equal(short.pq.decode(named), trained.pq.decode(codes[left[rows]]))
            assert np.array_equal(of, cells[left[rows]])
            assert np.array_equal(packed.ids[rows], left[rows])


def test_a_photo_takes_its_code_once_in_memory_and_its_numbers():
    """128 bytes, FAISS's number of the row (8) and the id (4); a code that stood there twice, by half, would take 204."""
    photos, nlist, code_bytes = 200_000, 64, 128
    rng = np.random.default_rng(6)
    trained = faiss.IndexIVFPQ(faiss.IndexFlatIP(512), 512, nlist, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    trained.quantizer.add(rng.normal(size=(nlist, 512)).astype(np.float32))
    faiss.copy_array_to_vector(rng.normal(size=128 * 256 * 4).astype(np.float32), trained.pq.centroids)
    trained.is_trained = True
    short, shard = ShortCodes(trained), faiss.clone_index(trained)
    give_back_memory()
    before = resident_mb()
    for cell, numbers in enumerate(np.array_split(np.arange(photos), nlist)):
        codes = rng.integers(0, 256, (len(numbers), code_bytes), dtype=np.uint8)
        shard.invlists.add_entries(cell, len(numbers), faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
    shard.ntotal = photos

    packed = PackedShard(shard, None, short)
    del shard
    give_back_memory()

    assert len(packed) == photos
    assert 1e6 * (resident_mb() - before) / photos == pytest.approx(140, rel=0.15)


@pytest.mark.parametrize("code_bytes", [1, 3, 8])
def test_products_are_those_with_what_the_codes_stand_for(descriptors: np.ndarray, code_bytes: int):
    """The same bits for a photo wherever it stands among others: five, so that FAISS's fours do not fit."""
    trained = trained_with(code_bytes, descriptors)
    shard = faiss.clone_index(trained)
    projected = np.random.default_rng(2).normal(size=(300, 4 * code_bytes)).astype(np.float32)
    shard.add_with_ids(projected, np.arange(300))
    decoded = shard.sa_decode(shard.sa_encode(projected))
    cells = trained.quantizer.reconstruct_n(0, trained.nlist)
    packed = PackedShard(shard, None, ShortCodes(trained))
    query = np.random.default_rng(3).normal(size=4 * code_bytes).astype(np.float32)

    products = packed.products(query, np.arange(300), cells @ query)

    assert products == pytest.approx((decoded @ query)[packed.ids], abs=1e-4)
    for start in range(5):
        rows = np.arange(start, 300, 7)[:5]
        assert packed.products(query, rows, cells @ query).tobytes() == products[rows].tobytes()
