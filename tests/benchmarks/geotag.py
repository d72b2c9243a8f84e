"""How fast `folio geotag` answers an archive, beside the same photos asked one by one: `make bench-geotag`. Not a test.

Prints Markdown tables and writes `out/bench/geotag.json`.

    python -m tests.benchmarks.geotag --map-photos 3000 --photos 64
    python -m tests.benchmarks.geotag --keep out/bench/maps --threads 2

Two maps of made-up photos, a small and a large one, go through the writers of a build (`tests/benchmarks/query.py`). The archive
is real photos: `../shared/data/street/lund` again and again, or those of the sample city where that is absent. Every photo is
read, decoded and put through the network; then, as no real photo shows a place of a made-up map, it is looked for as a made-up
photo taken somewhere on it, drawn at random: photos that stand near each other would have more in common. Three ways:

- **bulk**: `answer_catalog`, which is what `folio geotag` calls;
- **one by one**: a process that is warm, as a script would write it: load a photo, `QueryWorker.answer`, the next;
- **a process each**: `folio query MAP PHOTO`, as a shell script would; the network and the map are opened each time.

The first two must give the same results, to the bit, or the benchmark fails. They take turns, so that what else the machine does
meets both. Each has a map freshly opened that has answered a few other photos. CPU time is that of the process and of its
decoders; of a stage, with one thread, that of the thread that does it: what threads read beside it is in `else`. One by one uses
its threads too: on the candidates of a photo, not on photos.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import Any, Final
from unittest.mock import patch

import cv2
import numpy as np
import pyarrow as pa

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, PreparedPhoto, open_encoder
from fol_model.recipes import folio_small
from infra.commits import read_head
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.catalog.sources import Catalog, list_photos
from pipelines.engine.threads import use_threads
from pipelines.query import answering, worker
from pipelines.query.answering import answer_catalog
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import QueryWorker
from schemas.results import RESULTS
from tests.benchmarks.query import CEPH, SEED, MadeUpPhotos, _say, ceph, machine, place_for_map, write_map
from tests.benchmarks.recall_sets import WORK

STREET: Final = Path(__file__).parents[3] / "shared" / "data" / "street" / "lund"

BULK: Final = "bulk"
ONE_BY_ONE: Final = "one by one"
PROCESS: Final = "a process each"

STAGES: Final = ("decode", "network", "search", "cosines", "names", "features", "re-rank")

WARM_UP: Final = 5
"""Photos that a fresh worker answers before it is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One line of the table: one way to answer the archive."""

    map_photos: int
    way: str
    threads: int
    photos: int
    wall_s: float
    """A photo, as are all times here."""
    cpu_s: float
    stages_s: dict[str, float]
    """CPU time of the thread that does it."""


class Disguised:
    """Runs the network, and gives for each photo what the next made-up one became."""

    def __init__(self, encoder: Encoder, queries: Sequence[EncodedPhoto]) -> None:
        self._encoder = encoder
        self._left = iter(queries)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, photos: Sequence[np.ndarray]) -> list[EncodedPhoto]:
        """See `Encoder`, as the next one."""
        return self.encode_prepared([self._encoder.prepare(photo) for photo in photos])

    def encode_prepared(self, photos: Sequence[PreparedPhoto]) -> list[EncodedPhoto]:
        return [next(self._left) for _ in self._encoder.encode_prepared(photos)]


@contextmanager
def stages() -> Iterator[Counter[str]]:
    """Add up the CPU seconds of each stage of a query, in the threads that call them."""
    spent: Counter[str] = Counter()
    inside: set[int] = set()

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            if (thread := get_ident()) in inside:
                return function(*args, **kwargs)
            inside.add(thread)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[stage] += time.thread_time() - start
                inside.discard(thread)

        return measured

    with ExitStack() as stack:
        for stage, where, name in (
            ("network", Disguised, "encode_prepared"),
            ("search", OpenedMap, "candidates"),
            ("cosines", worker, "_cosines"),
            ("names", OpenedMap, "best"),
            ("features", OpenedMap, "local_features_of"),
            ("re-rank", worker._Pool, "match"),
        ):
            stack.enter_context(patch.object(where, name, timed(stage, getattr(where, name))))
        yield spent


def measured(map_photos: int, way: str, settings: Settings, photos: int, work: Callable[[], pa.Table]) -> tuple[Way, pa.Table]:
    """Do the work and say what it took a photo."""
    use_threads(settings.threads)
    with stages() as spent:
        wall, cpu, decoders = time.perf_counter(), time.process_time(), _children_s()
        results = work()
        spent["decode"] = _children_s() - decoders
        cpu_s = time.process_time() - cpu + spent["decode"]
        wall_s = time.perf_counter() - wall
    of_photo = {stage: spent[stage] / photos for stage in STAGES}
    return (
        Way(
            map_photos=map_photos,
            way=way,
            threads=settings.threads,
            photos=photos,
            wall_s=wall_s / photos,
            cpu_s=cpu_s / photos,
            stages_s=of_photo,
        ),
        results,
    )


def one_by_one(asked: QueryWorker, catalog: Catalog, settings: Settings) -> pa.Table:
    """Answer an archive as a script would."""
    limits, images, batches = PhotoLimits(), catalog.images, []
    reader = PhotoReader(settings, limits)
    with PhotoDecoder(limits) as decoder:
        rows = images.select(["uri", "root", "size_bytes", "checksum"]).to_pylist()
        for row, name in zip(rows, images["image_id"].to_pylist(), strict=True):
            pixels = decoder.decode(reader.read(**row), min_side=asked.encoder.decode_side)
            batches.append(pa.RecordBatch.from_pylist(list(answering._rows(name, asked.answer(pixels))), RESULTS))
    return pa.Table.from_batches(batches, RESULTS)


def in_bulk(asked: QueryWorker, catalog: Catalog, settings: Settings) -> pa.Table:
    """Answer an archive as `folio geotag` does, without its tables of decisions."""
    return answer_catalog(asked, catalog, settings, PhotoLimits(), description="bulk").results


def ask_in_processes(url: str, photos: Sequence[Path], map_photos: int, threads: int) -> Way:
    """Ask with a fresh `folio query` for each photo."""
    environment = {**os.environ, "FOLIO_THREADS": str(threads)}
    wall, cpu = time.perf_counter(), _children_s()
    for photo in photos:
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "query", url, str(photo)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return Way(
        map_photos=map_photos,
        way=PROCESS,
        threads=threads,
        photos=len(photos),
        wall_s=(time.perf_counter() - wall) / len(photos),
        cpu_s=(_children_s() - cpu) / len(photos),
        stages_s={},
    )


def ask_map(
    url: str, count: int, catalog: Catalog, encoder: Encoder, made_up: MadeUpPhotos, threads: Sequence[int], rounds: int
) -> list[Way]:
    """Answer an archive from a map in both ways, in turns.

    Raises:
        RuntimeError: they gave different results.
    """
    places = np.random.default_rng([SEED, 4]).integers(0, count, len(catalog.images) + WARM_UP).tolist()
    drawn = [made_up.query(place) for place in places]
    warm_up, queries = drawn[:WARM_UP], drawn[WARM_UP:]
    ways: list[Way] = []
    for number in threads:
        settings = Settings.from_environment()
        settings = Settings(threads=number, s3_endpoint_url=settings.s3_endpoint_url)
        for _ in range(rounds):
            found = []
            for way, answer in ((ONE_BY_ONE, one_by_one), (BULK, in_bulk)):
                storage = open_storage(url, settings)
                disguised: Any = Disguised(encoder, queries)
                asked = QueryWorker(
                    storage,
                    OpenedMap(storage, read_head(storage)),
                    disguised,
                    RerankConfig(min_cosine=folio_small().match_cosine),
                )
                for query in warm_up:
                    asked.answer_encoded(query)
                took, results = measured(
                    count,
                    way,
                    settings,
                    len(catalog.images),
                    lambda: answer(asked, catalog, settings),  # noqa: B023
                )
                ways.append(took)
                found.append(results)
                _say(f"{count:,} photos, {number} threads, {way}: {1 / took.wall_s:.2f} photos/s, {1e3 * took.cpu_s:.0f} ms CPU")
            if not found[0].equals(found[1]):
                raise RuntimeError(f"{url}: bulk and one by one gave different results")
    return ways


def mean_of(ways: Sequence[Way]) -> list[Way]:
    """Give for each map, number of threads and way the mean of its rounds."""
    groups: dict[tuple[int, int, str], list[Way]] = {}
    for one in ways:
        groups.setdefault((one.map_photos, one.threads, one.way), []).append(one)
    return [
        Way(
            map_photos=count,
            way=way,
            threads=threads,
            photos=sum(one.photos for one in ones),
            wall_s=float(np.mean([one.wall_s for one in ones])),
            cpu_s=float(np.mean([one.cpu_s for one in ones])),
            stages_s={stage: float(np.mean([one.stages_s[stage] for one in ones])) for stage in ones[0].stages_s},
        )
        for (count, threads, way), ones in groups.items()
    ]


def table(ways: Sequence[Way]) -> str:
    """Write ways as a Markdown table; `times` is photos a second over those of one by one with as many threads.

    The last two leave out network and decoder, which are known with one thread.
    """
    lines = [
        "| map photos | threads | way | photos/s | times | CPU ms a photo | times less | CPU ms of the rest | times less |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in ways:
        (base,) = [
            each for each in ways if (each.map_photos, each.threads, each.way) == (one.map_photos, one.threads, ONE_BY_ONE)
        ]
        rest = (
            [f"{1e3 * _rest_s(one):,.0f}", f"{_rest_s(base) / _rest_s(one):.2f}"]
            if one.stages_s and one.threads == 1
            else ["", ""]
        )
        cells = [
            f"{one.map_photos:,}",
            f"{one.threads}",
            one.way,
            f"{1 / one.wall_s:.2f}",
            f"{base.wall_s / one.wall_s:.2f}",
            f"{1e3 * one.cpu_s:,.0f}",
            f"{base.cpu_s / one.cpu_s:.2f}",
            *rest,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stage_table(ways: Sequence[Way]) -> str:
    """Write what each stage takes, of those with one thread."""
    lines = [
        f"| map photos | way | {' | '.join(STAGES)} | else |",
        f"|---|---|{'---|' * (len(STAGES) + 1)}",
    ]
    for one in ways:
        if one.threads == 1 and one.stages_s:
            spent = [one.stages_s[stage] for stage in STAGES]
            cells = " | ".join(f"{1e3 * seconds:,.1f}" for seconds in (*spent, one.cpu_s - sum(spent)))
            lines.append(f"| {one.map_photos:,} | {one.way} | {cells} |")
    return "\n".join(lines)


def _rest_s(one: Way) -> float:
    """What a photo takes beside the network and the decoder."""
    return one.cpu_s - one.stages_s["network"] - one.stages_s["decode"]


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_archive(folder: Path, count: int) -> list[Path]:
    """Lay out an archive of real photos, or of rendered ones."""
    sources = sorted(STREET.glob("*.jpg"))
    if not sources:
        write_sample_city(folder / "city", places=2, queries=24, unmapped=0)
        sources = sorted((folder / "city" / "queries").rglob("*.jpg"))
    archive = folder / "archive"
    archive.mkdir()
    return [
        Path(shutil.copy(sources[number % len(sources)], archive / f"{number:05d}{sources[0].suffix}")) for number in range(count)
    ]


@contextmanager
def made_up_map(count: int, s3: str | None, keep: Path | None, encoder: Encoder, made_up: MadeUpPhotos) -> Iterator[str]:
    """Give the URL of a map of so many made-up photos: one that was kept, or a new one."""
    settings = Settings.from_environment()
    if keep is not None and s3 is None:
        url = str(keep / f"map-{count}")
        if not (keep / f"map-{count}" / "manifests").exists():
            write_map(open_storage(url, settings), count, made_up, say=_say, fingerprint=encoder.fingerprint)
        yield url
        return
    with place_for_map(count, s3, settings) as url:
        write_map(open_storage(url, settings), count, made_up, say=_say, fingerprint=encoder.fingerprint)
        yield url


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Photos a second in bulk and one by one.")
    parser.add_argument("--map-photos", default="3000,100000", help="of the maps, separated by commas (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=128, help="of the archive (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=5, help="photos asked with a process each (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="FOLIO_THREADS, separated by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of both ways in turns (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the maps there, or use those that are there")
    parser.add_argument("--s3", metavar="URL", help=f"write the maps below this URL. {CEPH}: a gateway on this machine")
    parser.add_argument(
        "--out", type=Path, default=WORK / "geotag.json", help="the same as JSON (default: out/bench/geotag.json)"
    )
    asked = parser.parse_args()

    cv2.setNumThreads(1)
    encoder, made_up = open_encoder(folio_small().name, weights=None, device="cpu"), MadeUpPhotos()
    threads = [int(number) for number in asked.threads.split(",")]
    ways: list[Way] = []
    with ExitStack() as stack:
        s3 = stack.enter_context(ceph()) if asked.s3 == CEPH else asked.s3
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="geotag-bench-")))
        archive = write_archive(folder, asked.photos)
        catalog = list_photos([str(archive[0].parent)], settings=Settings(threads=1), limits=PhotoLimits(), needs_position=False)
        for count in map(int, asked.map_photos.split(",")):
            with made_up_map(count, s3, asked.keep, encoder, made_up) as url:
                ways += ask_map(url, count, catalog, encoder, made_up, threads, asked.rounds)
                if asked.processes:
                    ways.append(ask_in_processes(url, archive[: asked.processes], count, max(threads)))
                    _say(f"{count:,} photos, {PROCESS}: {1 / ways[-1].wall_s:.2f} photos/s")
    means = mean_of(ways)
    print(f"\n{table(means)}\n\nCPU ms a photo by stage, one thread:\n\n{stage_table(means)}\n")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    measured_here = {**machine(), "store": "s3" if s3 else "disk", "rounds": [asdict(one) for one in ways]}
    asked.out.write_text(json.dumps(measured_here, indent=1) + "\n")


if __name__ == "__main__":
    main()
