import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from fol_model.config import PoolConfig, RerankConfig
from fol_model.inference import Reranker, open_encoder
from tests.benchmarks import baselines, recall
from tests.benchmarks.recall import HOG, RERANKED, VLAD, Cache, Described, Method, Row, measure, network, shortfalls, table
from tests.benchmarks.recall_sets import (
    HELD_BACK_DRIVES,
    TRAINING_DRIVES,
    MissingPhotosError,
    RecallSet,
    hits_of,
    load_set,
    night,
    recalls,
    set_names,
    training_drive_photos,
    walk_photos,
)


def scene(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """A made-up photo with corners: overlapping boxes of all colours."""
    rng = np.random.default_rng(seed)
    photo = np.full((height, width, 3), 90, np.uint8)
    for _ in range(25):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        cv2.rectangle(photo, (x, y), (x + int(rng.integers(5, 50)), y + int(rng.integers(5, 50))), colour, -1)
    return photo


def write(folder: Path, seeds: Sequence[int], *, quality: int = 95) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.jpg" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        cv2.imwrite(str(path), cv2.cvtColor(scene(seed), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return paths


@pytest.fixture
def small_set(tmp_path: Path) -> RecallSet:
    """Three places and another print of each of two, and a query whose place is in no database photo."""
    return RecallSet(
        name="small",
        database=write(tmp_path / "database", [1, 2, 3]),
        queries=write(tmp_path / "queries", [2, 3, 4], quality=70),
        positives=np.array([[False, True, False], [False, False, True], [False, False, False]]),
    )


# --------------------------------------------------------------------------------------------------------- ranking


def test_recall_counts_queries_without_any_right_answer():
    """One query finds its photo first, one second, one has none: 1/3, then 2/3 and never more."""
    database = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    positives = np.array([[True, False, False], [False, True, False], [False, False, False]])

    assert recalls(database, queries, positives).tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_equal_cosines_rank_in_database_order():
    database = np.ones((3, 1), np.float32)
    hits = hits_of(database, np.ones((1, 1), np.float32), np.array([[False, False, True]]))

    assert hits.tolist() == [[False, False, True]]


# ------------------------------------------------------------------------------------------------------- baselines


def test_hog_and_dense_vlad_are_unit_rows_whatever_the_shape_of_the_photo():
    words = baselines.learn_words([baselines.dense_rootsift(scene(0))], count=8)
    for photo in (scene(1), scene(1, 300, 90), scene(1, 33, 500)):
        for row in (baselines.hog(photo), baselines.vlad(baselines.dense_rootsift(photo), words)):
            assert row.dtype == np.float32
            assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_hog_has_9_bins_in_blocks_of_8_by_8_cells():
    assert baselines.hog(scene(0)).shape == (7 * 7 * 2 * 2 * 9,)


def test_hog_finds_a_darker_photo_of_the_same_scene():
    photos = np.stack([baselines.hog(scene(seed)) for seed in range(5)])

    assert int((photos @ baselines.hog(scene(3) // 2 + 10)).argmax()) == 3


def test_rootsift_features_have_unit_length_and_no_negative_numbers():
    for features in (baselines.sparse_rootsift(scene(0)), baselines.dense_rootsift(scene(0))):
        assert len(features) > 20
        assert (features >= 0).all()
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3)


def test_dense_features_lie_at_four_scales_on_a_grid_of_8_pixels():
    """320 pixels less 20 on each side: 36 x 36 centres at each scale, where everything has structure."""
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)

    assert baselines.dense_rootsift(noise).shape == (4 * 36 * 36, 128)


def test_a_dense_feature_sees_the_direction_of_an_edge():
    """A ramp from left to right has all its gradient in the first of eight directions, in each of the 16 bins."""
    ramp = np.repeat(np.linspace(0, 255, 320).astype(np.uint8)[None, :, None], 320, axis=0).repeat(3, axis=2)
    features = baselines.dense_rootsift(ramp).reshape(-1, 16, 8)

    np.testing.assert_allclose(features[:, :, 0], 0.25, atol=0.02)
    np.testing.assert_allclose(features[:, :, 1:], 0, atol=1e-3)


def test_a_photo_without_structure_is_all_zeros_and_never_nan():
    blank = np.full((50, 60, 3), 200, np.uint8)
    words = np.eye(128, dtype=np.float32)[:4]

    assert not baselines.vlad(baselines.sparse_rootsift(blank), words).any()
    assert not baselines.vlad(baselines.dense_rootsift(blank), words).any()
    assert not baselines.hog(blank).any()


def test_vlad_adds_up_differences_from_the_nearest_word():
    """Words 0 and e1. e1 + e2 differs from the second by e2, -e3/4 from the first by itself; then roots, then unit length."""
    words = np.zeros((2, 128), np.float32)
    words[1, 0] = 1
    features = np.zeros((2, 128), np.float32)
    features[0, :2] = 1
    features[1, 2] = -0.25
    row = baselines.vlad(features, words).reshape(2, 128)

    expected = np.zeros((2, 128))
    expected[1, 1], expected[0, 2] = 1, -0.5
    np.testing.assert_allclose(row, expected / np.sqrt(1.25), atol=1e-6)


def test_words_are_the_same_every_time_and_refused_when_there_is_too_little_to_learn_from():
    photos = [baselines.sparse_rootsift(scene(seed)) for seed in range(3)]

    np.testing.assert_array_equal(baselines.learn_words(photos, count=6), baselines.learn_words(photos, count=6))
    with pytest.raises(ValueError, match="6 words need at least as many local features, got 0"):
        baselines.learn_words([], count=6)


# ------------------------------------------------------------------------------------------------------- measuring


def counted(calls: list[int]) -> Method:
    def describe(photo: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(1)
        return {"descriptor": baselines.hog(photo)}

    return Method(name=HOG, key="a" * 64, describe=describe)


def test_a_second_run_describes_nothing_again_and_finds_the_same(small_set: RecallSet, tmp_path: Path):
    calls: list[int] = []
    first = list(measure(small_set, [counted(calls)], None, Cache(tmp_path / "cache")))
    assert len(calls) == 6
    again = list(measure(small_set, [counted(calls)], None, Cache(tmp_path / "cache")))

    assert len(calls) == 6
    assert first == again
    assert first[0].recall == pytest.approx((2 / 3,) * 3, abs=1e-4)
    assert (first[0].queries, first[0].queries_without_positive, first[0].database) == (3, 1, 3)
    assert first[0].standard_error[0] == pytest.approx(np.sqrt(2 / 27), abs=1e-4)


def test_a_changed_photo_is_described_again(small_set: RecallSet, tmp_path: Path):
    calls: list[int] = []
    cache = Cache(tmp_path / "cache")
    cache.describe(counted(calls), small_set.database, of="small")
    small_set.database[0].write_bytes(small_set.queries[0].read_bytes())
    cache.describe(counted(calls), small_set.database, of="small")

    assert len(calls) == 4


def test_a_network_is_measured_globally_and_reranked_through_the_product(small_set: RecallSet, tmp_path: Path):
    method = network(open_encoder("tiny", weights=None, device="cpu"))
    plain, reranked = measure(small_set, [method], Reranker(RerankConfig()), Cache(tmp_path / "cache"))

    assert (plain.method, reranked.method) == ("tiny", f"tiny{RERANKED}")
    assert plain.recall[1] == pytest.approx(2 / 3, abs=1e-4)  # three photos: at 5 all right answers are found
    assert reranked.recall[1] == plain.recall[1]


def test_reranking_keeps_what_lies_behind_the_pool_in_global_order(small_set: RecallSet):
    """The pool holds the best alone, so the ranks are those of the cosines."""
    encoder = open_encoder("tiny", weights=None, device="cpu")
    method = network(encoder)
    photos = [Described(arrays=method.describe(scene(seed)), cpu_s=0.0) for seed in (1, 2, 3)]
    alone = RerankConfig(pool=PoolConfig(fixed_size=1))
    hits, _ = recall.reranked_hits(small_set, photos, photos, Reranker(alone))
    rows = np.stack([photo.arrays["descriptor"] for photo in photos])

    np.testing.assert_array_equal(hits, hits_of(rows, rows, small_set.positives))


# ------------------------------------------------------------------------------------------------------- reporting


def row(method: str, at_1: float, *, of: str = "street") -> Row:
    return Row(
        set=of,
        method=method,
        queries=4,
        queries_without_positive=1,
        database=9,
        recall=(at_1, 1.0, 1.0),
        standard_error=(0.25, 0.0, 0.0),
        cpu_ms_per_photo=12.34,
    )


def test_the_table_gives_denominators_errors_and_time():
    assert table([row(HOG, 0.5)]).splitlines()[-1] == (
        "| street | 4 (1) / 9 | HOG | 0.500 ± 0.250 | 1.000 ± 0.000 | 1.000 ± 0.000 | 12.3 |"
    )


def test_a_missed_target_is_named():
    rows = [row(HOG, 0.5), row(VLAD, 0.75), row("net", 0.75), row(f"net{RERANKED}", 0.5)]

    assert shortfalls(rows, "net") == [
        "street: 0.500 does not beat HOG (0.500)",
        "street: 0.500 does not beat RootSIFT + VLAD (0.750)",
        "street: re-ranking lowers recall@1 from 0.750 to 0.500",
    ]
    assert shortfalls([row(HOG, 0.5), row(VLAD, 0.5), row("net", 0.75), row(f"net{RERANKED}", 0.75)], "net") == []


def test_photos_that_no_camera_took_decide_nothing_but_whether_reranking_harms():
    methods = {HOG: 0.9, VLAD: 0.9, "net": 0.5, f"net{RERANKED}": 0.25}

    assert shortfalls([row(method, at_1, of="sample-city") for method, at_1 in methods.items()], "net") == [
        "sample-city: re-ranking lowers recall@1 from 0.500 to 0.250"
    ]


def test_a_set_that_is_not_here_is_named_and_the_report_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def absent(name: str) -> RecallSet:
        raise MissingPhotosError(f"{name}: its photos are not there")

    monkeypatch.setattr(recall, "load_set", absent)
    monkeypatch.setattr("sys.argv", ["recall", "--recipe", "tiny", "--sets", "street-lund", "--out", str(tmp_path / "r.json")])
    recall.main()

    assert "not measured: street-lund: its photos are not there" in capsys.readouterr().err
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["recipe"], written["trained"], written["rows"]) == ("tiny", False, [])


# ------------------------------------------------------------------------------------------------------------ sets


def test_an_unknown_set_and_a_missing_folder_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no set paris: choose from street-lund"):
        load_set("paris")
    with pytest.raises(MissingPhotosError, match=r"manifest\.csv is not there"):
        load_set("street-lund", data=tmp_path, work=tmp_path)


def test_each_real_set_has_the_split_that_its_source_gives(shared_data: Path, tmp_path: Path):
    sizes = {}
    for name in ("street-lund", "mapillary", "mapillary-held-back", "ie-tower"):
        found = load_set(name, data=shared_data, work=tmp_path)
        assert not set(found.database) & set(found.queries)
        assert found.positives.shape == (len(found.queries), len(found.database))
        assert found.positives.any(axis=1).all()
        sizes[name] = (len(found.queries), len(found.database))

    assert sizes == {
        "street-lund": (6, 23),
        "mapillary": (80, 318),
        "mapillary-held-back": (23, 318),
        "ie-tower": (504, 2373),
    }


def test_right_answers_of_a_drive_are_the_frames_before_and_after(shared_data: Path, tmp_path: Path):
    found = load_set("mapillary", data=shared_data, work=tmp_path)
    frames = [[(found.database[i].parent.name, int(found.database[i].stem)) for i in np.flatnonzero(r)] for r in found.positives]

    for query, right in zip(found.queries, frames, strict=True):
        assert {drive for drive, _ in right} == {query.parent.name}
        assert all(abs(frame - int(query.stem)) == 1 for _, frame in right)


def test_words_are_never_learnt_from_held_back_drives(shared_data: Path):
    photos = [*training_drive_photos(shared_data), *walk_photos(shared_data)]

    assert len(photos) == 183 + 39 + 59 + 29 + 3
    assert {photo.parent.name for photo in photos} == {*TRAINING_DRIVES, "lund", "berlin"}
    assert not {photo.parent.name for photo in photos} & set(HELD_BACK_DRIVES)


def test_night_is_much_darker_and_the_same_each_time():
    day = np.full((60, 80, 3), 160, np.uint8)
    dark = night(day, np.random.default_rng(5))

    np.testing.assert_array_equal(dark, night(day, np.random.default_rng(5)))
    assert np.median(dark) < 120
    assert (dark != night(day, np.random.default_rng(6))).any()


def test_sets_are_listed_in_the_order_they_are_reported():
    assert set_names()[0] == "street-lund"
    assert len(set_names()) == 6
