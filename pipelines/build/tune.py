"""How many cells to look at, and how many photos to compare exactly, measured on photos that the quantizer has not seen.

The photos held out of training ask for their exact neighbours among those of the training sample. A neighbour that stands at
rank r of the compressed search of s photos stands at about r * N / s in a map of N: others come between in proportion. So what
a search of the whole map would find is measured without reading it. Where the sample is a part of the map its photos stand
further apart than the map's, and are harder to find: what is promised is less than what is kept.

The ten nearest are asked for, not the nearest, which is often the next frame of the same drive and is found by any index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from pipelines import ivfpq
from pipelines.ivfpq import LEAST_PROBED, Descriptors, IndexConfig, IvfPqParameters, ShardSearcher, in_float32, pool_size
from schemas.errors import PlanError
from schemas.manifest import Manifest

QUERIES: Final = 256
"""Held-out photos that ask, at most: a recall of 0.99 is then good to 0.003, as each asks for up to ten."""

SEARCHED: Final = 32_768
"""Photos of the sample that are searched, at most."""

NEIGHBOURS: Final = 10
"""Exact neighbours in the map that are to be found."""

HANDED: Final = 100
"""Candidates that re-ranking is given where every one is looked at: the exact neighbours that it would ideally be."""

REFINED: Final = (200, 400, 800, 1600, 3200)
"""Numbers of photos compared exactly that are tried, at a request of 8.5 kB each; those beyond `USUAL_REFINED` are chosen only
where a recall is asked for."""

USUAL_REFINED: Final = 400

ENOUGH_HANDED: Final = 0.97
"""Share of `HANDED` from which on no more photos are compared exactly, where no recall is asked for."""

LOST_CELLS: Final = 0.001
"""Recall that may be lost by not looking at every cell, where no recall is asked for. With 0.005 half of the
cells were looked at of three million photos, which lost 0.02 of the nearest and saved 25 ms."""

SECONDS_PER_CODE_BYTE: Final = 1e-9
"""That is scanned, of one core. These are not measured anew for each map, so that equal maps get equal numbers."""

SECONDS_PER_SHORTENED: Final = 1e-10
"""Per code byte whose short half is scanned."""

SECONDS_PER_RANKED: Final = 7e-7
"""Per photo that the short codes choose."""

SECONDS_PER_REFINED: Final = 3e-5
"""Per photo compared exactly."""

MOST_CODE_BYTES: Final = 512
"""The most that is tried in order to say what would reach a recall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A way to search a map, and what it finds."""

    nprobe: int
    refined: int
    recall: float
    """Share of the exact `NEIGHBOURS` that are among the refined."""
    handed: float
    """The same of the exact `HANDED`."""

    def seconds(self, photos: int, parameters: IvfPqParameters) -> float:
        """Estimate the processor time of the first stage of a query."""
        scanned = photos * self.nprobe / parameters.nlist * parameters.code_bytes
        pool = pool_size(photos, self.refined)
        scan = scanned * SECONDS_PER_CODE_BYTE if pool is None else scanned * SECONDS_PER_SHORTENED + pool * SECONDS_PER_RANKED
        return scan + self.refined * SECONDS_PER_REFINED


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What is chosen for a map, and what it was chosen from."""

    chosen: Trial
    tried: list[Trial]
    queries: int
    searched: int

    def to_json(self) -> dict[str, Any]:
        """Give plain values for the manifest."""
        return {
            **asdict(self.chosen),
            "tried": [asdict(trial) for trial in self.tried],
            "tuned_by": {"queries": self.queries, "searched": self.searched, "neighbours": NEIGHBOURS},
        }


def settled(config: IndexConfig, head: Manifest | None) -> IndexConfig:
    """Ask for what the version before was asked for, where nothing else is."""
    before = head.configuration.get("index", {}) if head else {}
    return replace(config, code_bytes=config.code_bytes or before.get("code_bytes"), recall=config.recall or before.get("recall"))


def tune(
    quantizer: bytes,
    learned: Descriptors,
    queries: Descriptors,
    *,
    parameters: IvfPqParameters,
    photos: int,
    config: IndexConfig,
) -> Tuning:
    """Choose how to search a map of `photos` photos: the cheapest way that finds enough, else the one that finds most.

    Args:
        quantizer: what `ivfpq.train_quantizer` made of `learned`.
        learned: descriptors of photos of the map.
        queries: others, which it was not made of; with none, every cell is looked at and nothing is measured.
        parameters: of the quantizer.
        photos: N.
        config: what is asked for.
    """
    refined = sorted({min(photos, size) for size in REFINED})
    if not len(queries):
        most = refined[-1 if config.recall else 0]
        found = 1.0 if most == photos else 0.0
        chosen = Trial(nprobe=parameters.nlist, refined=most, recall=found, handed=found)
        return Tuning(chosen=chosen, tried=[chosen], queries=0, searched=0)
    # Without the photos that the axes were fitted to, where others are left: they are easier to find than the rest of the map.
    searched = learned[min(config.pca_photos, max(0, len(learned) - SEARCHED)) :][:SEARCHED]
    queries = np.asarray(queries[:QUERIES], np.float32)
    scale = photos / len(searched)
    wanted = [_nearest(queries, searched, max(1, round(count / scale))) for count in (NEIGHBOURS, HANDED)]
    shard = ivfpq.make_shard(quantizer, searched.shape[1], _numbered(searched))
    tried = []
    for nprobe in _cells(parameters.nlist):
        searcher = ShardSearcher(quantizer, nprobe, [shard], rows=[len(searched)], stands_for=photos)
        for _, sizes in groupby(refined, key=lambda size: pool_size(photos, size)):
            together = list(sizes)
            hits = searcher.search(queries, int(np.ceil(together[-1] / scale)))
            ranks = [_ranks(hits, exact) * scale for exact in wanted]
            for size in together:
                recall, handed = (round(float((rank < size).mean()), 4) for rank in ranks)
                tried.append(Trial(nprobe=nprobe, refined=size, recall=recall, handed=handed))
    enough = [trial for trial in tried if config.recall and trial.recall >= config.recall]
    if enough:
        chosen = min(enough, key=lambda trial: trial.seconds(photos, parameters))
    elif config.recall:
        chosen = max(tried, key=lambda trial: (trial.recall, -trial.seconds(photos, parameters)))
    else:  # cells are judged by all that is found in them, however deep: what is refined is given
        in_cells = {trial.nprobe: trial.recall for trial in tried if trial.refined == refined[-1]}
        nprobe = min(cells for cells, recall in in_cells.items() if recall >= max(in_cells.values()) - LOST_CELLS)
        usual = [trial for trial in tried if trial.nprobe == nprobe and trial.refined <= USUAL_REFINED] or tried[:1]
        chosen = next((trial for trial in usual if trial.handed >= ENOUGH_HANDED), usual[-1])
    return Tuning(chosen=chosen, tried=tried, queries=len(queries), searched=len(searched))


def require_recall(
    tuning: Tuning,
    learned: Descriptors,
    queries: Descriptors,
    *,
    parameters: IvfPqParameters,
    photos: int,
    config: IndexConfig,
) -> None:
    """Refuse to go on with an index that finds less than is asked for; arguments as `tune`.

    Raises:
        PlanError: so it is. Says what would do, after trying longer codes.
    """
    if config.recall is None or tuning.chosen.recall >= config.recall:
        return
    best = tuning.chosen
    longer = _reached_with_longer_codes(learned, queries, parameters=parameters, photos=photos, config=config)
    raise PlanError(
        f"a recall of {config.recall:g} was asked for, but codes of {parameters.code_bytes} bytes find at most "
        f"{best.recall:.4f} of the {NEIGHBOURS} nearest, with {best.refined:,} photos compared exactly and {best.nprobe:,} of "
        f"{parameters.nlist:,} cells looked at (measured with {tuning.queries} photos held out of training). Nothing was "
        f"published; what is encoded is kept. Ask for {_said(longer)}--recall {np.floor(best.recall * 100) / 100:.2f}"
    )


def _said(longer: Sequence[tuple[int, float]]) -> str:
    if not longer:
        return ""
    code_bytes, recall = longer[-1]
    return f"--bytes {code_bytes}, which finds {recall:.4f}, or for "


def _reached_with_longer_codes(
    learned: Descriptors,
    queries: Descriptors,
    *,
    parameters: IvfPqParameters,
    photos: int,
    config: IndexConfig,
) -> list[tuple[int, float]]:
    """Try longer codes until the recall is reached: (bytes, recall) of each; empty where there are none."""
    tried: list[tuple[int, float]] = []
    for code_bytes in (2 * parameters.code_bytes, 4 * parameters.code_bytes):
        asked = replace(config, code_bytes=code_bytes)
        longer = ivfpq.derive_parameters(photos, learned.shape[1], asked)
        if longer is None or longer.code_bytes != code_bytes or code_bytes > MOST_CODE_BYTES:
            break
        quantizer = ivfpq.train_quantizer(learned, longer, asked)
        found = tune(quantizer, learned, queries, parameters=longer, photos=photos, config=asked).chosen
        tried.append((code_bytes, found.recall))
        if config.recall is not None and found.recall >= config.recall:
            break
    return tried


def _cells(nlist: int) -> list[int]:
    """List the numbers of cells that are tried."""
    probed = min(nlist, LEAST_PROBED)
    numbers = [probed]
    while probed < nlist:
        probed = min(nlist, 2 * probed)
        numbers.append(probed)
    return numbers


def _numbered(searched: Descriptors) -> Iterator[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]]:
    start = 0
    for block in in_float32(searched):
        yield block, np.arange(start, start + len(block))
        start += len(block)


def _nearest(queries: Float32[np.ndarray, "q D"], searched: Descriptors, count: int) -> Int64[np.ndarray, "q count"]:
    """Find the exact neighbours of each query."""
    cosines = np.concatenate([queries @ block.T for block in in_float32(searched)], axis=1)
    count = min(count, len(searched))
    return np.argpartition(-cosines, count - 1, axis=1)[:, :count].astype(np.int64)


def _ranks(
    found: Sequence[Sequence[tuple[float, int, int]]], wanted: Int64[np.ndarray, "q count"]
) -> Float32[np.ndarray, "q count"]:
    """Give the rank, from 0, of each wanted photo in what a search found; infinity where it is not there."""
    ranks = np.full(wanted.shape, np.inf, np.float32)
    for row, hits in enumerate(found):
        places = {photo: place for place, (_, _, photo) in enumerate(hits)}
        ranks[row] = [places.get(photo, np.inf) for photo in wanted[row].tolist()]
    return ranks
