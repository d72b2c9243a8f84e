"""Matching and preprocessing against the values stored from the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fol_model import count_mutual_matches
from fol_model.preprocessing import prepare

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def matching(shared_fol: Path) -> Arrays:
    with np.load(shared_fol / "parity" / "A_losses.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith("mm_")}


@pytest.mark.parametrize(
    ("name", "min_cosine"), [("mm_scores", 0.7), ("mm_scores_T0.0", 0.0), ("mm_scores_T0.5", 0.5), ("mm_scores_T0.9", 0.9)]
)
def test_counts_agree_at_every_threshold(matching: Arrays, name: str, min_cosine: float):
    """The stored features end in twelve zero rows of padding, as in the reference."""
    query = torch.from_numpy(matching["mm_query"])

    counts = [
        count_mutual_matches(query, torch.from_numpy(candidate), min_cosine=min_cosine) for candidate in matching["mm_cands"]
    ]

    np.testing.assert_array_equal(counts, matching[name])


def test_padding_does_not_count(matching: Arrays):
    query, candidates = matching["mm_query"][:60], matching["mm_cands"][:, :60]

    counts = [count_mutual_matches(query, candidate) for candidate in candidates]

    np.testing.assert_array_equal(counts, matching["mm_scores"])


def test_a_lone_mutual_pair_scores_nothing_as_in_the_reference(matching: Arrays):
    """One feature on either side, identical: cosine 1, and a `squeeze` in the reference loses it."""
    one = matching["mm_query"][:1]

    assert count_mutual_matches(one, one) == matching["mm_one_pair_score"][0] == 0


@pytest.fixture(scope="module")
def resized(shared_fol: Path) -> Arrays:
    with np.load(shared_fol / "parity" / "A_preproc.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("size_px", [322, 504])
@pytest.mark.parametrize(("antialias", "suffix"), [(False, "noaa"), (True, "aa")])
def test_a_photo_is_normalised_then_resized_as_by_the_reference(resized: Arrays, size_px: int, antialias: bool, suffix: str):
    image = prepare(resized["image_uint8"], size_px, antialias=antialias).numpy()

    np.testing.assert_allclose(image[:, ::7], resized[f"resized{size_px}_{suffix}_every7throw"], rtol=0, atol=1e-5)
    found = [image.mean(), image.std()]
    np.testing.assert_allclose(found, resized[f"resized{size_px}_{suffix}_mean_std"], rtol=0, atol=1e-5)
