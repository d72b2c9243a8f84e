"""What the index finds and costs as a map grows, beside exact search, plain FAISS and autofaiss: `make bench-index`. Not a test.

Prints Markdown tables, writes `out/bench/index.json` and draws `out/bench/index.html`.

    python -m tests.benchmarks.index --photos 10000,100000 --queries 128 --against exact,plain,folio

Photos are made up (`made_up_descriptors.py`): reduced descriptors of 512 numbers at the sizes asked for, full ones of 8,448
numbers at `--full-photos`. They are written as float16 once, and every method reads the same files. Each builds, and each
searches, in a process of its own on one thread; times are CPU times, memory is what came on top of what the process held before.

Recall says how many of the exact 1, 10, 100 nearest are among the first 100 found; `first`, how often the exact nearest is the
first. `place` says how often the photo that a query was taken beside is among them, which exact search does not always find
either.
"""

import argparse
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import faiss
import msgspec
import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import row as side_by_side
from bokeh.models import NumeralTickFormatter, Range1d
from bokeh.plotting import figure
from bokeh.resources import INLINE
from jaxtyping import Float16, Float32, Int8, Int64

from pipelines import ivfpq
from pipelines.build.drift import MEASURED_PHOTOS, held_out
from pipelines.build.tune import Trial, tune
from pipelines.query.worker import cosines_with
from schemas.descriptor_codes import to_codes
from tests.benchmarks.made_up_descriptors import COMPRESSIBLE, REDUCED, SEGMENT_PHOTOS, Fit, MadeUpDescriptors
from tests.benchmarks.query import resident_mb
from tests.benchmarks.recall_sets import WORK

T = TypeVar("T")

SEED: Final = 20_261_122
"""Of the cities, the samples and the queries."""

HANDED_OVER: Final = 100
"""Photos that the first stage gives to re-ranking."""

RANKS: Final = (1, 10, 100)

CITIES: Final = {"reduced": REDUCED, "compressible": COMPRESSIBLE, "full": Fit()}

EXACT: Final = "exact"
PLAIN: Final = "plain"
AUTOFAISS: Final = "autofaiss"
FOLIO: Final = "folio"
METHODS: Final = (EXACT, PLAIN, AUTOFAISS, FOLIO)

CODE_BYTES: Final = 128
"""Of plain FAISS: as Folio's."""

PART_PHOTOS: Final = 64 * SEGMENT_PHOTOS
"""In one file, at most."""

BLOCK_PHOTOS: Final = SEGMENT_PHOTOS
"""Read, and added, at once."""

EXACT_BLOCK_PHOTOS: Final = 65_536
"""Searched at once by exact search: 134 MB, far more than any cache holds, so that it costs what it costs in a large map."""

ALONE: Final = 16
"""Queries that exact search is timed on one at a time."""

TIMED: Final = 48
"""Queries that an index is timed on; recall is that of all."""

REDUCED_DIM: Final = 512
"""Descriptors of so few numbers stand for whole ones, and are refined as float16: bytes, as the codes of a map are, would disturb
their cosines four times as much as those of 8,448 numbers."""

Codes = Int8[np.ndarray, "n D"] | Float16[np.ndarray, "n D"]

TUNED: Final = "tuned.json"
"""Beside the quantizer: what `tune` chose."""

FILTERED_SHARE: Final = 0.01

REQUIREMENTS: Final = ("autofaiss==2.18.*", "faiss-cpu==1.12.0", "numpy<2", "pyarrow<20", "pandas<3")
AUTOFAISS_VENV: Final = WORK / "autofaiss-venv"
AUTOFAISS_SIDE: Final = Path(__file__).with_name("autofaiss_side.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard a search tries."""

    nprobe: int | None = None
    """Cells looked at in each shard; None: what `tune` chose, or the textbook."""

    refined: int = 200
    """Photos whose codes are compared; 0: none."""


DEFAULT_EFFORT: Final = Effort()

# -------------------------------------------------------------------------------------------------------- the photos


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPhotos:
    """Descriptors in files of float16, for any process. A map of n photos is the first n."""

    folder: str
    dim: int
    parts: tuple[int, ...]
    """Photos in each."""

    def path(self, part: int) -> Path:
        """Give the file of a part."""
        return Path(self.folder) / f"part-{part:05}.npy"

    def blocks(self, start: int, stop: int, size: int = BLOCK_PHOTOS) -> Iterator[Float32[np.ndarray, "n D"]]:
        """Read photos in order, some at a time. Not mapped: pages of a map would count as memory."""
        first = 0
        for part, count in enumerate(self.parts):
            here, there = max(start, first), min(stop, first + count)
            with self.path(part).open("rb") as file:
                header = _header_bytes(self.path(part))
                for place in range(here, there, size):
                    rows = min(size, there - place)
                    file.seek(header + 2 * self.dim * (place - first))
                    yield np.fromfile(file, np.float16, rows * self.dim).reshape(rows, self.dim).astype(np.float32)
            first += count

    def rows(self, numbers: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """Read some photos, in the order asked for."""
        firsts = np.concatenate([[0], np.cumsum(self.parts)])
        part_of = np.searchsorted(firsts, numbers, side="right") - 1
        taken = np.empty((len(numbers), self.dim), np.float32)
        for part in np.unique(part_of):
            header = _header_bytes(self.path(part))
            with self.path(part).open("rb") as file:
                for place in np.flatnonzero(part_of == part):
                    file.seek(header + 2 * self.dim * (numbers[place] - firsts[part]))
                    taken[place] = np.fromfile(file, np.float16, self.dim)
        return taken

    def sample(self, photos: int, most: int) -> Float32[np.ndarray, "n D"]:
        """Draw photos at random, as a build does, which takes those with the smallest image ids."""
        drawn: Int64[np.ndarray, " n"] = np.random.default_rng([SEED, photos]).choice(photos, min(photos, most), replace=False)
        return self.rows(drawn)

    def codes(self, photos: int) -> Codes:
        """Map what the refine reads, which is on disk."""
        shape = (sum(self.parts), self.dim)
        return np.memmap(Path(self.folder) / "codes", _code_type(self.dim), "r", shape=shape)[:photos]


def write_photos(folder: Path, fit: Fit, sizes: Sequence[int]) -> StoredPhotos:
    """Write the photos of a city, as many as the largest map has, segment by segment, with a new part at every size."""
    city = MadeUpDescriptors(fit, seed=SEED)
    cuts = sorted({0, *sizes, *range(0, max(sizes), PART_PHOTOS)})
    stored = StoredPhotos(folder=str(folder), dim=fit.dim, parts=tuple(stop - start for start, stop in pairwise(cuts)))
    number, segment = -1, np.empty((0, fit.dim), np.float16)
    with (folder / "codes").open("wb") as codes:
        for part, (start, stop) in enumerate(pairwise(cuts)):
            with stored.path(part).open("wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": (stop - start, fit.dim)}
                np.lib.format.write_array_header_1_0(file, header)
                place = start
                while place < stop:
                    if place // SEGMENT_PHOTOS != number:
                        number = place // SEGMENT_PHOTOS
                        segment = city.segment(number).astype(np.float16)
                    first = place % SEGMENT_PHOTOS
                    rows = segment[first : first + stop - place]
                    rows.tofile(file)
                    (to_codes(rows) if _code_type(fit.dim) is np.int8 else rows).tofile(codes)
                    place += len(rows)
    return stored


def _code_type(dim: int) -> type[np.int8 | np.float16]:
    return np.float16 if dim <= REDUCED_DIM else np.int8


def make_queries(fit: Fit, photos: int, count: int) -> tuple[Float32[np.ndarray, "q D"], Int64[np.ndarray, " q"]]:
    """Make queries of places all over a map; give the photo that each was taken beside."""
    city = MadeUpDescriptors(fit, seed=SEED)
    beside = np.sort(np.random.default_rng([SEED, 1]).choice(photos, count, replace=False))
    segments = beside // SEGMENT_PHOTOS
    queries = [city.queries(int(number), beside[segments == number] % SEGMENT_PHOTOS) for number in np.unique(segments)]
    return np.concatenate(queries), beside


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


# --------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What building took."""

    parameters: str
    train_cpu_s: float = 0.0
    add_cpu_s: float = 0.0
    peak_mb: float = 0.0
    index_bytes: int = 0
    nlist: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What searching with some effort gave and took."""

    effort: Effort
    ids: Int64[np.ndarray, "q 100"]
    """Best first; -1: none."""
    cpu_ms: float
    """A query, one at a time on one thread, as is the next."""
    refine_ms: float
    """Of it, for comparing codes."""
    queries_per_s: float
    """By two threads, in wall time."""
    resident_mb: float
    """Of the opened index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What exact search gave and took."""

    ids: Int64[np.ndarray, "q 100"]
    cpu_ms: float
    """A query, one at a time."""
    batch_ms: float
    """A query of a batch of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    city: str
    photos: int
    method: str
    parameters: str
    nprobe: int | None
    refined: int
    looked_at: float
    """Share of the cells, and so about of the photos."""
    first: float
    recall: tuple[float, float, float]
    """Of the exact nearest, 10 and 100."""
    place: float
    train_cpu_s: float
    add_cpu_s: float
    peak_mb: float
    resident_mb: float
    bytes_per_photo: float
    cpu_ms: float
    refine_ms: float
    times_less: float
    """CPU time of exact search, one query at a time, over this."""
    queries_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtered:
    """A search of some photos that follow each other, beside one of all."""

    city: str
    photos: int
    share: float
    full_ms: float
    filtered_ms: float


def recall_of(found: Int64[np.ndarray, "q k"], truth: Int64[np.ndarray, "q k"], rank: int) -> float:
    """Give the share of the exact `rank` nearest that are among those found."""
    wanted = truth[:, :rank]
    return float(np.mean([np.isin(right, ids).sum() / rank for ids, right in zip(found, wanted, strict=True)]))


def row_of(city: str, photos: int, method: str, built: Built, found: Found, truth: Truth, beside: Int64[np.ndarray, " q"]) -> Row:
    """Sum up one method at one effort."""
    recall = [round(recall_of(found.ids, truth.ids, rank), 4) for rank in RANKS]
    return Row(
        city=city,
        photos=photos,
        method=method,
        parameters=built.parameters,
        nprobe=found.effort.nprobe,
        refined=found.effort.refined,
        looked_at=round(min(1.0, (found.effort.nprobe or built.nlist) / built.nlist), 4),
        first=round(float((found.ids[:, 0] == truth.ids[:, 0]).mean()), 4),
        recall=(recall[0], recall[1], recall[2]),
        place=round(float((found.ids == beside[:, None]).any(axis=1).mean()), 4),
        train_cpu_s=round(built.train_cpu_s, 1),
        add_cpu_s=round(built.add_cpu_s, 2),
        peak_mb=round(built.peak_mb, 1),
        resident_mb=round(found.resident_mb, 1),
        bytes_per_photo=round(built.index_bytes / photos, 1),
        cpu_ms=round(found.cpu_ms, 3),
        refine_ms=round(found.refine_ms, 3),
        times_less=round(truth.cpu_ms / found.cpu_ms, 2),
        queries_per_s=round(found.queries_per_s, 1),
    )


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Do some work; give what it gives, and the seconds of CPU time of this process."""
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def in_process(work: Callable[..., T], *arguments: Any) -> T:
    """Do some work in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def watch_peak() -> float:
    """Forget the most memory this process ever had, and give what it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mb("VmRSS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An opened index, and how to search it."""

    search: Callable[[Float32[np.ndarray, "1 D"], int], list[int]]
    """For a query and a count, give the photos that its codes say are nearest, best first."""
    nprobe: int
    resident_mb: float


def ask(opened: Opened, queries: Float32[np.ndarray, "q D"], refined: Sequence[int], codes: Codes) -> list[Found]:
    """Ask all queries with each number of photos refined; then time some."""
    few, found = queries[:TIMED], []
    for count in refined:
        ids = np.full((len(queries), HANDED_OVER), -1, np.int64)
        for place, query in enumerate(queries):
            best = opened.search(query[None], count or HANDED_OVER)
            best = refine(best, query, codes, []) if count else best[:HANDED_OVER]
            ids[place, : len(best)] = best
        spent: list[float] = []

        def answer(query: Float32[np.ndarray, " D"], count: int = count, spent: list[float] = spent) -> list[int]:
            hits = opened.search(query[None], count or HANDED_OVER)
            return refine(hits, query, codes, spent) if count else hits

        answer(few[0])
        spent.clear()
        _, cpu_s = timed(lambda: [answer(query) for query in few])
        refine_ms = 1e3 * sum(spent) / len(few)
        start = time.perf_counter()
        with ThreadPoolExecutor(2, initializer=ivfpq.use_threads, initargs=(1,)) as pool:
            list(pool.map(answer, few))
        found.append(
            Found(
                effort=Effort(nprobe=opened.nprobe, refined=count),
                ids=ids,
                cpu_ms=1e3 * cpu_s / len(few),
                refine_ms=refine_ms,
                queries_per_s=len(few) / (time.perf_counter() - start),
                resident_mb=opened.resident_mb,
            )
        )
    return found


def refine(ids: Sequence[int], query: Float32[np.ndarray, " D"], codes: Codes, spent: list[float]) -> list[int]:
    """Order photos by the cosine of their codes, as the query worker does; ties go to the smaller number."""
    start = time.thread_time()
    numbers = np.array(ids)
    cosines = np.array([cosines_with(one, [query])[0] for one in codes[numbers]])
    best = numbers[np.lexsort((numbers, -cosines))][:HANDED_OVER].tolist()
    spent.append(time.thread_time() - start)
    return best  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------ exact search


def exact_search(stored: StoredPhotos, photos: int, queries: Float32[np.ndarray, "q D"]) -> Truth:
    """Search all photos block by block: all queries at once, and some one at a time."""
    ivfpq.use_threads(1)
    best_scores: np.ndarray = np.empty((len(queries), 0), np.float32)
    best_ids: np.ndarray = np.empty((len(queries), 0), np.int64)
    batch_s = alone_s = 0.0
    first = 0
    rows = max(BLOCK_PHOTOS, EXACT_BLOCK_PHOTOS * 512 // stored.dim)
    for block in stored.blocks(0, photos, rows):
        (scores, ids), seconds = timed(lambda: faiss.knn(queries, block, HANDED_OVER, faiss.METRIC_INNER_PRODUCT))  # noqa: B023
        batch_s += seconds
        best_scores, best_ids = np.hstack([best_scores, scores]), np.hstack([best_ids, np.where(ids >= 0, ids + first, -1)])
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :HANDED_OVER]
        best_scores, best_ids = (np.take_along_axis(each, order, axis=1) for each in (best_scores, best_ids))
        for query in queries[:ALONE]:
            _, seconds = timed(lambda: faiss.knn(query[None], block, HANDED_OVER, faiss.METRIC_INNER_PRODUCT))  # noqa: B023
            alone_s += seconds
        first += len(block)
    return Truth(ids=best_ids, cpu_ms=1e3 * alone_s / len(queries[:ALONE]), batch_ms=1e3 * batch_s / len(queries))


def exact_rows(city: str, photos: int, dim: int, truth: Truth, beside: Int64[np.ndarray, " q"]) -> list[Row]:
    """Sum up exact search, one query at a time and in a batch; queries a second are reckoned from the CPU time."""
    held = Built(parameters="float32", index_bytes=4 * dim * photos)
    rows = []
    for name, cpu_ms in (("one at a time", truth.cpu_ms), ("batch", truth.batch_ms)):
        found = Found(
            effort=Effort(refined=0),
            ids=truth.ids,
            cpu_ms=cpu_ms,
            refine_ms=0.0,
            queries_per_s=2e3 / cpu_ms,
            resident_mb=held.index_bytes / 1e6,
        )
        rows.append(row_of(city, photos, EXACT, replace(held, parameters=name), found, truth, beside))
    return rows


# ------------------------------------------------------------------------------------------------------------- Folio


def build_folio(stored: StoredPhotos, photos: int, folder: Path, config: ivfpq.IndexConfig) -> Built:
    """Train and make shards, as a build does; for a process of its own."""
    ivfpq.use_threads(1)
    before = watch_peak()
    parameters = ivfpq.derive_parameters(photos, stored.dim, config)
    assert parameters, "large enough to train"
    sample = stored.sample(photos, config.train_photos + MEASURED_PHOTOS)
    learned = min(config.train_photos, len(sample) - held_out(len(sample), config))

    def train() -> tuple[bytes, Trial]:
        made = ivfpq.train_quantizer(sample[:learned], parameters, config)
        asked = {"parameters": parameters, "photos": photos, "config": config}
        return made, tune(made, sample[:learned], sample[learned:], **asked).chosen  # type: ignore[arg-type]

    (quantizer, tuned), train_s = timed(train)
    del sample
    (folder / "quantizer").write_bytes(quantizer)
    (folder / TUNED).write_bytes(msgspec.json.encode(tuned))
    size, start = len(quantizer), time.process_time()
    for number, first in enumerate(range(0, photos, config.shard_photos)):
        shard = ivfpq.make_shard(quantizer, stored.dim, _numbered(stored, first, min(photos, first + config.shard_photos)))
        (folder / f"shard-{number:05}").write_bytes(shard)
        size += len(shard)
    return Built(
        parameters=f"{parameters.pca_dim} axes, {parameters.nlist} cells, {parameters.code_bytes} B; "
        f"{tuned.recall:.3f} promised of the ten nearest, {tuned.refined} refined",
        nlist=parameters.nlist,
        train_cpu_s=train_s,
        add_cpu_s=time.process_time() - start,
        peak_mb=resident_mb("VmHWM") - before,
        index_bytes=size,
    )


def _numbered(
    stored: StoredPhotos, first: int, last: int
) -> Iterator[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]]:
    """Give photos with their ids in the shard."""
    start = 0
    for block in stored.blocks(first, last):
        yield block, np.arange(start, start + len(block))
        start += len(block)


def search_folio(
    stored: StoredPhotos,
    photos: int,
    folder: Path,
    config: ivfpq.IndexConfig,
    queries: Float32[np.ndarray, "q D"],
    efforts: Sequence[Effort],
) -> tuple[list[Found], tuple[float, float]]:
    """Open the shards and ask, with each effort; then a hundredth of the photos alone. For a process of its own.

    Returns:
        What was found, and CPU milliseconds of a search of everything and of one of a hundredth, both without refining.
    """
    ivfpq.use_threads(1)
    tuned = msgspec.json.decode((folder / TUNED).read_bytes(), type=Trial)
    codes, found = stored.codes(photos), list[Found]()
    before, resident = resident_mb("VmRSS"), None
    for nprobe in dict.fromkeys(effort.nprobe for effort in efforts):
        searcher = _open_folio(folder, photos, config, nprobe or tuned.nprobe)
        if resident is None:  # later ones take the place of the first
            resident = resident_mb("VmRSS") - before

        def search(query: Float32[np.ndarray, "1 D"], count: int, of: ivfpq.ShardSearcher = searcher) -> list[int]:
            return [shard * config.shard_photos + number for _, shard, number in of.search(query, count)[0][:count]]

        opened = Opened(search=search, nprobe=nprobe or tuned.nprobe, resident_mb=resident)
        found += ask(opened, queries, [effort.refined for effort in efforts if effort.nprobe == nprobe], codes)
        del opened, search, searcher
    searcher = _open_folio(folder, photos, config, tuned.nprobe)
    marks = np.zeros(min(photos, config.shard_photos), bool)
    middle, wanted = len(marks) // 2, max(1, int(FILTERED_SHARE * photos))
    marks[middle : middle + wanted] = True
    times = []
    for only in (None, searcher.among({0: marks})):  # made ready once, as a worker does
        searcher.search(queries[:1], DEFAULT_EFFORT.refined, only)
        few = queries[:TIMED]
        _, cpu_s = timed(lambda: [searcher.search(query[None], DEFAULT_EFFORT.refined, only) for query in few])  # noqa: B023
        times.append(1e3 * cpu_s / len(few))
    return found, (times[0], times[1])


def _open_folio(folder: Path, photos: int, config: ivfpq.IndexConfig, nprobe: int) -> ivfpq.ShardSearcher:
    """Open the shards one after the other, as a worker does."""
    files = [path.read_bytes for path in sorted(folder.glob("shard-*"))]
    rows = [min(photos, first + config.shard_photos) - first for first in range(0, photos, config.shard_photos)]
    searcher = ivfpq.ShardSearcher((folder / "quantizer").read_bytes(), nprobe, files, rows=rows)
    searcher.open()
    return searcher


# ------------------------------------------------------------------------------------------------------- plain FAISS


def build_plain(stored: StoredPhotos, photos: int, folder: Path, config: ivfpq.IndexConfig) -> Built:
    """Make one textbook `IndexIVFPQ`: 4 √n cells, residuals, squared distances; for a process of its own.

    FAISS learns 4-dimensional sub-vectors slowly, so even this takes minutes of training.
    """
    ivfpq.use_threads(1)
    before = watch_peak()
    nlist = int(4 * math.sqrt(photos))
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(stored.dim), stored.dim, nlist, min(CODE_BYTES, stored.dim // 4), 8)
    index.pq.cp.max_points_per_centroid = ivfpq.CODE_POINTS  # as Folio; 256, the default, takes four times as long
    sample = stored.sample(photos, config.train_photos)
    _, train_s = timed(lambda: index.train(sample))
    del sample
    start = time.process_time()
    for block in stored.blocks(0, photos):
        index.add(block)
    add_s = time.process_time() - start
    peak_mb = resident_mb("VmHWM") - before
    faiss.write_index(index, str(folder / "index"))
    return Built(
        parameters=f"{nlist} cells, {index.pq.M} B",
        nlist=nlist,
        train_cpu_s=train_s,
        add_cpu_s=add_s,
        peak_mb=peak_mb,
        index_bytes=(folder / "index").stat().st_size,
    )


def search_plain(
    stored: StoredPhotos, photos: int, folder: Path, queries: Float32[np.ndarray, "q D"], efforts: Sequence[Effort]
) -> list[Found]:
    """Ask, without refining and with it; the textbook probes √nlist cells. For a process of its own."""
    ivfpq.use_threads(1)
    before = resident_mb("VmRSS")
    index: Any = faiss.read_index(str(folder / "index"))
    resident, codes = resident_mb("VmRSS") - before, stored.codes(photos)
    found: list[Found] = []
    for nprobe in dict.fromkeys(effort.nprobe for effort in efforts):
        index.nprobe = nprobe or round(math.sqrt(index.nlist))

        def search(query: Float32[np.ndarray, "1 D"], count: int) -> list[int]:
            ids = index.search(query, count)[1][0]
            return ids[ids >= 0].tolist()  # type: ignore[no-any-return]

        opened = Opened(search=search, nprobe=index.nprobe, resident_mb=resident)
        found += ask(opened, queries, [effort.refined for effort in efforts if effort.nprobe == nprobe], codes)
    return found


# --------------------------------------------------------------------------------------------------------- autofaiss


class NotMeasuredError(Exception):
    """A method cannot be measured here, and why."""


def autofaiss_python() -> Path:
    """Give the Python that has autofaiss; make its virtual environment if there is none.

    Raises:
        NotMeasuredError: it cannot be installed.
    """
    python = AUTOFAISS_VENV / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import autofaiss"], capture_output=True, check=False).returncode:
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(AUTOFAISS_VENV)],
        [str(python), "-m", "pip", "install", *REQUIREMENTS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotMeasuredError(f"autofaiss cannot be installed: {_last_line(done.stderr)}")
    return python


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def run_autofaiss(
    stored: StoredPhotos, photos: int, folder: Path, queries: Float32[np.ndarray, "q D"], memory_mb: float, limit_s: float
) -> tuple[Built, Found]:
    """Build and search with autofaiss, at so much memory.

    Raises:
        NotMeasuredError: autofaiss is not here, fails or takes too long.
    """
    python = autofaiss_python()
    links = folder / "photos"
    links.mkdir()
    for part, last in enumerate(np.cumsum(stored.parts)):
        if last <= photos:
            (links / stored.path(part).name).symlink_to(stored.path(part))
    np.save(folder / "queries.npy", queries)
    asked = {
        "photos": str(links),
        "queries": str(folder / "queries.npy"),
        "out": str(folder),
        "memory": f"{memory_mb:.3f}MB",
        "available": "3GB",
        "query_ms": 10.0,
    }

    def side(**more: object) -> dict[str, Any]:
        (folder / "asked.json").write_text(json.dumps({**asked, **more}))
        command = [str(python), str(AUTOFAISS_SIDE), str(folder / "asked.json")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise NotMeasuredError(f"autofaiss was stopped after {limit_s:,.0f} s") from None
        if done.returncode:
            raise NotMeasuredError(f"autofaiss failed with {done.returncode}: {_last_line(done.stderr)}")
        return json.loads((folder / "said.json").read_text())  # type: ignore[no-any-return]

    said = side(do="build")
    built = Built(
        parameters=f"{said['key']}; {said['param']}",
        train_cpu_s=said["train_cpu_s"],
        add_cpu_s=said["add_cpu_s"],
        peak_mb=said["peak_mb"],
        index_bytes=(folder / "index").stat().st_size,
    )
    said = side(do="search", param=said["param"])
    return built, Found(effort=Effort(refined=0), ids=np.load(folder / "found.npy"), refine_ms=0.0, **said)


# ---------------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure."""

    photos: tuple[int, ...]
    against: tuple[str, ...] = METHODS
    queries: int = 256
    refined: tuple[int, ...] = (200, 400, 800, 1600, 3200)
    """Efforts of Folio at its own nprobe."""
    nprobes: tuple[int, ...] = ()
    """And at `probed_refined`, with these."""
    probed_refined: int = 800
    autofaiss_limit_s: float = 3600.0
    config: ivfpq.IndexConfig = field(default_factory=ivfpq.IndexConfig)

    def efforts(self) -> list[Effort]:
        """List how hard Folio tries."""
        return [
            *(Effort(refined=refined) for refined in self.refined),
            *(Effort(nprobe=nprobe, refined=self.probed_refined) for nprobe in self.nprobes),
        ]


def measure(city: str, fit: Fit, plan: Plan, say: Callable[[str], None]) -> tuple[list[Row], list[Filtered]]:
    """Measure all methods at all sizes."""
    rows: list[Row] = []
    filtered: list[Filtered] = []
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="index-", dir=WORK) as work:
        stored = write_photos(Path(work), fit, plan.photos)
        say(f"{city}: {max(plan.photos):,} photos written")
        for photos in plan.photos:
            queries, beside = make_queries(fit, photos, plan.queries)
            truth = in_process(exact_search, stored, photos, queries)
            if EXACT in plan.against:
                rows += exact_rows(city, photos, fit.dim, truth, beside)
            say(f"{city}, {photos:,} photos: exact, {truth.cpu_ms:.2f} ms")
            for method in (method for method in plan.against if method != EXACT):
                with tempfile.TemporaryDirectory(prefix=f"{method}-", dir=work) as folder:
                    try:
                        built, found, times = _measure_one(method, stored, photos, Path(folder), queries, plan)
                    except NotMeasuredError as error:
                        say(f"{city}, {photos:,} photos: not measured: {error}")
                        continue
                rows += [row_of(city, photos, method, built, one, truth, beside) for one in found]
                if times:
                    share = max(1, int(FILTERED_SHARE * photos)) / photos
                    filtered.append(
                        Filtered(
                            city=city, photos=photos, share=share, full_ms=round(times[0], 3), filtered_ms=round(times[1], 3)
                        )
                    )
                say(f"{city}, {photos:,} photos: {method}, {json.dumps(asdict(rows[-len(found)]))}")
    return rows, filtered


def _measure_one(
    method: str, stored: StoredPhotos, photos: int, folder: Path, queries: Float32[np.ndarray, "q D"], plan: Plan
) -> tuple[Built, list[Found], tuple[float, float] | None]:
    if method == FOLIO:
        built = in_process(build_folio, stored, photos, folder, plan.config)
        found, times = in_process(search_folio, stored, photos, folder, plan.config, queries, plan.efforts())
        return built, found, times
    if method == PLAIN:
        built = in_process(build_plain, stored, photos, folder, plan.config)
        efforts = [Effort(refined=0), DEFAULT_EFFORT, Effort(refined=plan.probed_refined)]
        return built, in_process(search_plain, stored, photos, folder, queries, efforts), None
    memory_mb = 1e-6 * photos * (CODE_BYTES + 8) * 1.05
    built, one = run_autofaiss(stored, photos, folder, queries, memory_mb, plan.autofaiss_limit_s)
    return built, [one], None


# ------------------------------------------------------------------------------------------------------------ growth


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cost that grows with the photos: a + b n."""

    a: float
    b: float
    largest_error: float
    """Relative, at the points that it was fitted to."""

    def at(self, photos: float) -> float:
        """Say what it comes to."""
        return self.a + self.b * photos


def fit_line(photos: Sequence[int], costs: Sequence[float]) -> Line:
    """Fit a line so that relative errors are small."""
    n, cost = np.array(photos, float), np.maximum(costs, 1e-12)
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / cost, n / cost], axis=1), np.ones(len(n)), rcond=None)
    return Line(a=float(a), b=float(b), largest_error=float(np.abs((a + b * n) / cost - 1).max()))


MODELLED: Final = (1_000_000, 100_000_000, 10_000_000_000)

LARGE_SHARE: Final = 0.25
"""Of the cells are looked at in maps of more than a million photos; see `derive_parameters`."""

COSTS: Final[dict[str, Callable[[Row], float]]] = {
    "resident GB": lambda row: row.resident_mb / 1e3,
    "index on disk, GB": lambda row: row.bytes_per_photo * row.photos / 1e9,
    "adding, CPU hours": lambda row: row.add_cpu_s / 3600,
}
SEARCH: Final = "search and refine, CPU ms"


def growth(rows: Sequence[Row]) -> dict[str, Line]:
    """Fit what Folio costs at its default effort to the sizes measured: search to the photos looked at, the rest to all."""
    every = [row for row in rows if row.method == FOLIO and row.refined == DEFAULT_EFFORT.refined]
    own = list({row.photos: row for row in reversed(every)}.values())  # the first of each size is at the default nprobe
    if len({row.photos for row in own}) < 2:
        return {}
    lines = {name: fit_line([row.photos for row in own], [cost(row) for row in own]) for name, cost in COSTS.items()}
    searched = fit_line([round(row.photos * row.looked_at) for row in own], [row.cpu_ms for row in own])
    return {**lines, SEARCH: replace(searched, b=searched.b * LARGE_SHARE)}


# --------------------------------------------------------------------------------------------------------- reporting


def table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table."""
    lines = [
        "| city | photos | method | cells looked at, refined | first | nearest | 10 | 100 | place | training s | adding s | "
        "peak MB | resident MB | B a photo | CPU ms | refine ms | times less | queries/s |",
        "|" + "---|" * 18,
    ]
    for row in rows:
        recall = " | ".join(f"{share:.3f}" for share in row.recall)
        effort = f"{row.nprobe or '–'}, {row.refined or '–'}"
        lines.append(
            f"| {row.city} | {row.photos:,} | {row.method}: {row.parameters} | {effort} | {row.first:.3f} | {recall} | "
            f"{row.place:.3f} | {row.train_cpu_s:,.0f} | {row.add_cpu_s:,.1f} | {row.peak_mb:,.0f} | {row.resident_mb:,.0f} | "
            f"{row.bytes_per_photo:,.0f} | {row.cpu_ms:,.2f} | {row.refine_ms:.2f} | {row.times_less:.1f} | "
            f"{row.queries_per_s:,.0f} |"
        )
    return "\n".join(lines)


def filtered_table(filtered: Sequence[Filtered]) -> str:
    """Write what filtered searches cost."""
    return "\n".join(
        [
            "| city | photos | searched | all, CPU ms | these, CPU ms | share |",
            "|" + "---|" * 6,
            *(
                f"| {one.city} | {one.photos:,} | {one.share:.1%} | {one.full_ms:.2f} | {one.filtered_ms:.2f} | "
                f"{one.filtered_ms / one.full_ms:.1%} |"
                for one in filtered
            ),
        ]
    )


def growth_table(lines: dict[str, Line]) -> str:
    """Write what larger maps would cost."""
    heads = " | ".join(f"{photos:,}" for photos in MODELLED)
    return "\n".join(
        [
            f"| cost | a + b n | largest error | {heads} |",
            "|" + "---|" * (3 + len(MODELLED)),
            *(
                f"| {name} | {line.a:.3g} + {line.b:.3g} n | {line.largest_error:.0%} | "
                + " | ".join(f"{line.at(photos):,.4g}" for photos in MODELLED)
                + " |"
                for name, line in lines.items()
            ),
        ]
    )


def full_table(rows: Sequence[Row], to: int = 1_000_000) -> str:
    """Write what exact search of full descriptors would take in a larger map."""
    return "\n".join(
        [
            f"| full descriptors, exact | CPU ms at {rows[0].photos:,} | at {to:,}, extrapolated |",
            "|" + "---|" * 3,
            *(f"| {row.parameters} | {row.cpu_ms:,.1f} | {row.cpu_ms * to / row.photos:,.0f} |" for row in rows),
        ]
    )


COLOURS: Final = ("#8d8d8d", "#b4532a", "#2a6f97", "#3c8031")
"""Of methods."""
FORMS: Final = (("solid", "circle"), ("dashed", "square"), ("dotted", "triangle"))
"""Of cities."""


def draw(rows: Sequence[Row]) -> str:
    """Draw recall against CPU time, and against photos, as a page."""
    titles = ("Exact 100 among the 100 found, against CPU ms of a query", "The same at default effort, against photos")
    cost, size = (
        figure(width=620, height=460, x_axis_type="log", y_range=Range1d(start=0, end=1.03), title=title) for title in titles
    )
    largest = max(row.photos for row in rows)
    for method, colour in zip(METHODS, COLOURS, strict=True):
        for city, (dash, marker) in zip(dict.fromkeys(row.city for row in rows), FORMS, strict=False):
            own = [row for row in rows if row.method == method and row.city == city]
            if not own:
                continue
            label = f"{method}, {city}"
            for photos in sorted({row.photos for row in own}):
                some = [row for row in own if row.photos == photos]
                x, y = [row.cpu_ms for row in some], [row.recall[2] for row in some]
                cost.scatter(x, y, color=colour, marker=marker, size=4 * math.log10(photos) - 9, alpha=0.7, legend_label=label)
                if method != EXACT:
                    for nprobe in {row.nprobe for row in some}:
                        line = [row for row in some if row.nprobe == nprobe]
                        at = [row.cpu_ms for row in line], [row.recall[2] for row in line]
                        cost.line(*at, color=colour, line_dash=dash, alpha=0.6)
                        if method == FOLIO and len(line) > 1:
                            cost.text(at[0][:1], at[1][:1], text=[f"{photos:,}"], text_font_size="9px", x_offset=-20, y_offset=20)
            default = [row for row in own if row.refined in (0, DEFAULT_EFFORT.refined)]
            x = sorted({row.photos for row in default})
            best = {photos: max(row.recall[2] for row in default if row.photos == photos) for photos in x}
            size.line(x, [best[photos] for photos in x], color=colour, line_dash=dash, legend_label=label)
            size.scatter(x, [best[photos] for photos in x], color=colour, marker=marker, size=8)
    cost.xaxis.axis_label, size.xaxis.axis_label = "CPU ms, one thread", f"photos, to {largest:,}"
    size.xaxis.formatter = NumeralTickFormatter(format="0a")
    for plot in (cost, size):
        plot.legend.location, plot.legend.label_text_font_size, plot.legend.background_fill_alpha = "bottom_left", "9px", 0.6
    return file_html(side_by_side(cost, size), INLINE, "What the index finds, and at which cost")


def write(out: Path, measured: dict[str, Any], drawn: str) -> None:
    """Write the JSON file, whole or not at all, and the page beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, json.dumps(measured, indent=1) + "\n"), (out.with_suffix(".html"), drawn)):
        part = path.with_suffix(".part")
        part.write_text(text)
        part.rename(path)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="What the index finds and costs as a map grows.")
    parser.add_argument("--photos", default="10000,100000,1000000", help="sizes of maps (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=256, help="asked of each (default: %(default)s)")
    parser.add_argument("--against", default=",".join(METHODS), help="methods, separated by commas (default: %(default)s)")
    parser.add_argument("--cities", default="reduced", help="reduced, compressible (default: %(default)s)")
    parser.add_argument("--refined", default="200,400,800,1600,3200", help="photos that are refined (default: %(default)s)")
    parser.add_argument("--nprobe", default="", help="cells looked at, beside the default, with 800 refined")
    parser.add_argument(
        "--full-photos", type=int, default=40_960, help="of the map of full descriptors; 0: none (default: %(default)s)"
    )
    parser.add_argument("--autofaiss-s", type=float, default=3600.0, help="for its build, at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=WORK / "index.json", help="as JSON (default: out/bench/index.json)")
    asked = parser.parse_args()
    cities, against = asked.cities.split(","), tuple(asked.against.split(","))
    for given, known in ((cities, CITIES), (against, METHODS)):
        if unknown := set(given) - set(known):
            parser.error(f"no {', '.join(sorted(unknown))}: choose from {', '.join(known)}")

    def say(what: str) -> None:
        print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)

    plan = Plan(
        photos=tuple(sorted(_numbers(asked.photos))),
        against=against,
        queries=asked.queries,
        refined=_numbers(asked.refined),
        nprobes=_numbers(asked.nprobe),
        autofaiss_limit_s=asked.autofaiss_s,
    )
    rows: list[Row] = []
    filtered: list[Filtered] = []
    for city in cities if plan.photos else ():
        more, times = measure(city, CITIES[city], plan, say)
        rows, filtered = rows + more, filtered + times
    full: list[Row] = []
    if asked.full_photos:
        own = tuple(method for method in against if method in (EXACT, FOLIO))
        full, times = measure("full", CITIES["full"], replace(plan, photos=(asked.full_photos,), against=own), say)
        filtered += times
    lines = growth([row for row in rows if row.city == cities[0]])
    print(table(rows + full), filtered_table(filtered), growth_table(lines), sep="\n\n")
    if exact := [row for row in full if row.method == EXACT]:
        print("", full_table(exact), sep="\n")
    facts = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "faiss": faiss.__version__}
    measured = {
        **facts,
        "queries": plan.queries,
        "rows": [asdict(row) for row in rows + full],
        "filtered": [asdict(one) for one in filtered],
        "growth": {name: asdict(line) for name, line in lines.items()},
    }
    write(asked.out, measured, draw(rows + full))


if __name__ == "__main__":
    main()
