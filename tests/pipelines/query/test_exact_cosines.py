"""The cosine of two descriptors has the same bits whatever other descriptors are compared at the same time."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.query.worker import cosines_with

RNG = np.random.default_rng(0)


def exact_cosines(stored: Sequence[np.ndarray], query: np.ndarray) -> np.ndarray:
    return np.array([cosines_with(row, [query])[0] for row in stored])


def test_cosines_are_those_of_the_angles():
    stored = np.array([[1, 0], [0, 1], [-1, 0], [1, 1], [0.25, 0]], np.float16)

    cosines = exact_cosines(stored, np.array([1, 0], np.float32))

    assert cosines.tolist() == pytest.approx([1, 0, -1, 0.5**0.5, 1])  # the last two are not of unit length as they are stored


@pytest.mark.parametrize("dim", [3, 64, 8448])
def test_a_row_has_the_same_bits_alone_among_others_and_in_any_order(dim: int):
    stored = RNG.normal(size=(40, dim)).astype(np.float16)
    query = RNG.normal(size=dim).astype(np.float32)
    together = exact_cosines(stored, query)
    order = RNG.permutation(40)

    alone = np.concatenate([exact_cosines(stored[row : row + 1], query) for row in range(40)])
    shuffled = exact_cosines(stored[order], query)
    every_third = exact_cosines(stored[::3], query)

    assert alone.tobytes() == together.tobytes()
    assert shuffled.tobytes() == together[order].tobytes()
    assert every_third.tobytes() == together[::3].tobytes()


def test_a_query_has_the_same_bits_alone_and_among_others():
    stored, queries = RNG.normal(size=8448).astype(np.float16), list(RNG.normal(size=(9, 8448)).astype(np.float32))

    assert cosines_with(stored, queries) == [cosines_with(stored, [query])[0] for query in queries]


def test_codes_are_compared_by_their_direction():
    codes = [np.array([127, 0], np.int8), np.array([3, 4], np.int8)]

    assert exact_cosines(codes, np.array([1, 0], np.float32)).tolist() == pytest.approx([1, 0.6])


def test_equal_descriptors_tie_exactly():
    """So that the tie is decided by image id and not by rounding."""
    one = RNG.normal(size=8448).astype(np.float16)
    stored = np.stack([one, RNG.normal(size=8448).astype(np.float16), one])

    cosines = exact_cosines(stored, RNG.normal(size=8448).astype(np.float32))

    assert cosines[0] == cosines[2]


def test_a_descriptor_is_at_cosine_one_with_itself_although_it_was_halved():
    full = RNG.normal(size=8448)
    full /= np.linalg.norm(full)

    (cosine,) = exact_cosines(full.astype(np.float16)[None], full.astype(np.float32))

    assert cosine == pytest.approx(1, abs=1e-6)
