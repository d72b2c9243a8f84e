"""Recall on held-out photos after each epoch.

Every query is looked up among all the other held-out photos: exactly, by descriptor alone and after re-ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64

from fol_model.config import PoolConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker
from fol_model.recall import recall_at
from infra.observability import progress
from pipelines.train.hold_out import same_place
from pipelines.train.loading import PhotoLoader
from pipelines.train.photos import TrainingPhoto
from pipelines.train.request import Recall

RECALL_AT: Final = (1, 5, 10)

BATCH: Final = 32
"""Photos that are handed to the network at once."""

MATCHED: Final = 25
"""Candidates of a query that are matched. Enough for recall@10, and a quarter of what an evaluation spends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What to look up, decided once for a run."""

    rows: list[int]
    """Of the photos that are searched."""

    queries: list[int]
    """Places in `rows` of those that are looked up. Each has an answer among the others."""

    truth: Bool[np.ndarray, "queries n"]
    """Which of `rows` answer each query."""


def plan_validation(photos: Sequence[TrainingPhoto], rows: list[int], *, max_queries: int) -> Validation | None:
    """Choose the queries among held-out photos, evenly.

    Returns:
        None: no held-out photo shows the same place as another, so nothing can be looked up.
    """
    held = [photos[row] for row in rows]
    candidates = list(range(len(rows)))
    truth = same_place(held, candidates)
    answerable = [at for at in candidates if truth[at].any()]
    if not answerable:
        return None
    chosen = np.unique(np.linspace(0, len(answerable) - 1, min(max_queries, len(answerable))).round().astype(int))
    queries = [answerable[at] for at in chosen.tolist()]
    return Validation(rows=rows, queries=queries, truth=truth[queries])


def validate(plan: Validation, encoder: Encoder, loader: PhotoLoader, *, epoch: int) -> Recall:
    """Encode the held-out photos and look the queries up.

    A photo that cannot be read is a reject, and is neither asked about nor found; a query whose answers are all gone stays, as
    one that is not answered.

    Raises:
        StorageError: a store does not answer.
    """
    encoded = _encode(plan, encoder, loader)
    found = [at for at, photo in enumerate(encoded) if photo is not None]
    readable = [photo for photo in encoded if photo is not None]
    place = {at: number for number, at in enumerate(found)}
    asked = [number for number, at in enumerate(plan.queries) if at in place]
    if not asked:
        return Recall(epoch=epoch, queries=0, photos=len(readable), global_=[0.0] * 3, reranked=[0.0] * 3)
    queries = np.array([place[plan.queries[number]] for number in asked])
    truth = plan.truth[np.ix_(asked, found)]
    order, cosines = search(np.stack([photo.descriptor for photo in readable]), queries)
    reranker = Reranker(replace(encoder.reranking, pool=PoolConfig(fixed_size=MATCHED)))
    reranked = np.stack(
        [_rerank(reranker, readable, int(query), ranks, own) for query, ranks, own in zip(queries, order, cosines, strict=True)]
    )
    return Recall(
        epoch=epoch,
        queries=len(queries),
        photos=len(readable),
        global_=_recalls(truth, order),
        reranked=_recalls(truth, reranked),
    )


def search(
    descriptors: Float32[np.ndarray, "n D"], queries: Int64[np.ndarray, " q"]
) -> tuple[Int64[np.ndarray, "q ranks"], Float32[np.ndarray, "q ranks"]]:
    """Put all other photos in order of their cosine with each query, ties by row; the query itself is not among them."""
    cosines = descriptors[queries] @ descriptors.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :-1]
    return order, np.take_along_axis(cosines, order, axis=1)


def _rerank(
    reranker: Reranker,
    photos: Sequence[EncodedPhoto],
    query: int,
    order: Int64[np.ndarray, " ranks"],
    cosines: Float32[np.ndarray, " ranks"],
) -> Int64[np.ndarray, " ranks"]:
    """Match the first candidates and put them in order; the others stay behind them."""
    first = [photos[row] for row in order[: reranker.config.pool.max_size].tolist()]
    better = reranker.rerank_as_needed(photos[query], first, cosines.astype(np.float64)).order
    return np.concatenate([order[better], order[len(better) :]])


def _recalls(truth: Bool[np.ndarray, "q n"], order: Int64[np.ndarray, "q ranks"]) -> list[float]:
    return [float(value) for value in recall_at(np.take_along_axis(truth, order, axis=1), RECALL_AT)]


def _encode(plan: Validation, encoder: Encoder, loader: PhotoLoader) -> list[EncodedPhoto | None]:
    """Encode the held-out photos in their order; None where one cannot be read."""
    encoded: list[EncodedPhoto | None] = []
    batch: list[np.ndarray | None] = []
    loaded = loader.pixels(plan.rows, min_side=encoder.decode_side)
    for pixels in progress(loaded, total=len(plan.rows), unit="photo", description="validation"):
        batch.append(pixels)
        if len(batch) == BATCH or len(encoded) + len(batch) == len(plan.rows):
            good = iter(encoder.encode([pixels for pixels in batch if pixels is not None]))
            encoded += [None if pixels is None else next(good) for pixels in batch]
            batch.clear()
    return encoded
