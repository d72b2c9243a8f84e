"""The index: its size is derived, its training repeatable, and what is near is found however photos are spread over shards."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import ivfpq
from pipelines.ivfpq import IndexConfig, IvfPqParameters, ShardSearcher, derive_parameters, make_shard, train_quantizer

DIM = 64
PHOTOS = 600
CONFIG = IndexConfig(seed=3)
PARAMETERS = IvfPqParameters(pca_dim=32, nlist=8, code_bytes=4, nprobe=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


def unit_vectors(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def near(points: np.ndarray, seed: int) -> np.ndarray:
    """Points about a tenth beside these unit vectors, where others are about 1.4 away."""
    return points + 0.1 * unit_vectors(len(points), seed)


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    return unit_vectors(PHOTOS, seed=0)


@pytest.fixture(scope="module")
def quantizer(descriptors: np.ndarray) -> bytes:
    return train_quantizer(descriptors, PARAMETERS, CONFIG)


@pytest.mark.parametrize(
    ("photos", "dim", "expected"),
    [
        (0, 8448, None),
        (255, 8448, None),
        (256, 8448, (64, 16, 16, 16)),  # at least 64 dimensions; sqrt(256) cells, all of them probed
        (2_000, 8448, (128, 32, 32, 32)),  # 2000 / 8 = 250 dimensions, rounded down to a power of two; sqrt is 45, nearest 32
        (10_000, 8448, (512, 128, 128, 128)),  # 128 code bytes are the most; sqrt is 100, nearest 128
        (1_000_000, 8448, (512, 512, 128, 256)),  # cells for a shard of 262,144; half of them are probed unless measured
        (1_000_000, 96, (64, 512, 16, 256)),  # no more dimensions than the descriptor has
    ],
)
def test_the_size_of_an_index_follows_from_the_number_of_photos(
    photos: int, dim: int, expected: tuple[int, int, int, int] | None
):
    found = derive_parameters(photos, dim, IndexConfig())

    assert found == (
        expected and IvfPqParameters(**dict(zip(("pca_dim", "nlist", "code_bytes", "nprobe"), expected, strict=True)))
    )


def test_a_quarter_of_the_code_bytes_keeps_a_quarter_of_the_dimensions():
    found = derive_parameters(1_000_000, 8448, IndexConfig(code_bytes=32))

    assert found is not None
    assert (found.pca_dim, found.code_bytes) == (128, 32)


def test_a_limit_too_low_to_train_at_is_refused():
    with pytest.raises(ValueError, match=r"flat_below must be at least 256.*got 100"):
        IndexConfig(flat_below=100)


@pytest.mark.parametrize("photo", [0, 17, PHOTOS - 1])
def test_a_planted_neighbour_is_found_first(descriptors: np.ndarray, quantizer: bytes, photo: int):
    shard = make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS) + 1000)])

    (hits,) = ShardSearcher(quantizer, PARAMETERS.nprobe, [shard]).search(near(descriptors[[photo]], seed=1), 10)

    assert hits[0][1:] == (0, photo + 1000)
    assert hits == sorted(hits)
    assert len(hits) == 10


def test_every_photo_is_among_the_nearest_of_itself(descriptors: np.ndarray, quantizer: bytes):
    shard = make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS))])

    found = ShardSearcher(quantizer, PARAMETERS.nprobe, [shard]).search(descriptors, 5)

    assert np.mean([photo in [number for _, _, number in hits] for photo, hits in enumerate(found)]) > 0.99


@pytest.mark.parametrize("flat", [False, True])
def test_shards_cut_differently_give_the_same_hits(descriptors: np.ndarray, quantizer: bytes, flat: bool):
    """Also blocks of another size, and photos in another order: a code depends on its own photo alone."""
    used = None if flat else quantizer
    shuffled = np.random.default_rng(2).permutation(PHOTOS)
    whole = [make_shard(used, DIM, [(descriptors, np.arange(PHOTOS))])]
    cut = [
        make_shard(used, DIM, [(descriptors[ids], ids) for ids in np.array_split(part, 3)]) for part in np.split(shuffled, [50])
    ]
    queries = near(descriptors[:20], seed=3)

    one, two = (
        [[(distance, number) for distance, _, number in hits] for hits in ShardSearcher(used, 8, shards).search(queries, 20)]
        for shards in (whole, cut)
    )

    assert [sorted(hits)[:20] for hits in two] == [sorted(hits) for hits in one]


def test_a_flat_index_is_exact():
    points = np.array([[0, 0], [3, 4], [6, 8]], np.float32)
    shards = [make_shard(None, 2, [(points[:2], np.array([10, 11]))]), make_shard(None, 2, [(points[2:], np.array([5]))])]

    (hits,) = ShardSearcher(None, 1, shards).search(np.array([[3, 4]], np.float32), 5)

    assert hits == [(0.0, 0, 11), (25.0, 0, 10), (25.0, 1, 5)]  # squared distances; ties by shard and id


def test_training_twice_gives_the_same_bytes_and_another_seed_others(descriptors: np.ndarray, quantizer: bytes):
    assert train_quantizer(descriptors, PARAMETERS, CONFIG) == quantizer
    assert train_quantizer(descriptors, PARAMETERS, IndexConfig(seed=4)) != quantizer


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS sees no GPU here")
def test_a_quantizer_trained_on_a_gpu_finds_as_much(monkeypatch: pytest.MonkeyPatch):
    """Within 0.2 points of one trained without; on photos about places, as those all over find little."""
    rng = np.random.default_rng(8)
    places = unit_vectors(400, 9)
    photos, queries = (
        places[rng.integers(400, size=count)] + 0.6 * unit_vectors(count, seed) for count, seed in ((20_000, 1), (2_000, 2))
    )
    exact = np.argmax(queries @ photos.T, axis=1)
    parameters = IvfPqParameters(pca_dim=64, nlist=64, code_bytes=16, nprobe=32)

    def recall() -> float:
        quantizer = train_quantizer(photos, parameters, CONFIG)
        found = ShardSearcher(quantizer, 32, [make_shard(quantizer, DIM, [(photos, np.arange(20_000))])]).search(queries, 50)
        return float(np.mean([photo in [number for _, _, number in hits] for photo, hits in zip(exact, found, strict=True)]))

    on_gpu = recall()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)

    assert on_gpu == pytest.approx(recall(), abs=0.002)


def test_coding_twice_gives_the_same_bytes_in_blocks_of_any_size(descriptors: np.ndarray, quantizer: bytes):
    ids = np.arange(PHOTOS)

    at_once = make_shard(quantizer, DIM, [(descriptors, ids)])
    in_blocks = make_shard(
        quantizer, DIM, [(descriptors[start : start + 64], ids[start : start + 64]) for start in range(0, 600, 64)]
    )

    assert at_once == in_blocks


def test_making_a_shard_leaves_the_quantizer_empty(descriptors: np.ndarray, quantizer: bytes):
    make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS))])
    small = make_shard(quantizer, DIM, [(descriptors[:3], np.arange(3))])

    (hits,) = ShardSearcher(quantizer, 8, [small]).search(descriptors[:1], 100)

    assert sorted(number for _, _, number in hits) == [0, 1, 2]


def test_dimensions_without_variance_do_not_spoil_the_projection():
    """Descriptors in a plane of 4 of 64 dimensions: PCA has 32 to fill, 28 of them with nothing."""
    flat = np.zeros((300, DIM), np.float32)
    flat[:, :4] = unit_vectors(300, seed=5, dim=4)

    quantizer = train_quantizer(flat, PARAMETERS, CONFIG)
    (hits,) = ShardSearcher(quantizer, 8, [make_shard(quantizer, DIM, [(flat, np.arange(300))])]).search(flat[:1], 300)

    assert np.isfinite([distance for distance, _, _ in hits]).all()
    assert 0 in [number for _, _, number in hits[:20]]


@pytest.fixture(scope="module")
def spread(descriptors: np.ndarray, quantizer: bytes) -> dict[bool, list[bytes]]:
    """The photos in two shards whose ids start at 0 and at 100, flat and coded."""
    halves = [(descriptors[:250], np.arange(250)), (descriptors[250:], np.arange(350) + 100)]
    return {flat: [make_shard(None if flat else quantizer, DIM, [half]) for half in halves] for flat in (False, True)}


@given(data=st.data(), flat=st.booleans(), k=st.integers(1, 600), masked=st.sampled_from([0.0, 0.01, 0.3, 0.9, 1.0]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_found_among_the_live_is_the_exhaustive_answer_filtered(
    descriptors: np.ndarray,
    quantizer: bytes,
    spread: dict[bool, list[bytes]],
    data: st.DataObject,
    flat: bool,
    k: int,
    masked: float,
):
    """And so top-k stays full: of every shard come k live photos, or all of them."""
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    live = [draw.random(250) >= masked, draw.random(450) >= masked]
    live[data.draw(st.integers(0, 1))][-3:] = False
    used = None if flat else quantizer
    query = near(descriptors[[data.draw(st.integers(0, PHOTOS - 1))]], seed=5)

    (everything,) = ShardSearcher(used, PARAMETERS.nlist, spread[flat]).search(query, PHOTOS)
    (found,) = ShardSearcher(used, PARAMETERS.nlist, spread[flat], live).search(query, k)

    kept = [hit for hit in everything if live[hit[1]][hit[2]]]
    nearest = [[hit for hit in kept if hit[1] == shard][:k] for shard in (0, 1)]
    assert [number for _, *number in found] == [number for _, *number in sorted([*nearest[0], *nearest[1]])]
    assert [distance for distance, *_ in found] == pytest.approx([d for d, *_ in sorted([*nearest[0], *nearest[1]])], abs=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_an_id_beyond_what_is_said_of_a_shard_is_not_found(
    descriptors: np.ndarray, quantizer: bytes, spread: dict[bool, list[bytes]], flat: bool
):
    searcher = ShardSearcher(None if flat else quantizer, PARAMETERS.nlist, spread[flat], [np.ones(10, bool), None])

    (hits,) = searcher.search(descriptors[:1], PHOTOS)

    assert sorted(number for _, shard, number in hits if shard == 0) == list(range(10))
    assert len([hit for hit in hits if hit[1] == 1]) == 350


@pytest.mark.parametrize("flat", [False, True])
def test_where_nothing_is_live_nothing_is_found(
    descriptors: np.ndarray, quantizer: bytes, spread: dict[bool, list[bytes]], flat: bool
):
    nobody = [np.zeros(250, bool), np.zeros(450, bool)]

    assert ShardSearcher(None if flat else quantizer, 8, spread[flat], nobody).search(descriptors[:2], 5) == [[], []]


def test_fewer_cells_are_looked_at_when_asked_for_also_among_the_live(descriptors: np.ndarray, quantizer: bytes):
    """FAISS forgets a shard's own number of cells once it is told what to leave out."""
    shard = make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS))])

    def found(nprobe: int) -> int:
        return len(ShardSearcher(quantizer, nprobe, [shard], [np.ones(PHOTOS, bool)]).search(descriptors[:1], PHOTOS)[0])

    assert found(1) < found(4) < found(PARAMETERS.nlist) == PHOTOS


def test_a_photo_is_not_nearer_because_the_projection_keeps_little_of_it():
    """Queries of which it keeps a third; the right photo, of which it keeps all, has a cosine of 0.3, the other one of 0.09.

    By distance in the projection's space the other one would be the nearer one of every pair.
    """
    rng = np.random.default_rng(5)
    inside, outside = np.eye(DIM, dtype=np.float32)[:32], np.eye(DIM, dtype=np.float32)[32:]
    quantizer = train_quantizer(unit_vectors(PHOTOS, 6, dim=32) @ inside, PARAMETERS, CONFIG)
    directions = unit_vectors(60, 7, dim=32) @ inside
    elsewhere = rng.permuted(np.repeat(outside, 2, axis=0)[:60], axis=0)
    others = 0.3 * directions + 0.91**0.5 * elsewhere
    shard = make_shard(quantizer, DIM, [(np.concatenate([directions, others]), np.arange(120))])
    queries = 0.3 * directions + 0.91**0.5 * np.roll(elsewhere, 1, axis=0)

    found = ShardSearcher(quantizer, PARAMETERS.nprobe, [shard]).search(queries, 120)

    ranks = [[number for _, _, number in hits] for hits in found]
    assert np.mean([rank.index(number) < rank.index(number + 60) for number, rank in enumerate(ranks)]) > 0.9


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.6), taken_down=st.floats(0, 0.5))
def test_among_some_ids_the_search_finds_what_a_search_of_everything_finds_there(
    descriptors: np.ndarray, quantizer: bytes, seed: int, share: float, taken_down: float
):
    """Also with few cells probed otherwise, photos taken down, and a shard left out."""
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(PHOTOS), [200, 350])
    shards = [make_shard(quantizer, DIM, [(descriptors[part], np.arange(len(part)))]) for part in parts]
    live = [rng.random(len(part)) >= taken_down for part in parts]
    only = {number: rng.random(len(part)) < share for number, part in enumerate(parts) if number != 1}
    queries = near(descriptors[:5], seed)

    everything = ShardSearcher(quantizer, PARAMETERS.nlist, shards, live).search(queries, PHOTOS)
    found = ShardSearcher(quantizer, 1, shards, live).search(queries, PHOTOS, only)

    expected = [[hit for hit in hits if hit[1] in only and only[hit[1]][hit[2]]] for hits in everything]
    assert found == expected


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_made_ready_once_some_photos_are_searched_like_all_of_them_whether_copied_or_not(
    descriptors: np.ndarray, quantizer: bytes, share: float
):
    """A fiftieth and a tenth are copied out of the shard, a third is not. Also when the searcher itself is gone."""
    shard = make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS) + 7)])
    ids = np.random.default_rng(1).random(PHOTOS + 7) < share
    (everything,) = ShardSearcher(quantizer, PARAMETERS.nlist, [shard]).search(descriptors[:1], PHOTOS)
    searcher = ShardSearcher(quantizer, 1, [shard])

    among = searcher.among({0: ids})

    for k in (1, 5, PHOTOS):
        assert searcher.search(descriptors[:1], k, among) == [[hit for hit in everything if ids[hit[2]]][:k]]


def test_a_shard_is_read_when_it_is_first_searched_and_only_once(descriptors: np.ndarray, quantizer: bytes):
    shard, read = make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS))]), []

    def reads(number: int) -> Callable[[], bytes]:
        return lambda: read.append(number) or shard

    searcher = ShardSearcher(quantizer, 8, [reads(0), reads(1), reads(2)])
    assert read == []
    searcher.search(descriptors[:1], 5, {1: np.ones(PHOTOS, bool)})
    assert read == [1]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: searcher.search(descriptors[:1], 5), range(16)))
    assert sorted(read) == [0, 1, 2]


def test_few_photos_of_many_shards_are_searched_together_and_known_by_their_shards(descriptors: np.ndarray, quantizer: bytes):
    """Of two shards a tenth is copied, of one half is not, of one nothing may be found, and one is left out."""
    parts = np.array_split(np.arange(PHOTOS), 5)
    shards = [make_shard(quantizer, DIM, [(descriptors[part], np.arange(len(part)))]) for part in parts]
    rng = np.random.default_rng(4)
    only = {number: rng.random(120) < share for number, share in ((0, 0.1), (2, 0.5), (3, 0.0), (4, 0.1))}
    searcher = ShardSearcher(quantizer, 1, shards)
    everything = ShardSearcher(quantizer, PARAMETERS.nlist, shards).search(descriptors[:8], PHOTOS)
    expected = [[hit for hit in hits if hit[1] in only and only[hit[1]][hit[2]]] for hits in everything]

    assert searcher.search(descriptors[:8], PHOTOS, searcher.among(only)) == expected
    assert [hits[:9] for hits in searcher.search(descriptors[:8], 9, only)] == [hits[:9] for hits in expected]


@pytest.mark.parametrize(("flat", "dim"), [(True, 8_448), (False, 768)], ids=["flat", "coded"])
def test_what_is_found_for_a_query_has_the_same_bits_whichever_are_asked_with_it(flat: bool, dim: int):
    """Products of matrices round otherwise in other company; FAISS takes another way from 16 or 20 queries on."""
    rng = np.random.default_rng(8)
    photos, queries = (rng.normal(size=(count, dim)).astype(np.float32) for count in (300, 40))
    parameters = IvfPqParameters(pca_dim=64, nlist=8, code_bytes=16, nprobe=8)
    quantizer = None if flat else train_quantizer(photos, parameters, IndexConfig(seed=3, pca_photos=256))
    searcher = ShardSearcher(quantizer, 8, [make_shard(quantizer, dim, [(photos, np.arange(300))])])

    alone = [searcher.search(query[None], 300)[0] for query in queries]

    for size in (2, 7, 16, 40):
        together = [hits for start in range(0, 40, size) for hits in searcher.search(queries[start : start + size], 300)]
        assert together == alone
