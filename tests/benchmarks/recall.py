"""Recall of a network and of hand-made baselines on the same photos: `make bench-recall`. Not a test.

Prints a Markdown table and writes `out/bench/recall.json`. What was computed for a photo is kept below `out/bench/cache` under
the content of the photo, of the weights and of the code that computed it, so a second run only re-ranks, and a run that was
stopped goes on where it was.

    python -m tests.benchmarks.recall --recipe folio-small --weights FILE --sets street-lund,mapillary
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker, open_encoder
from fol_model.recall import recall_at
from infra.observability import progress
from pipelines.build.request import DEFAULT_RECIPE
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.engine.threads import use_threads
from tests.benchmarks import baselines
from tests.benchmarks.recall_sets import (
    KS,
    MADE_UP,
    PROJECT,
    WORK,
    MissingPhotosError,
    RecallSet,
    hits_of,
    load_set,
    set_names,
    training_drive_photos,
    walk_photos,
)

CANDIDATES: Final = 100
"""Best database photos by exact cosine that the re-ranker may choose its pool from."""

HOG: Final = "HOG"
VLAD: Final = "RootSIFT + VLAD"
DENSE_VLAD: Final = "dense RootSIFT + VLAD"
RERANKED: Final = ", re-ranked"

Photo = UInt8[np.ndarray, "H W 3"]
LocalFeatures = Callable[[Photo], Float32[np.ndarray, "n 128"]]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to describe a photo."""

    name: str
    """As the table calls it."""
    key: str
    """Differs where descriptors may differ: results are kept under it."""
    describe: Callable[[Photo], Arrays]
    """Gives at least `descriptor`, of unit length."""
    decode_side: int | None = None
    """A JPEG may be decoded smaller; see `PhotoDecoder.decode`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """One photo, described."""

    arrays: Arrays
    cpu_s: float
    """Time of all threads when it was computed, without decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    set: str
    method: str
    queries: int
    queries_without_positive: int
    """They stay in the denominator: the best possible recall is below 1."""
    database: int
    recall: tuple[float, ...]
    """At 1, 5 and 10."""
    standard_error: tuple[float, ...]
    """Of each recall, binomial: how much it would vary with other queries."""
    cpu_ms_per_photo: float
    """Median time to describe a photo; for re-ranking the median time to re-rank a query."""


class Cache:
    """What was computed, on disk: descriptors by method and content of the photo, words by the photos they were learnt from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self, method: Method, photos: Sequence[Path], *, of: str) -> list[Described]:
        """Describe photos in their order, computing only what is not there yet.

        Args:
            method: how.
            photos: which.
            of: what the progress bar calls them.

        Raises:
            PhotoError: a photo cannot be decoded.
        """
        folder = self._folder / f"{method.name.replace(' ', '-')}-{method.key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        with PhotoDecoder(PhotoLimits()) as decoder:
            bar = progress(photos, total=len(photos), unit="photo", description=f"{of}: {method.name}")
            return [_described(method, folder, photo, decoder) for photo in bar]

    def words(self, local: LocalFeatures, photos: Sequence[Path]) -> Float32[np.ndarray, "K 128"]:
        """Learn visual words from photos, or look them up."""
        key = _digest(BASELINES_CODE, local.__name__.encode(), *(photo.read_bytes() for photo in photos))
        kept = self._folder / f"words-{key[:16]}.npz"
        if not kept.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with PhotoDecoder(PhotoLimits()) as decoder:
                bar = progress(photos, total=len(photos), unit="photo", description=f"words of {local.__name__}")
                _save(kept, {"words": baselines.learn_words(local(decoder.decode(photo.read_bytes())) for photo in bar)})
        with np.load(kept) as stored:
            return np.asarray(stored["words"])


def _described(method: Method, folder: Path, photo: Path, decoder: PhotoDecoder) -> Described:
    data = photo.read_bytes()
    kept = folder / f"{_digest(data)[:32]}.npz"
    if not kept.exists():
        pixels = decoder.decode(data, min_side=method.decode_side)
        start = time.process_time()
        arrays = method.describe(pixels)
        _save(kept, {**arrays, "cpu_s": np.array(time.process_time() - start)})
    with np.load(kept) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Described(cpu_s=float(arrays.pop("cpu_s")), arrays=arrays)


def _save(path: Path, arrays: Arrays) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # two runs may be after the same photo
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.rename(path)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


# ------------------------------------------------------------------------------------------------------- the methods


BASELINES_CODE: Final = Path(baselines.__file__).read_bytes()
"""Part of the keys: other code, other descriptors. Read when the code is, as somebody may edit it while this runs."""
NETWORK_CODE: Final = [path.read_bytes() for path in sorted((PROJECT / "fol_model").glob("*.py"))]


def baselines_for(name: str, cache: Cache) -> list[Method]:
    """List the hand-made descriptors for a set.

    The words of sparse VLAD come from street photos that are not in the set: from the drives that training may use, or, for the
    sets of drives, from the walks. (Words from the drives themselves would lift it there from 0.54 to 0.60.) Dense VLAD takes
    the drives that training may use everywhere; in the sets of drives these are part of the database, and in `mapillary` of the
    queries too.
    """
    drives = training_drive_photos()
    sparse = cache.words(baselines.sparse_rootsift, walk_photos() if name.startswith("mapillary") else drives)
    dense = cache.words(baselines.dense_rootsift, drives)
    return [
        Method(name=HOG, key=_digest(BASELINES_CODE), describe=lambda photo: {"descriptor": baselines.hog(photo)}),
        _vlad_method(VLAD, baselines.sparse_rootsift, sparse),
        _vlad_method(DENSE_VLAD, baselines.dense_rootsift, dense),
    ]


def _vlad_method(name: str, local: LocalFeatures, words: Float32[np.ndarray, "K 128"]) -> Method:
    return Method(
        name=name,
        key=_digest(BASELINES_CODE, words.tobytes()),
        describe=lambda photo: {"descriptor": baselines.vlad(local(photo), words)},
    )


def network(encoder: Encoder) -> Method:
    """Describe photos with a network, local features too."""

    def describe(photo: Photo) -> Arrays:
        (encoded,) = encoder.encode([photo])
        return {field.name: getattr(encoded, field.name) for field in fields(EncodedPhoto)}

    return Method(
        name=encoder.recipe.name,
        key=_digest(encoder.fingerprint.encode(), *NETWORK_CODE),
        describe=describe,
        decode_side=encoder.decode_side,
    )


# --------------------------------------------------------------------------------------------------------- measuring


def measure(found: RecallSet, methods: Sequence[Method], reranker: Reranker | None, cache: Cache) -> Iterator[Row]:
    """Measure each method on a set.

    Args:
        found: the set.
        methods: how to describe photos.
        reranker: measures the last method, a network, once more with its candidates re-ranked.
        cache: for descriptors.
    """
    for method in methods:
        database = cache.describe(method, found.database, of=f"{found.name}, database")
        queries = cache.describe(method, found.queries, of=f"{found.name}, queries")
        hits = hits_of(_rows(database), _rows(queries), found.positives)
        yield _row(found, method.name, hits, [photo.cpu_s for photo in database + queries])
    if reranker is not None:
        hits, cpu_s = reranked_hits(found, database, queries, reranker)
        yield _row(found, f"{methods[-1].name}{RERANKED}", hits, cpu_s)


def reranked_hits(
    found: RecallSet, database: Sequence[Described], queries: Sequence[Described], reranker: Reranker
) -> tuple[Bool[np.ndarray, "queries ranks"], list[float]]:
    """Rank as a map's query worker does, but with exact cosines of the whole database.

    Returns:
        Which ranks hold right answers, and the seconds that re-ranking took for each query.
    """
    stored, locals_ = _rows(database), [EncodedPhoto(**photo.arrays) for photo in database]
    hits, cpu_s = [], []
    bar = progress(queries, total=len(queries), unit="query", description=f"{found.name}: re-ranking")
    for query, right in zip(bar, found.positives, strict=True):
        cosines = stored.astype(np.float64) @ query.arrays["descriptor"].astype(np.float64)
        best = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        start = time.process_time()
        ranked = reranker.rerank_as_needed(EncodedPhoto(**query.arrays), [locals_[index] for index in best], cosines[best])
        cpu_s.append(time.process_time() - start)
        hits.append(right[np.concatenate([best[ranked.order], best[len(ranked.order) :]])])
    return np.array(hits), cpu_s


def _rows(photos: Sequence[Described]) -> Float32[np.ndarray, "n D"]:
    return np.stack([photo.arrays["descriptor"] for photo in photos])


def _row(found: RecallSet, method: str, hits: Bool[np.ndarray, "queries ranks"], cpu_s: Sequence[float]) -> Row:
    recall = recall_at(hits, KS)
    error = np.sqrt(recall * (1 - recall) / len(hits))
    return Row(
        set=found.name,
        method=method,
        queries=len(found.queries),
        queries_without_positive=int((~found.positives.any(axis=1)).sum()),
        database=len(found.database),
        recall=tuple(recall.round(4).tolist()),
        standard_error=tuple(error.round(4).tolist()),
        cpu_ms_per_photo=round(1e3 * float(np.median(cpu_s)), 2),
    )


# --------------------------------------------------------------------------------------------------------- reporting


def table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table."""
    lines = [
        "| set | queries (no answer) / database | method | recall@1 | recall@5 | recall@10 | CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{share:.3f} ± {error:.3f}" for share, error in zip(row.recall, row.standard_error, strict=True))
        photos = f"{row.queries} ({row.queries_without_positive}) / {row.database}"
        lines.append(f"| {row.set} | {photos} | {row.method} | {shares} | {row.cpu_ms_per_photo:.1f} |")
    return "\n".join(lines)


def shortfalls(rows: Sequence[Row], recipe: str) -> list[str]:
    """Say where the network misses its target.

    What a map answers, re-ranked, is to beat HOG and RootSIFT + VLAD at recall@1 on every set of real photos; and re-ranking is
    not to lower recall@1 on any set.
    """
    missed = []
    for name in dict.fromkeys(row.set for row in rows):
        first = {row.method: row.recall[0] for row in rows if row.set == name}
        plain, reranked = first[recipe], first[f"{recipe}{RERANKED}"]
        missed += [
            f"{name}: {reranked:.3f} does not beat {baseline} ({first[baseline]:.3f})"
            for baseline in (HOG, VLAD)
            if name not in MADE_UP and reranked <= first[baseline]
        ]
        if reranked < plain:
            missed.append(f"{name}: re-ranking lowers recall@1 from {plain:.3f} to {reranked:.3f}")
    return missed


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Recall of a network and of hand-made baselines on the same photos.")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="a network; see `folio models` (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="a safetensors file (default: the recipe's own)")
    parser.add_argument("--sets", default=",".join(set_names()), help="separated by commas (default: %(default)s)")
    parser.add_argument("--mode", default=RerankConfig().mode, choices=("adaptive", "count", "paper"), help="of re-ranking")
    parser.add_argument(
        "--out", type=Path, default=WORK / "recall.json", help="the same as JSON (default: out/bench/recall.json)"
    )
    asked = parser.parse_args()

    use_threads(1)
    cv2.setNumThreads(1)
    encoder = open_encoder(asked.recipe, weights=asked.weights, device="cpu")
    reranker, cache = Reranker(replace(encoder.reranking, mode=asked.mode)), Cache(WORK / "cache")
    rows: list[Row] = []
    for name in asked.sets.split(","):
        try:
            found = load_set(name)
            rows += measure(found, [*baselines_for(name, cache), network(encoder)], reranker, cache)
        except MissingPhotosError as error:
            print(f"not measured: {error}", file=sys.stderr)
    facts = {"recipe": encoder.recipe.name, "fingerprint": encoder.fingerprint, "trained": encoder.trained}
    written = {**facts, "reranking": asdict(reranker.config), "candidates": CANDIDATES, "rows": [asdict(row) for row in rows]}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    part = asked.out.with_suffix(".part")
    part.write_text(json.dumps(written, indent=1) + "\n")
    part.rename(asked.out)
    print(table(rows))
    for missed in shortfalls(rows, encoder.recipe.name):
        print(f"target missed: {missed}")


if __name__ == "__main__":
    main()
