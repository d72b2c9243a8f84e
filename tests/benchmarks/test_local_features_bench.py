from dataclasses import replace

import numpy as np
import pytest

from fol_model.config import RerankConfig
from fol_model.inference import Encoder, Reranker
from fol_model.recipes import tiny
from fol_model.weights import build, checked_state, seeded_weights
from tests.benchmarks.local_features import (
    EVERYTHING,
    SHIPPED,
    SPREAD_OUT,
    Row,
    Variant,
    best_patches,
    derive,
    drawing,
    first_places,
    float_features,
    nearest,
    sample_queries,
    table,
    variants,
)
from tests.benchmarks.recall import Arrays
from tests.benchmarks.recall_sets import RecallSet

PLACES = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [2, 2]], np.uint8)
SCORES = np.array([0.1, 0.9, 0.5, 0.7, 0.5], np.float32)


def some_photo(seed: int) -> Arrays:
    """Features of unit length of every patch of a grid of 4 x 4."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((16, 6)).astype(np.float32)
    return {
        "features": features / np.linalg.norm(features, axis=1, keepdims=True),
        "patch": np.argwhere(np.ones((4, 4), bool)).astype(np.uint8),
        "reliability": rng.integers(0, 256, 16, dtype=np.uint8),
        "mask_score": rng.random(16, np.float32),
    }


def test_the_best_patches_are_kept_in_raster_order_and_of_equal_ones_the_first():
    assert best_patches(SCORES, PLACES, Variant(features=3)).tolist() == [1, 2, 3]


def test_spread_out_keeps_the_best_of_every_second_row_and_column():
    """Rows and columns 0 and 2 only: the two best patches of all are not among them."""
    assert best_patches(SCORES, PLACES, Variant(features=2, step=2)).tolist() == [2, 4]


def test_fewer_numbers_are_the_first_ones_made_a_unit_vector_again():
    """(3, 4) of (3, 4, 12) / 13 becomes (0.6, 0.8), and in four bits 0.8 is 7 and 0.6 is 5.25."""
    photo = {
        "features": np.array([[3, 4, 12]], np.float32) / 13,
        "patch": PLACES[:1],
        "reliability": np.array([200], np.uint8),
        "mask_score": SCORES[:1],
    }
    floats = derive(photo, Variant(features=1, dim=2, precision="float32"))
    codes = derive(photo, Variant(features=1, dim=2, precision="int4"))

    np.testing.assert_allclose(floats.features, [[0.6, 0.8]], atol=1e-6)
    assert codes.features.tolist() == [[5, 7]]
    assert (codes.patch.tolist(), codes.reliability.tolist()) == ([[0, 0]], [200])


@pytest.mark.parametrize("step", [1, 2])
def test_a_variant_is_what_the_encoder_keeps(step: int):
    """The network with seeded weights, asked for all patches and for every second row and column of them."""
    recipe = replace(tiny(), local_precision="int4", local_patch_step=step)
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (encoded,) = Encoder(recipe, device="cpu", arithmetic="float32").encode([photo])
    network = build(tiny(), checked_state(tiny(), seeded_weights(tiny())))
    kept = derive(float_features(network, photo), Variant(features=recipe.max_local_features, step=step, dim=recipe.local_dim))

    np.testing.assert_array_equal(kept.patch, encoded.patch)
    np.testing.assert_array_equal(kept.reliability, encoded.reliability)
    np.testing.assert_array_equal(kept.features, encoded.features)


def test_bytes_of_a_photo_are_those_of_its_features_and_a_checksum():
    """48 numbers of four bytes or of one, and four bytes for the place of each feature."""
    assert EVERYTHING.bytes_per_photo == 640 * (192 + 4) + 4
    assert SHIPPED.bytes_per_photo == 640 * (48 + 4) + 4
    assert len(set(variants())) == 30
    assert {EVERYTHING, SHIPPED, SPREAD_OUT} <= set(variants())


def test_a_query_is_reranked_as_a_map_does_it_and_by_all_matches():
    kept = [derive(some_photo(seed), Variant(features=12, dim=6)) for seed in range(9)]
    query, candidates = kept[0], [*kept[1:], kept[0]]
    cosines = np.linspace(0.5, 0.3, len(candidates))
    (adaptive, adaptive_all, count), _ = first_places(query, candidates, cosines)

    assert adaptive == Reranker(RerankConfig()).rerank_as_needed(query, candidates, cosines).order[0]
    assert adaptive_all == count == len(candidates) - 1  # the query itself, globally the last


def test_queries_are_drawn_with_their_answers_and_always_the_same():
    names = [f"{index}.jpg" for index in range(9)]
    found = RecallSet(name="some", database=names, queries=names, positives=np.eye(9, dtype=bool))
    drawn = sample_queries(found, 4)

    assert len(drawn.queries) == 4
    assert drawn.queries == sample_queries(found, 4).queries
    assert [names[int(right.argmax())] for right in drawn.positives] == drawn.queries
    assert sample_queries(found, 9) is found


def test_candidates_come_by_falling_cosine():
    best, cosines = nearest(np.eye(3, dtype=np.float32), np.array([[0.6, 0.0, 0.8]], np.float32))

    assert best.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(cosines, [[0.8, 0.6, 0]], atol=1e-6)


def test_the_table_has_a_line_for_each_variant_and_the_drawing_names_each_set():
    def row(of: str, variant: Variant | None, cpu_ms: float) -> Row:
        size = 0 if variant is None else variant.bytes_per_photo
        shares = {"recall_adaptive": 0.75, "recall_adaptive_all": 0.5, "recall_count": 0.5}
        return Row(set=of, variant=variant, bytes_per_photo=size, queries=4, database=9, cpu_ms=cpu_ms, **shares)

    rows = [row(of, variant, cpu_ms) for of, cpu_ms in (("lund", 10.0), ("tower", 20.0)) for variant in (None, *variants())]
    lines = table(rows).splitlines()

    assert lines[0] == "| local features | bytes a photo | CPU ms | lund (4) | tower (4) |"
    assert lines[2].startswith("| none: the descriptor alone | 0 | ")
    assert lines[4] == "| 640 × 48 int8 (folio-small) | 33,284 | 15 | 0.750 / 0.500 | 0.750 / 0.500 |"
    assert len(lines) == 2 + 31 + 2
    assert "tower&amp;nbsp;(4)" in drawing(rows)
