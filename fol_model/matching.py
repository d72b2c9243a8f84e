"""Match the local features of two photos, or of one photo and many.

Two features match when each is the other's nearest neighbour and they are similar enough. The number of matches is the local
score that `reranking` sorts by (FoL, arXiv:2504.09881).

All cosines of a query and its candidates are never in memory at once: they are made in blocks of 2 MB, and what matters of a
block, the best of each row and of each column, is kept. Stored codes are whole numbers up to 127, so that every product of two
features of up to 1,040 numbers is a whole number below 2**24: exact in float32 whatever the order it is added up in, on a CPU and
on a GPU, alone and beside others. So all of them find the same pairs, bit for bit. Features in float32 or float16 are compared a
candidate at a time, and another block size or another processor may change the last bits of a cosine.

Letters: Q features of the query, C features of the candidate, D channels, p mutual pairs, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int8, Int64
from torch import Tensor
from torch.nn import functional

BLOCK: Final = 2**19
"""Cosines in memory at once: 2 MB, which a core's own cache holds."""

LARGEST_CODE: Final = {"int4": 7, "int8": 127}

NOBODY: Final = -2.0
"""Below every cosine: what padding has, and features where there is nothing to match."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Features that choose each other, in query order."""

    query: Int[Tensor, " p"]
    """Index of the query feature."""

    candidate: Int[Tensor, " p"]
    """Index of the candidate feature."""

    cosine: Float[Tensor, " p"]
    """Their cosine similarity."""

    def above(self, min_cosine: float) -> "Pairs":
        """Keep the pairs with a cosine strictly above `min_cosine`."""
        kept = self.cosine > min_cosine
        return Pairs(query=self.query[kept], candidate=self.candidate[kept], cosine=self.cosine[kept])

    def reference_count(self, min_cosine: float) -> int:
        """Count the pairs above `min_cosine` as FoL does: when only one pair chose each other, it is not counted.

        Call it on all mutual pairs, not on those that `above` kept.
        """
        return 0 if len(self.cosine) == 1 else int((self.cosine > min_cosine).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The pairs of one query and several candidates, one after the other: candidates in their order, pairs in query order."""

    place: Int64[np.ndarray, " p"]
    """Which candidate, from 0."""

    query: Int64[np.ndarray, " p"]
    """Index of the query feature."""

    candidate: Int64[np.ndarray, " p"]
    """Index of the candidate's feature."""

    cosine: Float32[np.ndarray, " p"]
    """Their cosine similarity, above the least one asked for."""

    counts: Int64[np.ndarray, " K"]
    """How many pairs each candidate has."""

    nearest: Float32[np.ndarray, "K Q"]
    """The highest cosine of each query feature in each candidate, paired or not; `NOBODY` where a candidate has no features."""

    def only(self, kept: Bool[np.ndarray, " p"]) -> "Matches":
        """Keep some pairs."""
        place = self.place[kept]
        return Matches(
            place=place,
            query=self.query[kept],
            candidate=self.candidate[kept],
            cosine=self.cosine[kept],
            counts=np.bincount(place, minlength=len(self.counts)),
            nearest=self.nearest,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The local features of one photo, ready for matching."""

    vectors: Float32[Tensor, "n D"]
    """L2-normalised, or the whole numbers of codes."""

    inverse_lengths: Float32[Tensor, " n"] | None = None
    """Of codes: what makes them unit vectors. None: they are."""

    def __len__(self) -> int:
        return len(self.vectors)


def to_codes(
    features: Float[np.ndarray, "n D"] | Int8[np.ndarray, "n D"], largest_code: int = LARGEST_CODE["int8"]
) -> Int8[np.ndarray, "n D"]:
    """Round features to whole numbers, the largest of each feature to plus or minus `largest_code`: 127 for a byte, 7 for half.

    No scale is kept: a feature has unit length, so the length of its code says how long a step is. What is rounded is the half
    precision that earlier maps hold, so that a copied map gets the codes that a new one gets. A feature of zeros stays zeros.
    """
    halved = features.astype(np.float16).astype(np.float32)
    largest = np.abs(halved).max(axis=1, keepdims=True, initial=0)
    return np.rint(halved * (largest_code / np.where(largest > 0, largest, 1))).astype(np.int8)


def from_stored(stored: np.ndarray, *, as_codes: bool, device: torch.device) -> Features:
    """Make stored features ready.

    Args:
        stored: (n, D), codes as int8 or L2-normalised features as float16 or float32.
        as_codes: whether what they are compared with are codes: then they become codes too, or else unit vectors.
        device: where they will be matched.
    """
    is_code = stored.dtype == np.int8
    if not as_codes and not is_code:
        return Features(vectors=torch.from_numpy(stored.astype(np.float32)).to(device))
    vectors = (stored if is_code else to_codes(stored)).astype(np.float32)
    squared = np.einsum("nd,nd->n", vectors, vectors)  # whole numbers below 2**24
    inverse = np.float32(1) / np.sqrt(np.maximum(squared, np.float32(1)))
    if not as_codes:
        return Features(vectors=torch.from_numpy(vectors * inverse[:, None]).to(device))
    return Features(vectors=torch.from_numpy(vectors).to(device), inverse_lengths=torch.from_numpy(inverse).to(device))


def blocks_of(query: Features, sizes: Sequence[int]) -> list[slice]:
    """Say which candidates `match_block` takes at once: as many codes as fill a block; other features one by one.

    Args:
        query: what they are matched with.
        sizes: how many features each candidate has.
    """
    together = 1
    if query.inverse_lengths is not None:
        together = max(1, BLOCK // max(1, len(query) * max(sizes, default=1)))
    return [slice(start, start + together) for start in range(0, len(sizes), together)]


def match_block(query: Features, candidates: Sequence[Features], *, min_cosine: float) -> Matches:
    """Pair, for each candidate, the features that choose each other and are similar enough.

    Args:
        query: features of one photo; may be none. Of equally near ones the first is chosen.
        candidates: of other photos, all codes if the query is, none if it is not.
        min_cosine: drop pairs at or below this cosine similarity.

    Source: as `mutual_nearest`. Where a query feature is as near to a candidate's as the one that it is paired with, but prefers
        another one, the reference finds no pair.
    """
    widest = max((len(candidate) for candidate in candidates), default=0)
    if not len(query) or not widest:
        none = np.empty(0, np.int64)
        counts = np.zeros(len(candidates), np.int64)
        nearest = np.full((len(candidates), len(query)), NOBODY, np.float32)
        return Matches(place=none, query=none, candidate=none, cosine=np.empty(0, np.float32), counts=counts, nearest=nearest)
    columns, column_scale, is_padding = _side_by_side(candidates, widest)
    step = max(1, BLOCK // len(columns))
    choice, best = [], []
    highest = np.full(len(columns), NOBODY, np.float32)
    for start in range(0, len(query), step):
        cosine = _cosines(query, columns, column_scale, slice(start, start + step))  # (rows, K * widest)
        if is_padding is not None:
            cosine.masked_fill_(is_padding, NOBODY)
        highest = np.maximum(highest, cosine.amax(dim=0).cpu().numpy())
        row_choice, row_best = _first_of_highest(cosine.view(len(cosine), len(candidates), widest))
        choice.append(row_choice)
        best.append(row_best)
    favourite, cosines = np.concatenate(choice).T, np.concatenate(best).T  # (K, Q)
    chosen_back = cosines == np.take_along_axis(highest.reshape(len(candidates), widest), favourite, axis=1)
    place, row = np.nonzero(chosen_back & (cosines > max(min_cosine, NOBODY)))
    column = favourite[place, row]
    kept = np.sort(np.unique(place * widest + column, return_index=True)[1])  # of equal rows that chose a column, the first
    place, row, column = place[kept], row[kept], column[kept]
    counts = np.bincount(place, minlength=len(candidates))
    return Matches(place=place, query=row, candidate=column, cosine=cosines[place, row], counts=counts, nearest=cosines)


def is_lone_pair(query: Features, candidate: Features) -> bool:
    """Say whether only one pair of features chose each other, however similar they are: FoL counts it as none."""
    return int(match_block(query, [candidate], min_cosine=NOBODY).counts[0]) == 1


def mutual_pairs(query: Float[Tensor, "Q D"], candidate: Float[Tensor, "C D"]) -> Pairs:
    """Pair the features of two photos that choose each other, however similar they are.

    Args:
        query: L2-normalised features of one photo; may be empty. Of equally near ones the first is chosen.
        candidate: the same for the other photo.
    """
    found = match_block(Features(vectors=query.detach()), [Features(vectors=candidate.detach())], min_cosine=NOBODY)
    row, column, cosine = (torch.from_numpy(one).to(query.device) for one in (found.query, found.candidate, found.cosine))
    return Pairs(query=row, candidate=column, cosine=cosine)


def mutual_nearest(
    query: Float[Tensor, "Q D"], candidate: Float[Tensor, "C D"], *, min_cosine: float = 0.7
) -> Int[Tensor, "matches 2"]:
    """Pair the features that choose each other and are similar enough.

    Args:
        query: L2-normalised features of one photo; may be empty.
        candidate: the same for the other photo.
        min_cosine: drop pairs at or below this cosine similarity, from -1 to 1.

    Returns:
        Rows of (query index, candidate index) in query order. No match is an answer: zero rows.

    Raises:
        ValueError: `min_cosine` is not between -1 and 1.

    Source: chenshunpeng/FoL@e930a76, test_FoL.py, `match_batch_tensor`; but a lone mutual pair counts as one here, where a
        `squeeze` there turns it into zero.
    """
    _require_cosine(min_cosine)
    pairs = mutual_pairs(query, candidate).above(min_cosine)
    return torch.stack([pairs.query, pairs.candidate], dim=1)


def count_mutual_matches(
    query: Float[Tensor, "Q D"] | Float[np.ndarray, "Q D"],
    candidate: Float[Tensor, "C D"] | Float[np.ndarray, "C D"],
    *,
    min_cosine: float = 0.7,
) -> int:
    """Count the mutual nearest neighbours of two photos: FoL's local score, including its quirk.

    Args:
        query: L2-normalised features of one photo, tensor or array; zero rows for padding do no harm.
        candidate: the same for the other photo.
        min_cosine: count pairs above this cosine similarity, from -1 to 1.

    Raises:
        ValueError: `min_cosine` is not between -1 and 1.

    Source: chenshunpeng/FoL@e930a76, test_FoL.py, `match_batch_tensor`. Where exactly one pair chose each other, whatever its
        cosine, the count is 0 there and here.
    """
    _require_cosine(min_cosine)
    return mutual_pairs(torch.as_tensor(query), torch.as_tensor(candidate)).reference_count(min_cosine)


def _require_cosine(min_cosine: float) -> None:
    if not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine must be between -1 and 1, got {min_cosine}")


def _side_by_side(
    candidates: Sequence[Features], widest: int
) -> tuple[Float[Tensor, "columns D"], Float[Tensor, " columns"] | None, Bool[Tensor, " columns"] | None]:
    """Lay candidates side by side, each padded to the widest: their vectors, inverse lengths, and which columns are padding."""
    if len(candidates) == 1:
        return candidates[0].vectors, candidates[0].inverse_lengths, None
    dim = next(one.vectors.shape[1] for one in candidates if len(one))  # one without features may be of any size
    shaped = [one.vectors if len(one) else one.vectors.new_empty((0, dim)) for one in candidates]
    vectors = torch.cat([functional.pad(one, (0, 0, 0, widest - len(one))) for one in shaped])
    scales = [one.inverse_lengths for one in candidates if one.inverse_lengths is not None]
    scale = torch.cat([functional.pad(one, (0, widest - len(one))) for one in scales]) if scales else None
    if all(len(one) == widest for one in candidates):
        return vectors, scale, None
    place = torch.arange(widest, device=vectors.device)
    return vectors, scale, torch.cat([place >= len(one) for one in candidates])


def _cosines(
    query: Features, columns: Float[Tensor, "columns D"], column_scale: Float[Tensor, " columns"] | None, rows: slice
) -> Float[Tensor, "rows columns"]:
    """Compare some rows of the query with all columns."""
    if query.inverse_lengths is None or column_scale is None:
        return query.vectors[rows] @ columns.T
    products = _exact_products(query.vectors[rows], columns)
    return products.mul_(query.inverse_lengths[rows, None]).mul_(column_scale)


def _first_of_highest(
    cosine: Float32[Tensor, "rows K C"],
) -> tuple[Int64[np.ndarray, "rows K"], Float32[np.ndarray, "rows K"]]:
    """Find in each row and candidate the highest cosine and where it is; of equal ones the first."""
    if cosine.device.type == "cpu":  # NumPy takes a sixth of PyTorch's time
        here = cosine.numpy()
        choice = here.argmax(axis=2)
        return choice, np.take_along_axis(here, choice[:, :, None], axis=2)[:, :, 0]
    best, chosen = cosine.max(dim=2)
    return chosen.cpu().numpy(), best.cpu().numpy()


def _exact_products(query: Float32[Tensor, "rows D"], columns: Float32[Tensor, "columns D"]) -> Float32[Tensor, "rows columns"]:
    """Multiply codes. On a GPU in half precision, which holds them exactly, added up in float32."""
    if query.device.type == "cuda":
        return torch.mm(query.half(), columns.half().T, out_dtype=torch.float32)
    return query @ columns.T
