"""The optional check: pairs that one affine map explains stay, others go, and the same pairs give the same answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fol_model.config import RerankConfig
from fol_model.geometry import LEAST_PAIRS, consistent
from fol_model.matching import Features, Matches
from fol_model.reranking import LocalSide, compare

pytest.importorskip("cv2")

GRID = np.stack(np.meshgrid(np.arange(4, 20), np.arange(4, 20), indexing="ij"), axis=-1).reshape(-1, 2).astype(np.uint8)


def pairs_of(*sizes: int) -> Matches:
    """The first features of the query with those of the same number of each candidate."""
    numbers = np.concatenate([np.arange(size) for size in sizes])
    return Matches(
        place=np.repeat(np.arange(len(sizes)), sizes),
        query=numbers,
        candidate=numbers,
        cosine=np.ones(len(numbers), np.float32),
        counts=np.array(sizes),
        nearest=np.ones((len(sizes), max(sizes, default=0)), np.float32),
    )


def moved(turn_deg: float, scale: float, shift: float) -> np.ndarray:
    turn = np.radians(turn_deg)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.clip(np.rint((GRID - 12.0) @ rotation.T + 20 + shift), 0, 255).astype(np.uint8)


@settings(max_examples=30)
@given(st.floats(-20, 20), st.floats(0.7, 1.4), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_pairs_that_moved_together_stay_and_scattered_ones_go(turn_deg: float, scale: float, shift: float, seed: int):
    rng = np.random.default_rng(seed)
    there = moved(turn_deg, scale, shift)
    scattered = rng.choice(len(GRID), 80, replace=False)
    far = (there[scattered].astype(int) + rng.integers(6, 15, (80, 2)) * rng.choice([-1, 1], (80, 2))) % 64
    there[scattered] = far.astype(np.uint8)

    kept = consistent(pairs_of(len(GRID)), GRID, [there])

    others = np.setdiff1d(np.arange(len(GRID)), scattered)
    assert kept[others].mean() > 0.97
    assert kept[scattered].mean() < 0.1


def test_the_same_pairs_give_the_same_marks_alone_and_beside_others():
    rng = np.random.default_rng(3)
    patches = [rng.integers(0, 30, (40, 2)).astype(np.uint8) for _ in range(4)]
    here = rng.integers(0, 30, (40, 2)).astype(np.uint8)

    together = consistent(pairs_of(40, 40, 40, 40), here, patches)

    assert np.array_equal(together, consistent(pairs_of(40, 40, 40, 40), here, patches))
    assert np.array_equal(together[40:80], consistent(pairs_of(40), here, patches[1:2]))


@pytest.mark.parametrize("count", range(LEAST_PAIRS))
def test_few_pairs_cannot_be_checked_and_stay(count: int):
    assert consistent(pairs_of(count), GRID, [GRID[::-1].copy()]).all()


def test_patches_all_in_one_place_are_no_error():
    heap = np.full((30, 2), 7, np.uint8)

    assert consistent(pairs_of(30), heap, [heap]).shape == (30,)


def test_only_consistent_pairs_count():
    """Twenty features alike in both photos; five of the candidate's lie elsewhere."""
    here = LocalSide(features=Features(vectors=torch.eye(20)), reliability=np.full(20, 255, np.uint8), patch=GRID[: 20 * 12 : 12])
    there = GRID[: 20 * 12 : 12].copy()
    there[[2, 5, 9, 13, 17]] = [[40, 2], [1, 50], [60, 60], [33, 1], [2, 2]]
    candidate = replace(here, patch=there)

    plain = compare(here, [candidate], RerankConfig(mode="adaptive"))
    checked = compare(here, [candidate], RerankConfig(mode="adaptive", geometry="affine"))

    assert (plain.matches.tolist(), checked.matches.tolist()) == ([20], [15])
    assert checked.local_scores[0] == pytest.approx(0.75 * plain.local_scores[0])
    with pytest.raises(ValueError, match="needs the patches"):
        compare(replace(here, patch=None), [candidate], RerankConfig(geometry="affine"))
