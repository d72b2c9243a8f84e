"""What a query costs, beside the method it comes from, and what a worker costs on a large map: `make bench-query`. Not a test.

Prints Markdown tables and writes `out/bench/query.json`, where a part that is not asked for stays as it is. What photos became
is kept below `out/bench/cache`, so a second run only re-ranks.

    python -m tests.benchmarks.query --parts rerank --sets street-lund --queries 2
    python -m tests.benchmarks.query --parts worker --map-photos 3000

Part `rerank`: three ways to put the same candidates of the same queries in order, on one thread, with local features in memory.
The reference is FoL's matching written plainly, with features as many and as long as FoL's: the shipped network keeps every
feature of 225 patches, and each is filled up with zeros to 128 numbers, which leaves every cosine as it is.

Part `worker`: a map of made-up photos goes through the writers of a build; then a fresh process opens it and answers queries.
Cold means that the worker has read nothing yet; the files were just written, so the operating system may still hold them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from uuid import uuid4

import cv2
import msgspec
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn import functional

from fol_model.config import PoolConfig, Recipe, RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker, open_encoder
from fol_model.matching import LARGEST_CODE
from fol_model.recall import recall_at
from fol_model.recipes import folio_small
from fol_model.weights import load_safetensors, shipped_weights
from infra.arrays import CRC_BYTES, LocalFeaturesWriter
from infra.commits import publish, read_head
from infra.observability import progress
from infra.settings import S3_ENDPOINT, Settings
from infra.storage import Storage, open_storage
from pipelines.build.encode import finish_segment
from pipelines.build.index import build_index
from pipelines.build.masking import content_id
from pipelines.build.membership import read_stored
from pipelines.engine.partition import PartitionConfig, cut
from pipelines.engine.threads import use_threads
from pipelines.ivfpq import IndexConfig
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import QueryWorker
from schemas import layout
from schemas.images import image_id
from schemas.local_features import LocalFeatures, bytes_per_feature
from schemas.manifest import Manifest, ModelEntry, SegmentEntry
from tests.benchmarks.recall import CANDIDATES, Cache, Described, network
from tests.benchmarks.recall_sets import WORK, MissingPhotosError, load_set, set_names
from tests.faults.ceph import ACCESS_KEY, SECRET_KEY, Gateway, missing_programs
from tests.pipelines.maintain import photo_maps
from tests.schemas import samples

SEED: Final = 20_261_121
"""Of the queries that are picked, and of the made-up photos."""

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------- re-ranking

REFERENCE_PATCHES: Final = 225
REFERENCE_DIM: Final = 128
"""How many patches FoL keeps the features of, all of them, and how many numbers each has."""

TIMED: Final = 5
"""Candidates of a query that the reference is timed on, unless `--full` is given: each costs it the same."""

REFERENCE: Final = "reference, plain"
EXACT: Final = "Folio, the reference's features"
FIXED: Final = "Folio, every candidate"
FOLIO: Final = "Folio"
METHODS: Final = (REFERENCE, EXACT, FIXED, FOLIO)

ALL_SETS: Final = "all"

CEPH: Final = "ceph"
"""What `--s3` may be instead of a URL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one way to re-rank took for one query."""

    method: str
    candidates: int
    timed: int
    """How many of them the times were measured on."""
    cpu_s: float
    """For all candidates, as is the next."""
    wall_s: float
    read_bytes: int
    """Stored local features of the candidates."""
    hits: Bool[np.ndarray, " ranks"]
    """Which ranks hold right answers; the candidates behind the pool follow in global order."""
    unequal: int = 0
    """Of those timed, how many have another count by the plain method than by our matcher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankRow:
    """One line of the table."""

    set: str
    method: str
    queries: int
    candidates: float
    """Mean of what a query re-ranks."""
    timed: float
    """Mean of how many of them the times were measured on."""
    cpu_ms: float
    """Mean a query, as is all that follows."""
    wall_ms: float
    times_less: float
    """CPU time of the reference over this."""
    read_kb: float
    recall: tuple[float, float]
    """At 1 and 5."""
    standard_error: tuple[float, float]
    """Of each recall, binomial: how much it would vary with other queries."""


class Rerankers:
    """The ways to re-rank, loaded once."""

    def __init__(self, shipped: Encoder) -> None:
        recipe = reference_recipe(shipped.recipe)
        weights = shipped_weights(folio_small())
        assert weights is not None, "folio-small comes with its weights"
        self.shipped: Final = network(shipped)
        self.large: Final = replace(network(Encoder(recipe, load_safetensors(weights), device="cpu")), name="folio-small-as-fol")
        config = shipped.reranking
        self._min_cosine = config.min_cosine
        every = replace(config, pool=PoolConfig(fixed_size=CANDIDATES))
        self._count = Reranker(replace(every, mode="count"))
        self._ways: Final[dict[str, tuple[Reranker, Recipe]]] = {
            EXACT: (Reranker(every), recipe),
            FIXED: (Reranker(every), shipped.recipe),
            FOLIO: (Reranker(config), shipped.recipe),
        }

    def ask(
        self,
        query: tuple[EncodedPhoto, EncodedPhoto],
        candidates: tuple[Sequence[EncodedPhoto], Sequence[EncodedPhoto]],
        cosines: np.ndarray,
        right: Bool[np.ndarray, " candidates"],
        *,
        full: bool,
    ) -> list[Asked]:
        """Re-rank the candidates of a query in every way.

        Args:
            query: as the reference would describe it, and as the shipped network does.
            candidates: the same of its best candidates, best first.
            cosines: of these.
            right: which of them are right answers.
            full: whether to time the reference on all of them.
        """
        asked = [self._ask_reference(query[0], candidates[0], cosines, right, full=full)]
        for method, (reranker, recipe) in self._ways.items():
            form = 0 if method == EXACT else 1
            ranked, cpu_s, wall_s = timed(lambda: reranker.rerank_as_needed(query[form], candidates[form], cosines))  # noqa: B023
            pool = len(ranked.order)
            hits = np.concatenate([right[:pool][ranked.order], right[pool:]])
            asked.append(
                Asked(
                    method=method,
                    candidates=pool,
                    timed=pool,
                    cpu_s=cpu_s,
                    wall_s=wall_s,
                    read_bytes=pool * stored_bytes(recipe),
                    hits=hits,
                )
            )
        return asked

    def _ask_reference(
        self, query: EncodedPhoto, candidates: Sequence[EncodedPhoto], cosines: np.ndarray, right: np.ndarray, *, full: bool
    ) -> Asked:
        """Time the plain method; its order comes from our matcher, whose counts are compared with its own."""
        ranked = self._count.rerank(query, candidates, cosines)
        here, measured = as_reference(query), len(candidates) if full else min(TIMED, len(candidates))
        there = [as_reference(candidate) for candidate in candidates[:measured]]
        counts, cpu_s, wall_s = timed(lambda: [plain_count(here, one, min_cosine=self._min_cosine) for one in there])
        share = len(candidates) / measured
        return Asked(
            method=REFERENCE,
            candidates=len(candidates),
            timed=measured,
            cpu_s=cpu_s * share,
            wall_s=wall_s * share,
            read_bytes=sum(4 * REFERENCE_DIM * len(candidate.features) for candidate in candidates),
            hits=right[ranked.order],
            unequal=int((np.array(counts) != ranked.matches[:measured]).sum()),
        )


def reference_recipe(shipped: Recipe) -> Recipe:
    """Keep as many local features as FoL does, unrounded, of the network that is shipped."""
    return replace(
        shipped, local_stride=1, mask_patches=REFERENCE_PATCHES, mask_fraction=None, local_precision="float32", seed=None
    )


def as_reference(photo: EncodedPhoto) -> Float32[Tensor, "n 128"]:
    """Fill features up with zeros to as many numbers as FoL's have."""
    features = torch.from_numpy(photo.features)
    return functional.pad(features, (0, REFERENCE_DIM - features.shape[1]))


def plain_count(query: Float32[Tensor, "Q D"], candidate: Float32[Tensor, "C D"], *, min_cosine: float) -> int:
    """Count the matches of two photos as FoL's code does, step by step.

    Source: chenshunpeng/FoL@e930a76, test_FoL.py, `match_batch_tensor`, for one candidate: its `squeeze` loses a lone pair.
    """
    cosine = query @ candidate.T  # (Q, C)
    favourite, chosen = cosine.argmax(dim=1), cosine.argmax(dim=0)
    row = torch.nonzero(chosen[favourite] == torch.arange(len(query))).squeeze()
    if row.ndim == 0:
        return 0
    return int((cosine[row, favourite[row]] > min_cosine).sum())


def stored_bytes(recipe: Recipe) -> int:
    """Count what a query reads of a candidate's local features."""
    return recipe.max_local_features * bytes_per_feature(recipe.local_dim, recipe.local_precision) + CRC_BYTES


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Do some work; give what it gives, and the seconds of CPU and of wall time it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return done, time.process_time() - cpu, time.perf_counter() - wall


def pick_queries(count: int, most: int) -> Int64[np.ndarray, " n"]:
    """Pick at most so many queries of a set, the same in every run, in their order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))


def ask_set(name: str, rerankers: Rerankers, cache: Cache, *, most: int, full: bool) -> list[Asked]:
    """Ask the picked queries of a set in every way.

    Raises:
        MissingPhotosError: the photos of the set are not here.
    """
    found = load_set(name)
    picked = pick_queries(len(found.queries), most)
    database = cache.describe(rerankers.shipped, found.database, of=f"{name}, database")
    queries = cache.describe(rerankers.shipped, [found.queries[index] for index in picked], of=f"{name}, queries")
    rows = np.stack([photo.arrays["descriptor"] for photo in database]).astype(np.float64)
    asked: list[Asked] = []
    bar = progress(picked.tolist(), total=len(picked), unit="query", description=f"{name}: re-ranking")
    for number, (index, query) in enumerate(zip(bar, queries, strict=True)):
        cosines = rows @ query.arrays["descriptor"].astype(np.float64)
        best = np.argsort(-cosines, kind="stable")[:CANDIDATES]
        large = _encoded(cache.describe(rerankers.large, [found.queries[index]], of="query"))[0]
        large_best = _encoded(cache.describe(rerankers.large, [found.database[place] for place in best], of="candidates"))
        shipped, shipped_best = _encoded([query])[0], _encoded([database[place] for place in best])
        right = found.positives[index][best]
        if number == 0:  # the first time libraries make ready what they keep
            rerankers.ask(
                (large, shipped), (large_best[:TIMED], shipped_best[:TIMED]), cosines[best[:TIMED]], right[:TIMED], full=False
            )
        asked += rerankers.ask((large, shipped), (large_best, shipped_best), cosines[best], right, full=full)
    return asked


def _encoded(photos: Sequence[Described]) -> list[EncodedPhoto]:
    return [EncodedPhoto(**photo.arrays) for photo in photos]


def rerank_rows(name: str, asked: Sequence[Asked]) -> list[RerankRow]:
    """Sum up the queries of a set, a row for each way, in the order of `METHODS`."""
    by_method = {method: [one for one in asked if one.method == method] for method in METHODS}
    reference_s = _mean(one.cpu_s for one in by_method[REFERENCE])
    rows = []
    for method, ones in by_method.items():
        ranks = max(len(one.hits) for one in ones)
        hits = np.array([np.pad(one.hits, (0, ranks - len(one.hits))) for one in ones])
        recall = recall_at(hits, (1, 5))
        error = np.sqrt(recall * (1 - recall) / len(hits))
        cpu_s = _mean(one.cpu_s for one in ones)
        rows.append(
            RerankRow(
                set=name,
                method=method,
                queries=len(ones),
                candidates=round(_mean(one.candidates for one in ones), 1),
                timed=round(_mean(one.timed for one in ones), 1),
                cpu_ms=round(1e3 * cpu_s, 2),
                wall_ms=round(1e3 * _mean(one.wall_s for one in ones), 2),
                times_less=round(reference_s / cpu_s, 1),
                read_kb=round(_mean(one.read_bytes for one in ones) / 1e3, 1),
                recall=(round(float(recall[0]), 4), round(float(recall[1]), 4)),
                standard_error=(round(float(error[0]), 4), round(float(error[1]), 4)),
            )
        )
    return rows


def _mean(numbers: Iterator[float]) -> float:
    return float(np.mean(list(numbers)))


def rerank_table(rows: Sequence[RerankRow]) -> str:
    """Write rows as a Markdown table."""
    lines = [
        "| set | method | queries | candidates | CPU ms | wall ms | times less CPU | MB read | recall@1 | recall@5 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        method = row.method if row.timed == row.candidates else f"{row.method} (timed on {row.timed:g} candidates)"
        shares = " | ".join(f"{share:.3f} ± {error:.3f}" for share, error in zip(row.recall, row.standard_error, strict=True))
        lines.append(
            f"| {row.set} | {method} | {row.queries} | {row.candidates:.1f} | {row.cpu_ms:,.1f} | {row.wall_ms:,.1f} | "
            f"{row.times_less:,.1f} | {row.read_kb / 1e3:,.2f} | {shares} |"
        )
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------- a made-up map

PLACE_PHOTOS: Final = 8
STREET_PHOTOS: Final = 64
"""Photos of one place, and of one street, which is a run of places. They follow each other, as photos do on a Hilbert curve."""

SHARES: Final = {"all": 0.1, "street": 0.2, "place": 0.15, "own": 0.55}
"""Of a descriptor's squared length. So cosines are about 0.45 within a place, 0.3 within a street and 0.1 else, as real ones of
folio-small, and about 40 candidates are re-ranked."""

LATENT_DIM: Final = 256
"""Directions in which places differ, the first ones more than the last; what a photo has of its own goes in all directions."""

MADE_UP_NETWORK: Final = cast(Encoder, SimpleNamespace(fingerprint="0f" * 32))
"""Encodes nothing: queries come encoded."""

LOCAL_SETS: Final = 64
"""Different sets of local features; photos take turns. What they are changes neither the bytes nor the work."""


class MadeUpPhotos:
    """Stands in for photos and network: what photo n of any map became. The same in every process, but for last bits."""

    def __init__(self) -> None:
        self.recipe: Final = folio_small()
        rng = np.random.default_rng(SEED)
        dim = self.recipe.descriptor_dim
        self._mean = _unit(rng.standard_normal((1, dim), np.float32))
        self._axes = rng.standard_normal((LATENT_DIM, dim), np.float32) / np.float32(np.sqrt(dim))
        self._spread = (np.arange(1, LATENT_DIM + 1) ** -0.25).astype(np.float32)
        self._local = [self._draw_local(rng) for _ in range(LOCAL_SETS)]

    def descriptors(self, numbers: Sequence[int], *, visit: int = 0) -> Float32[np.ndarray, "n D"]:
        """Describe photos.

        Args:
            numbers: of the photos.
            visit: 0: the photos of the map; any other number: other photos taken where those were.
        """
        streets, places = (self._of_groups(numbers, size) for size in (STREET_PHOTOS, PLACE_PHOTOS))
        seeds = ([SEED, 1, visit, number + 1] for number in numbers)  # NumPy ignores zeros at the end
        own = np.stack([np.random.default_rng(seed).standard_normal(self.recipe.descriptor_dim, np.float32) for seed in seeds])
        latent = np.sqrt(np.float32(SHARES["street"])) * streets + np.sqrt(np.float32(SHARES["place"])) * places
        return _unit(
            np.sqrt(np.float32(SHARES["all"])) * self._mean
            + latent @ self._axes
            + np.sqrt(np.float32(SHARES["own"])) * _unit(own)
        )

    def local(self, number: int) -> LocalFeatures:
        """Give the local features of a photo."""
        return self._local[number % LOCAL_SETS]

    def query(self, number: int) -> EncodedPhoto:
        """Make a photo taken where that of this number was."""
        local = self.local(number)
        (descriptor,) = self.descriptors([number], visit=1)
        return EncodedPhoto(descriptor=descriptor, features=local.features, patch=local.patch, reliability=local.reliability)

    def _of_groups(self, numbers: Sequence[int], size: int) -> Float32[np.ndarray, "n 256"]:
        groups = {number // size: None for number in numbers}
        drawn = {
            group: np.random.default_rng([SEED, 2, size, group + 1]).standard_normal(LATENT_DIM, np.float32) * self._spread
            for group in groups
        }
        return _unit(np.stack([drawn[number // size] for number in numbers]))

    def _draw_local(self, rng: np.random.Generator) -> LocalFeatures:
        count, side = self.recipe.max_local_features, self.recipe.grid_side
        largest = LARGEST_CODE[self.recipe.local_precision]
        return LocalFeatures(
            features=rng.integers(-largest, largest, (count, self.recipe.local_dim), np.int8, endpoint=True),
            patch=rng.integers(0, side, (count, 2), np.uint8),
            reliability=rng.integers(1, 256, count, np.uint8),
        )


def _unit(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def write_map(
    storage: Storage,
    count: int,
    photos: MadeUpPhotos,
    *,
    say: Callable[[str], None] = lambda what: None,
    fingerprint: str = MADE_UP_NETWORK.fingerprint,
) -> Manifest:
    """Write a map through the writers of a build: segments, index, manifest.

    Args:
        storage: of the map; nothing is there yet.
        count: of its photos.
        photos: what they became.
        say: is told how far it is.
        fingerprint: of the network that it says it was made with.
    """
    recipe = photos.recipe
    images = photo_maps.images(range(count), lon_deg={number: 13 + number * 1e-5 for number in range(count)})
    size = PartitionConfig().photos_per_segment(count)
    parts = list(cut(images, fingerprint, photos_per_segment=size))
    first = 0
    for part in parts:
        numbers = range(first, first + len(part.images))
        folder = layout.segment_folder(part.segment_id, uuid4().hex[:12])
        writer = LocalFeaturesWriter(
            storage,
            f"{folder}/{layout.LOCAL_FEATURES}",
            features_per_photo=recipe.max_local_features,
            dim=recipe.local_dim,
            precision=recipe.local_precision,
        )
        for number in numbers:
            writer.append(photos.local(number))
        finish_segment(
            storage,
            part.segment_id,
            folder,
            images=part.images,
            descriptors=photos.descriptors(numbers).astype(np.float16),
            rejects=[],
            local_features=writer.close(),
            model_fingerprint=fingerprint,
        )
        first += len(part.images)
        say(f"{first:,} of {count:,} photos written")
    return _index_and_publish(storage, recipe, fingerprint)


def _index_and_publish(storage: Storage, recipe: Recipe, fingerprint: str) -> Manifest:
    stored = read_stored(storage, fingerprint)
    selection = {name: np.ones(segment.receipt.rows, bool) for name, segment in stored.items()}
    index = build_index(
        storage, stored, selection, None, descriptor_dim=recipe.descriptor_dim, config=IndexConfig(), extend=False
    )
    model = ModelEntry(recipe=recipe.name, fingerprint=fingerprint, trained=False, settings={"mode": RerankConfig().mode})
    receipts = [stored[name].receipt for name in sorted(stored)]
    segments = [
        SegmentEntry(
            segment_id=receipt.segment_id,
            attempt=receipt.attempt,
            rows=receipt.rows,
            bbox=receipt.bbox or (0, 0, 0, 0),
            receipt_sha256=receipt.sha256,
        )
        for receipt in receipts
    ]
    draft = msgspec.structs.replace(
        samples.manifest(),
        content_id=content_id(model, segments, index),
        model=model,
        segments=segments,
        index=index,
        tombstones=[],
        calibration=None,
        statistics={
            "photos": sum(receipt.rows for receipt in receipts),
            "segment_bytes": sum(ref.size_bytes for receipt in receipts for ref in receipt.objects),
            "index_bytes": sum(shard.file.size_bytes for shard in index.shards),
            "rejected": {},
        },
        action="build",
    )
    return publish(storage, lambda head: draft)


# ------------------------------------------------------------------------------------------------------- a worker

AT_ONCE: Final = (1, 2, 8)
WARM_UP_PHOTOS: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What it takes to open a map for queries."""

    wall_s: float
    requests: int
    read_mb: float
    memory_mb: float
    """Resident then, more than before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRow:
    """One line of the table: the same queries, so many at once, to a worker that has seen none of them or all."""

    at_once: int
    caches: str
    """`cold` or `warm`."""
    queries: int
    p50_ms: float
    p99_ms: float
    """Wall time of a query."""
    cpu_ms: float
    """Mean a query, as are the next five."""
    pool: float
    """Candidates that were re-ranked."""
    ranges: float
    """Requests for a part of an object."""
    range_kb: float
    wholes: float
    """Requests for a whole one: receipts and tables of photos, when a segment is opened."""
    whole_kb: float
    right: float
    """Share of queries whose first answer is a photo of the same place: says that the search works at all."""
    peak_mb: float
    """Most memory that was resident so far, more than before the map was opened."""


class CountingStorage:
    """Counts what is read from a storage. For any number of threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = Lock()
        self._ranges = self._range_bytes = self._wholes = self._whole_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Storage`. Counts once also where the storage makes several requests of a large object."""
        data = self._storage.get(path, start=start, stop=stop)
        with self._lock:
            if start is None and stop is None:
                self._wholes, self._whole_bytes = self._wholes + 1, self._whole_bytes + len(data)
            else:
                self._ranges, self._range_bytes = self._ranges + 1, self._range_bytes + len(data)
        return data

    def take(self) -> tuple[int, int, int, int]:
        """Give what was read since the last time: parts of objects and their bytes, whole objects and theirs."""
        with self._lock:
            read = self._ranges, self._range_bytes, self._wholes, self._whole_bytes
            self._ranges = self._range_bytes = self._wholes = self._whole_bytes = 0
            return read


def measure_worker(url: str, settings: Settings, count: int, at_once: int, queries: int) -> tuple[Opening, list[WorkerRow]]:
    """Open a map and ask it; for a process of its own.

    Args:
        url: of the map.
        settings: for its storage.
        count: of its photos.
        at_once: threads that ask.
        queries: how many, each once cold and once warm.
    """
    use_threads(1)
    photos = MadeUpPhotos()
    places = np.random.default_rng([SEED, 3]).integers(0, count, queries).tolist()
    encoded = [photos.query(place) for place in places]
    _warm_up(photos)
    storage = CountingStorage(open_storage(url, settings))
    before_mb = resident_mb("VmRSS")
    opened, _, wall_s = timed(lambda: OpenedMap(storage, read_head(storage)))
    ranges, range_bytes, wholes, whole_bytes = storage.take()
    opening = Opening(
        wall_s=round(wall_s, 3),
        requests=ranges + wholes,
        read_mb=round((range_bytes + whole_bytes) / 1e6, 2),
        memory_mb=round(resident_mb("VmRSS") - before_mb, 1),
    )
    worker = _worker(storage, opened)
    rows = []
    with ThreadPoolExecutor(at_once, initializer=use_threads, initargs=(1,)) as pool:
        for caches in ("cold", "warm"):
            cpu = time.process_time()
            answers = list(pool.map(lambda query: timed(lambda: worker.answer_encoded(query)), encoded))
            cpu_s = time.process_time() - cpu
            firsts = [answer.candidates[0].photo.image_id for answer, _, _ in answers]
            rows.append(
                worker_row(
                    at_once,
                    caches,
                    [wall_s for _, _, wall_s in answers],
                    cpu_s,
                    storage.take(),
                    pool=float(np.mean([answer.pool_size for answer, _, _ in answers])),
                    right=float(np.mean([first in _same_place(place) for first, place in zip(firsts, places, strict=True)])),
                    peak_mb=resident_mb("VmHWM") - before_mb,
                )
            )
    return opening, rows


def _worker(storage: Storage, opened: OpenedMap) -> QueryWorker:
    config = RerankConfig(min_cosine=folio_small().match_cosine)
    return QueryWorker(storage, opened, MADE_UP_NETWORK, config, follows=False)


def _warm_up(photos: MadeUpPhotos) -> None:
    """Ask a small map in memory: with the first query libraries load what they had put off, which takes seconds."""
    storage = open_storage(f"memory://warm-up-{uuid4().hex}", Settings(threads=1))
    manifest = write_map(storage, WARM_UP_PHOTOS, photos)
    _worker(storage, OpenedMap(storage, manifest)).answer_encoded(photos.query(0))


def worker_row(
    at_once: int,
    caches: str,
    wall_s: Sequence[float],
    cpu_s: float,
    read: tuple[int, int, int, int],
    *,
    pool: float,
    right: float,
    peak_mb: float,
) -> WorkerRow:
    """Sum up a round of queries.

    Args:
        at_once: threads that asked.
        caches: `cold` or `warm`.
        wall_s: of each query.
        cpu_s: of the process, for all of them.
        read: what `CountingStorage.take` gave.
        pool: mean size.
        right: share of right answers.
        peak_mb: of memory.
    """
    queries = len(wall_s)
    p50_s, p99_s = np.percentile(wall_s, (50, 99)).tolist()
    ranges, range_bytes, wholes, whole_bytes = read
    return WorkerRow(
        at_once=at_once,
        caches=caches,
        queries=queries,
        p50_ms=round(1e3 * p50_s, 2),
        p99_ms=round(1e3 * p99_s, 2),
        cpu_ms=round(1e3 * cpu_s / queries, 2),
        pool=round(pool, 1),
        ranges=round(ranges / queries, 2),
        range_kb=round(range_bytes / queries / 1e3, 1),
        wholes=round(wholes / queries, 2),
        whole_kb=round(whole_bytes / queries / 1e3, 1),
        right=round(right, 3),
        peak_mb=round(peak_mb, 1),
    )


def resident_mb(which: str) -> float:
    """Read this process's memory: `VmRSS` now, `VmHWM` at most.

    Not `ru_maxrss`: a process inherits that of the one that started it.
    """
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "needs Linux"
    return int(found[1]) * 1024 / 1e6


def _same_place(number: int) -> set[str]:
    start = number - number % PLACE_PHOTOS
    return {image_id(photo_maps.uri(each)) for each in range(start, start + PLACE_PHOTOS)}


def worker_table(rows: Sequence[WorkerRow]) -> str:
    """Write rows as a Markdown table."""
    lines = [
        "| at once | caches | p50 ms | p99 ms | CPU ms | pool | range requests | kB | whole objects | kB | right | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.at_once} | {row.caches} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | {row.cpu_ms:.1f} | {row.pool:.1f} | "
        f"{row.ranges:.1f} | {row.range_kb:,.0f} | {row.wholes:.1f} | {row.whole_kb:,.0f} | {row.right:.2f} | "
        f"{row.peak_mb:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- the parts


def rerank_part(names: Sequence[str], *, most: int, full: bool) -> dict[str, Any]:
    """Measure re-ranking on sets, and print it."""
    encoder = open_encoder(folio_small().name, weights=None, device="cpu")
    rerankers, cache = Rerankers(encoder), Cache(WORK / "cache")
    rows: list[RerankRow] = []
    everything: list[Asked] = []
    for name in names:
        try:
            asked = ask_set(name, rerankers, cache, most=most, full=full)
        except MissingPhotosError as error:
            print(f"not measured: {error}", file=sys.stderr)
            continue
        rows += rerank_rows(name, asked)
        everything += asked
        _say(f"{name}: {len(asked) // len(METHODS)} queries re-ranked")
    if len({row.set for row in rows}) > 1:
        rows += rerank_rows(ALL_SETS, everything)
    references = [one for one in everything if one.method == REFERENCE]
    print(f"\n{rerank_table(rows)}\n")
    print("CPU and wall time, candidates and what is read: means of a query, on one thread, features in memory.")
    checked, unequal = sum(one.timed for one in references), sum(one.unequal for one in references)
    print(
        "The reference's recall is that of Folio's matcher in mode count on the same features. Both counted the same matches for "
        f"{checked - unequal:,} of the {checked:,} candidates that both were run on."
    )
    return {
        **machine(),
        "recipe": asdict(encoder.recipe),
        "fingerprint": encoder.fingerprint,
        "reranking": asdict(encoder.reranking),
        "candidates": CANDIDATES,
        "counts_compared": checked,
        "counts_unequal": unequal,
        "rows": [asdict(row) for row in rows],
    }


def worker_part(count: int, queries: int, s3: str | None) -> dict[str, Any]:
    """Measure a worker on a made-up map, and print it."""
    with ExitStack() as stack:
        if s3 == CEPH:
            s3 = stack.enter_context(ceph())
        settings = Settings.from_environment()
        url = stack.enter_context(place_for_map(count, s3, settings))
        manifest = write_map(open_storage(url, settings), count, MadeUpPhotos(), say=_say)
        _say(f"indexed ({manifest.index.kind}) and published")
        openings, rows = [], []
        for at_once in AT_ONCE:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                opening, measured = process.submit(measure_worker, url, settings, count, at_once, queries).result()
            openings.append(opening)
            rows += measured
            _say(f"{at_once} at once: asked")
    facts = manifest.statistics
    print(
        f"\n{count:,} photos, {len(manifest.segments)} segments, {len(manifest.index.shards)} shards, "
        f"{(facts['segment_bytes'] + facts['index_bytes']) / 1e9:.2f} GB {'behind S3' if s3 else 'on disk'}. "
        f"Opened in {np.median([one.wall_s for one in openings]):.2f} s with {openings[0].requests} requests and "
        f"{openings[0].read_mb:.1f} MB read; {np.median([one.memory_mb for one in openings]):.0f} MB more memory.\n"
    )
    print(f"{worker_table(rows)}\n")
    print("Requests, kB and CPU: means of a query. Memory: most resident so far, without what was before opening.")
    index = manifest.index
    return {
        **machine(),
        "store": "s3" if s3 else "disk",
        "recipe": asdict(folio_small()),
        "photos": count,
        "segments": len(manifest.segments),
        "index": {"kind": index.kind, "parameters": index.parameters, "shards": len(index.shards)},
        "statistics": facts,
        "openings": [asdict(one) for one in openings],
        "rows": [asdict(row) for row in rows],
    }


@contextmanager
def ceph() -> Iterator[str]:
    """Start the gateway of the tests on 127.0.0.1, tell this process and its children of it, and give the URL of a bucket."""
    import boto3

    if missing := missing_programs():
        raise SystemExit(f"--s3 {CEPH} needs {', '.join(missing)}; see tests/faults/ceph.py. Nothing was written.")
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder:  # outside out/bench: paths of sockets must be short
        gateway = Gateway(Path(folder) / "cluster")
        try:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                S3_ENDPOINT: gateway.endpoint,
            }
            boto3.client("s3", endpoint_url=gateway.endpoint).create_bucket(Bucket="maps")
            yield "s3://maps"
        finally:
            gateway.stop()


@contextmanager
def place_for_map(count: int, s3: str | None, settings: Settings) -> Iterator[str]:
    """Give a URL where nothing is, and leave nothing there."""
    if s3 is not None:
        url = f"{s3.rstrip('/')}/bench-query-{uuid4().hex[:8]}"
        try:
            yield url
        finally:
            storage = open_storage(url, settings)
            for info in list(storage.list()):
                storage.delete(info.path)
        return
    recipe = folio_small()
    needed = count * (2 * recipe.descriptor_dim + stored_bytes(recipe) + 400)
    WORK.mkdir(parents=True, exist_ok=True)
    if needed > shutil.disk_usage(WORK).free:
        raise SystemExit(
            f"{WORK}: a map of {count:,} photos needs {needed / 1e9:.1f} GB, and less are free. Nothing was written."
        )
    with tempfile.TemporaryDirectory(prefix="query-map-", dir=WORK) as folder:
        yield str(Path(folder) / "map")


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else []
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def _say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def write_part(out: Path, name: str, measured: Mapping[str, Any]) -> None:
    """Put a part into the file, beside what is there."""
    parts = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps({**parts, name: measured}, indent=1) + "\n")
    part.rename(out)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="What a query costs, and a worker on a large map.")
    parser.add_argument("--parts", default="rerank,worker", help="separated by commas (default: %(default)s)")
    parser.add_argument(
        "--sets", default=",".join(set_names()), help="of part rerank, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=12, help="at most that many of each set (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help=f"time the reference on every candidate, not on {TIMED} of a query")
    parser.add_argument("--map-photos", type=int, default=100_000, help="of the map of part worker (default: %(default)s)")
    parser.add_argument("--map-queries", type=int, default=200, help="asked of that map, each twice (default: %(default)s)")
    parser.add_argument(
        "--s3",
        metavar="URL",
        help=f"write the map below this URL, not to disk; as folio, the environment says how. {CEPH}: a gateway on this machine",
    )
    parser.add_argument("--out", type=Path, default=WORK / "query.json", help="the same as JSON (default: out/bench/query.json)")
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if unknown := set(parts) - {"rerank", "worker"}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from rerank, worker")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the map is removed
    use_threads(1)
    cv2.setNumThreads(1)
    if "rerank" in parts:
        measured = rerank_part(asked.sets.split(","), most=asked.queries, full=asked.full)
        write_part(asked.out, "rerank", measured)
    if "worker" in parts:
        write_part(asked.out, "worker", worker_part(asked.map_photos, asked.map_queries, asked.s3))
    if "rerank" in parts and measured["counts_unequal"]:
        raise RuntimeError("the plain method and mode count found other matches: the reference's recall is not its own")


if __name__ == "__main__":
    main()
