"""The query worker: opens a published version of a map and says which of its photos show the same place as another photo.

    photo ▶ descriptor, local features ▶ nearest compressed descriptors ▶ exact cosines ▶ adaptive pool ▶ local matching ▶ order

It needs neither Ray nor Prefect, and the same photo gives the same answer however the map was cut (SPEC 10.4, 10.5).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float16, Float32, Float64, UInt8

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker
from infra.commits import read_head, read_version
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.engine.model import load_encoder, require_same_model, weights_file
from pipelines.engine.threads import use_threads
from pipelines.query.opened_map import OpenedMap, StoredPhoto

REFINED: Final = 2
"""Compressed candidates that are compared exactly, for each candidate that is kept. More: what compression misordered is found
again, at one row of descriptors read each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A photo of the map that may show the same place."""

    photo: StoredPhoto
    global_rank: int
    """1 is the best by descriptor alone."""
    cosine: float
    matches: int | None
    """Mutual nearest neighbours; None: not re-ranked, as are the two below."""
    local_score: float | None
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Candidates, best first: the re-ranked pool, then the rest in global order."""

    candidates: list[Candidate]
    pool_size: int
    matched_patches: UInt8[np.ndarray, "m 4"]
    """Of the first candidate: query row, query column, its row, its column, strongest first."""


class QueryWorker:
    """Answers queries from one version of a map.

    Args:
        opened: the version.
        encoder: the network it was made with.
        config: re-ranking.
    """

    def __init__(self, opened: OpenedMap, encoder: Encoder, config: RerankConfig) -> None:
        self.map: Final = opened
        self.encoder: Final = encoder
        self._reranker = Reranker(config)

    def answer(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """Find the photos of the map that show the same place as an upright RGB photo."""
        return self.answer_encoded(self.encoder.encode([pixels])[0])

    def answer_encoded(self, query: EncodedPhoto) -> Answer:
        """The same for a photo that is encoded already."""
        photos, cosines = self._best_by_descriptor(query.descriptor)
        pool = self._reranker.pool_size(cosines)
        ranked = self._reranker.rerank(query, self.map.local_features_of(photos[:pool]), cosines)
        reranked = [
            Candidate(
                photo=photos[place],
                global_rank=place + 1,
                cosine=float(cosines[place]),
                matches=int(ranked.matches[place]),
                local_score=float(ranked.local_scores[place]),
                score=float(ranked.scores[place]),
            )
            for place in ranked.order.tolist()
        ]
        rest = [
            Candidate(
                photo=photos[place],
                global_rank=place + 1,
                cosine=float(cosines[place]),
                matches=None,
                local_score=None,
                score=None,
            )
            for place in range(pool, len(photos))
        ]
        return Answer(candidates=reranked + rest, pool_size=pool, matched_patches=ranked.matched_patches[int(ranked.order[0])])

    def _best_by_descriptor(self, descriptor: Float32[np.ndarray, " D"]) -> tuple[list[StoredPhoto], Float64[np.ndarray, " K"]]:
        """The first stage: compressed search, then exact cosines; ties go to the smaller image id."""
        keep = self._reranker.config.pool.max_size
        photos = self.map.nearest(descriptor, REFINED * keep)
        cosines = exact_cosines(self.map.descriptors_of(photos), descriptor)
        order = sorted(range(len(photos)), key=lambda place: (-cosines[place], photos[place].image_id))[:keep]
        return [photos[place] for place in order], cosines[order]


def exact_cosines(stored: Float16[np.ndarray, "n D"], query: Float32[np.ndarray, " D"]) -> Float64[np.ndarray, " n"]:
    """Compare a query with stored descriptors.

    Summed row by row in float64 and not by a matrix product, whose last bits depend on which rows stand together. Stored
    descriptors lost their exact unit length when they were halved, so they are normalised again.
    """
    rows = stored.astype(np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return (rows * query.astype(np.float64)).sum(axis=1) / lengths  # type: ignore[no-any-return]


def open_worker(
    map_url: str,
    settings: Settings,
    *,
    version: int | None = None,
    weights: Path | None = None,
    device: str = "auto",
    config: RerankConfig | None = None,
) -> QueryWorker:
    """Open a version of a map for queries.

    Args:
        map_url: folder or fsspec URL.
        settings: of this process.
        version: None is the newest.
        weights: a safetensors file; None: the recipe's own, or those in the models folder.
        device: where the network runs.
        config: re-ranking; None: the defaults.

    Raises:
        MapMissing: no map there, or no such version.
        ModelError: the weights are missing or are not those the map was made with.
        DamagedError: the index is not what the manifest says.
    """
    use_threads(settings.threads)
    storage = open_storage(map_url, settings)
    manifest = read_head(storage) if version is None else read_version(storage, version)
    recipe = manifest.model.recipe
    encoder = load_encoder(recipe, weights=weights_file(recipe, weights, settings), device=device)
    remedy = "Give the weights the map was made with: --weights FILE.safetensors"
    require_same_model(encoder, manifest.model, map_url=storage.url, remedy=remedy)
    return QueryWorker(OpenedMap(storage, manifest), encoder, config or encoder.reranking)
