"""What `query` measures is what it says: the plain method counts right, made-up photos look alike as said, sums are sums."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float32
from torch import Tensor

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto
from fol_model.matching import count_mutual_matches
from fol_model.recipes import folio_small
from infra.settings import Settings
from infra.storage import LocalStorage
from tests.benchmarks import query
from tests.benchmarks.query import (
    EXACT,
    FIXED,
    FOLIO,
    REFERENCE,
    Asked,
    CountingStorage,
    MadeUpPhotos,
    as_reference,
    measure_worker,
    pick_queries,
    place_for_map,
    plain_count,
    reference_recipe,
    rerank_rows,
    rerank_table,
    stored_bytes,
    worker_row,
    worker_table,
    write_map,
    write_part,
)


def features(seed: int, count: int, dim: int = 8) -> Float32[Tensor, "n D"]:
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim), np.float32))
    return drawn / drawn.norm(dim=1, keepdim=True)


# ------------------------------------------------------------------------------------------------- the reference


def test_the_plain_method_counts_what_our_matcher_counts():
    for seed in range(20):
        here, there = features(seed, 40), features(seed + 100, 30)
        count = plain_count(here, there, min_cosine=0.5)
        assert count == count_mutual_matches(here, there, min_cosine=0.5)
        assert count > 0


def test_the_plain_method_loses_a_lone_pair_as_the_reference_does():
    assert plain_count(features(0, 1), features(0, 1), min_cosine=0.5) == 0
    assert plain_count(torch.eye(2), torch.eye(2), min_cosine=0.5) == 2


def test_features_filled_up_with_zeros_have_the_same_cosines():
    halves = np.array([[0.5] * 4, [1.0, 0, 0, 0]], np.float32)
    nothing = np.zeros((2, 2), np.uint8)
    photo = EncodedPhoto(descriptor=halves[0], features=halves, patch=nothing, reliability=nothing[0])
    filled = as_reference(photo)

    assert filled.shape == (2, 128)
    assert (filled @ filled.T).tolist() == [[1, 0.5], [0.5, 1]]


def test_the_reference_keeps_every_feature_of_225_patches_unrounded():
    """At most 16 a patch; beside its numbers a feature is stored with 4 bytes, and a photo with 4 more."""
    recipe = replace(folio_small(), local_dim=48, local_precision="int4")

    assert reference_recipe(recipe).max_local_features == 225 * 16
    assert stored_bytes(recipe) == 640 * (24 + 4) + 4
    assert stored_bytes(reference_recipe(recipe)) == 3_600 * (48 * 4 + 4) + 4


def test_queries_are_picked_the_same_in_every_run():
    assert pick_queries(3, 12).tolist() == [0, 1, 2]
    picked = pick_queries(100, 12)
    assert picked.tolist() == sorted(set(picked.tolist()))
    np.testing.assert_array_equal(picked, pick_queries(100, 12))


# ------------------------------------------------------------------------------------------------------- summing up


def asked(method: str, cpu_s: float, ranks: list[int], *, timed: int = 4) -> Asked:
    """One query with four candidates, those at `ranks` right."""
    hits = np.isin(np.arange(4), ranks)
    return Asked(method=method, candidates=4, timed=timed, cpu_s=cpu_s, wall_s=2 * cpu_s, read_bytes=500_000, hits=hits)


def test_rows_are_means_of_queries_and_ratios_of_these():
    both = [
        *(asked(REFERENCE, cpu_s, [0], timed=2) for cpu_s in (8.0, 12.0)),
        *(asked(method, 0.1, ranks) for method in (EXACT, FIXED, FOLIO) for ranks in ([0], [3])),
    ]
    rows = rerank_rows("street", both)

    assert [row.method for row in rows] == [REFERENCE, EXACT, FIXED, FOLIO]
    assert [row.times_less for row in rows] == [1, 100, 100, 100]
    assert rows[0].recall == (1, 1)
    assert rows[1].recall == (0.5, 1)
    assert rerank_table(rows).splitlines()[2] == (
        "| street | reference, plain (timed on 2 candidates) | 2 | 4.0 | 10,000.0 | 20,000.0 | 1.0 | 0.50 | "
        "1.000 ± 0.000 | 1.000 ± 0.000 |"
    )


def test_a_round_of_queries_becomes_a_line():
    row = worker_row(8, "cold", [0.01] * 99 + [0.5], 2.0, (300, 50_000, 10, 20_000), pool=5.0, right=0.9, peak_mb=12.0)

    assert worker_table([row]).splitlines()[-1] == "| 8 | cold | 10.0 | 14.9 | 20.0 | 5.0 | 3.0 | 0 | 0.1 | 0 | 0.90 | 12 |"
    assert (row.range_kb, row.whole_kb) == (0.5, 0.2)


def test_a_part_that_is_measured_alone_leaves_the_other(tmp_path: Path):
    out = tmp_path / "new" / "query.json"
    write_part(out, "rerank", {"rows": [1]})
    write_part(out, "worker", {"rows": [2]})
    write_part(out, "rerank", {"rows": [3]})

    assert json.loads(out.read_text()) == {"rerank": {"rows": [3]}, "worker": {"rows": [2]}}


# -------------------------------------------------------------------------------------------------- the made-up map


def test_made_up_photos_look_alike_within_a_place_more_than_within_a_street():
    photos = MadeUpPhotos()
    rows = photos.descriptors([0, 1, 8, 64])
    (visited,) = photos.descriptors([0], visit=1)

    np.testing.assert_allclose(rows[3:], MadeUpPhotos().descriptors([64]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] == pytest.approx(0.45, abs=0.06)
    assert visited @ rows[0] == pytest.approx(0.45, abs=0.06)
    assert rows[0] @ rows[2] == pytest.approx(0.3, abs=0.08)
    assert rows[0] @ rows[3] == pytest.approx(0.1, abs=0.12)


def test_requests_are_counted_by_kind(tmp_path: Path):
    storage = CountingStorage(LocalStorage(str(tmp_path)))
    storage.put("a", b"12345")
    storage.get("a")
    storage.get("a", start=1, stop=3)
    storage.get("a", start=-1)

    assert storage.take() == (2, 3, 1, 5)
    assert storage.take() == (0, 0, 0, 0)


def test_nothing_is_left_of_a_map_in_a_bucket(tmp_path: Path):
    bucket = LocalStorage(str(tmp_path))
    with place_for_map(8, str(tmp_path), Settings(threads=1)) as url:
        LocalStorage(url).put("segments/a", b"1")
        assert len(list(bucket.list())) == 1

    assert not list(bucket.list())


def test_a_worker_answers_from_a_made_up_map_and_reads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(query, "use_threads", lambda count: None)  # this process is pytest's
    settings = Settings(threads=1)
    manifest = write_map(LocalStorage(str(tmp_path)), 64, MadeUpPhotos())
    opening, (cold, warm) = measure_worker(str(tmp_path), settings, 64, 2, 3)

    assert manifest.statistics["photos"] == 64
    assert opening.requests > 0
    assert cold.right == warm.right == 1
    assert cold.ranges > 0
    assert warm.ranges == warm.wholes == 0
    assert 1 <= cold.pool <= RerankConfig().pool.max_size
