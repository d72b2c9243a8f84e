"""How near encoding comes to the bare network: `make bench-encode`. Not a test.

Side by side in one run: the network alone on tensors already in memory, and the whole path from JPEG files (on disk, and on an S3
gateway) to receipts, at 1 and 2 workers. Listing counts as part of the path. The ways alternate, and the best of the rounds
counts, because other work on the machine only ever adds. Prints Markdown tables and writes `out/bench/encode.json`.

    python -m tests.benchmarks.encode --networks folio-small --stores disk --rounds 1
    python -m tests.benchmarks.encode --parts growth

Part `growth`: whole builds of sample cities of 1,000 photos and of more; see `growth`.

Part `stages`: CPU seconds of each stage, one photo after the other on one thread.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from fol_model.inference import Encoder, PreparedPhoto, open_encoder
from fol_model.recipes import recipe_named
from infra.arrays import LocalFeaturesWriter
from infra.machine import keep_freed_memory
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.loading import photo_loader
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.sources import list_photos
from pipelines.engine.partition import PartitionConfig, cut
from pipelines.engine.run import run_here
from pipelines.engine.threads import use_threads
from schemas.local_features import LocalFeatures
from tests.benchmarks.growth import growth_part
from tests.benchmarks.measuring import cpu_of, measured
from tests.benchmarks.query import ceph, machine, write_part
from tests.benchmarks.recall_sets import WORK

STREET: Final = Path(__file__).parents[3] / "shared/data/street/mapillary_seq"

LIMITS: Final = PhotoLimits()

PHOTOS: Final = {"folio-small": 384, "vit-b14-322": 24}
"""How many each network encodes: half a minute of one worker, or so."""


def vit_b14_322() -> Encoder:
    """FoL on ViT-B/14 at 322 x 322, with weights drawn from a seed: as fast as trained ones."""
    return Encoder(
        replace(recipe_named("fol_vitb14"), input_size=322, mask_patches=None, mask_fraction=0.4, seed=0), device="auto"
    )


NETWORKS: Final[dict[str, Callable[[], Encoder]]] = {
    "folio-small": lambda: open_encoder("folio-small", weights=None),
    "vit-b14-322": vit_b14_322,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One way through a set of photos."""

    network: str
    way: str
    """`bare`, or the store of the photos and of the map."""
    workers: int
    photos: int
    wall_s: float
    cpu_s: float
    """Of this process and its decoders."""
    peak_bytes: int
    """Resident memory of both at most, beyond what was there before."""

    @property
    def per_second(self) -> float:
        return self.photos / self.wall_s


def best_of(runs: Sequence[Run]) -> list[Run]:
    """The fastest of the runs of each network, way and number of workers, in the order they were first made."""
    best: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        key = (run.network, run.way, run.workers)
        best[key] = min(best.get(key, run), run, key=lambda one: one.wall_s)
    return list(best.values())


def share(run: Run, runs: Sequence[Run]) -> float:
    """How fast a run was beside the bare network with as many workers."""
    bare = next(one for one in runs if (one.network, one.way, one.workers) == (run.network, "bare", run.workers))
    return run.per_second / bare.per_second


def table(runs: Sequence[Run]) -> list[str]:
    """Say it in Markdown."""
    lines = [
        "| network | path | workers | photos/s | of the bare network | CPU ms/photo | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [
            *(run.network, run.way, str(run.workers), f"{run.per_second:.2f}", f"{share(run, runs):.1%}"),
            *(f"{run.cpu_s / run.photos * 1e3:.1f}", f"{run.peak_bytes / 1e6:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# ------------------------------------------------------------------------------------------------------ measuring


def run_bare(network: str, encoder: Encoder, photos: Sequence[PreparedPhoto], workers: int) -> Run:
    """The network alone: every photo is in memory as the network takes it, nothing is stored."""

    def some(first: int) -> None:
        use_threads(1)
        for photo in photos[first::workers]:
            encoder._network.extract(photo.unsqueeze(0).to(encoder._device))

    with measured() as found, ThreadPoolExecutor(workers) as pool:
        list(pool.map(some, range(workers)))
    return Run(network=network, way="bare", workers=workers, photos=len(photos), **found)  # type: ignore[arg-type]


def run_whole(network: str, encoder: Encoder, way: str, source: str, place: str, workers: int, settings: Settings) -> Run:
    """From files to receipts, into a store of segments of its own."""
    job = EncodeJob(map_url=f"{place}/{uuid4().hex}", recipe=network, weights=None, device="auto", limits=LIMITS, run_id="bench")
    with measured() as found:
        images = list_photos([source], settings=settings, limits=LIMITS, needs_position=True).images
        each = min(PartitionConfig().max_photos, -(-len(images) // workers))
        parts = list(cut(images, encoder.fingerprint, photos_per_segment=each))
        done = list(run_here(parts, lambda: SegmentWorker(job, encoder, settings), threads=workers, on_photo=lambda: None))
    encoded = sum(outcome.result.receipt.rows for outcome in done if outcome.result)
    assert encoded == len(images), f"{len(images) - encoded} photos were rejected"
    return Run(network=network, way=way, workers=workers, photos=encoded, **found)  # type: ignore[arg-type]


def street_table(files: Sequence[Path], names: Sequence[str], table_file: Path) -> str:
    """Write a table that gives photos made-up positions, 12 m apart on a line, and name it."""
    with table_file.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "lat_deg", "lon_deg"])
        writer.writerows([name, 55.7, 13.19 + number * 2e-4] for number, (_, name) in enumerate(zip(files, names, strict=True)))
    return str(table_file)


def on_s3(files: Sequence[Path]) -> list[str]:
    """Put photos into the bucket, and name them."""
    storage = open_storage("s3://maps/photos", Settings.from_environment())
    for number, file in enumerate(files):
        storage.put(f"{number:05}.jpg", file.read_bytes())
    return [f"s3://maps/photos/{number:05}.jpg" for number in range(len(files))]


def speed_part(
    networks: Sequence[str], stores: Sequence[str], workers: Sequence[int], rounds: int, most: int | None
) -> dict[str, Any]:
    """Measure and print."""
    runs: list[Run] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="folio-bench-")))
        everything = sorted(STREET.rglob("*.jpg"))
        if not everything:
            raise SystemExit(f"{STREET.name}: found no photos there, needed real ones. Nothing was measured.")
        buckets = [stack.enter_context(ceph())] if "s3" in stores else []
        settings = Settings.from_environment()
        for network in networks:
            files = everything[: most or PHOTOS[network]]
            encoder = NETWORKS[network]()
            ways = {"disk": (street_table(files, [str(file) for file in files], folder / f"{network}.csv"), str(folder / "map"))}
            if buckets:
                ways["s3"] = (street_table(files, on_s3(files), folder / f"{network}-s3.csv"), f"{buckets[0]}/map")
            with closing(photo_loader(encoder, settings, LIMITS)) as loader:
                listed = list_photos([ways["disk"][0]], settings=settings, limits=LIMITS, needs_position=True).images
                prepared = [one.photo for one in loader.load(listed)]
            for _ in range(rounds):
                for count in workers:
                    runs.append(run_bare(network, encoder, prepared, count))
                    for way in [one for one in stores if one in ways]:
                        runs.append(run_whole(network, encoder, way, *ways[way], count, replace(settings, threads=max(2, count))))
                        print(f"{network} {way} {count}: {runs[-1].per_second:.2f} photos/s", file=sys.stderr, flush=True)
    best = best_of(runs)
    print("\n".join(table(best)))
    return {"machine": machine(), "runs": [asdict(run) | {"share": share(run, best)} for run in best]}


# --------------------------------------------------------------------------------------------------------- stages


def stages_part(networks: Sequence[str], most: int | None) -> dict[str, Any]:
    """CPU milliseconds a photo of each stage, one after the other on one thread."""
    use_threads(1)
    found: dict[str, dict[str, float]] = {}
    settings = Settings.from_environment()
    for network in networks:
        encoder = NETWORKS[network]()
        files = sorted(STREET.rglob("*.jpg"))[: most or PHOTOS[network] // 4]
        with tempfile.TemporaryDirectory() as folder, PhotoDecoder(LIMITS) as decoder:
            source = street_table(files, [str(file) for file in files], Path(folder) / "photos.csv")
            spent, clock = {}, time.process_time
            list_photos([source], settings=settings, limits=LIMITS, needs_position=True)  # what is imported once is not counted
            start = clock()
            images = list_photos([source], settings=settings, limits=LIMITS, needs_position=True).images
            spent["list"] = clock() - start
            reader, start = PhotoReader(settings, LIMITS), clock()
            rows = images.select(["uri", "root", "size_bytes", "checksum"]).to_pylist()
            data = [reader.read(row["uri"], row["root"], size_bytes=row["size_bytes"], checksum=row["checksum"]) for row in rows]
            spent["fetch and check"] = clock() - start
            decoder.decode(data[0], min_side=encoder.decode_side)
            start, before = clock(), cpu_of(decoder.pid)
            pixels = [decoder.decode(one, min_side=encoder.decode_side) for one in data]
            spent["decode, in the child"] = cpu_of(decoder.pid) - before
            spent["decode, here"] = clock() - start
            start = clock()
            prepared = [encoder.prepare(one) for one in pixels]
            spent["prepare"] = clock() - start
            start = clock()
            for one in prepared:
                encoder._network.extract(one.unsqueeze(0))
            spent["network"] = clock() - start
            start = clock()
            encoded = encoder.encode_prepared(prepared)
            spent["round and pack"] = max(0.0, clock() - start - spent["network"])
            start = clock()
            writer = LocalFeaturesWriter(
                open_storage(folder, settings),
                "features.zarr",
                features_per_photo=encoder.max_local_features,
                dim=encoder.local_dim,
                precision=encoder.local_precision,
            )
            for photo in encoded:
                writer.append(LocalFeatures(features=photo.features, patch=photo.patch, reliability=photo.reliability))
            writer.close()
            spent["write local features"] = clock() - start
        found[network] = {stage: seconds / len(files) * 1e3 for stage, seconds in spent.items()}
        print(f"\n| {network}: stage | CPU ms/photo | of the network |\n|---|---|---|")
        for stage, each in found[network].items():
            print(f"| {stage} | {each:.2f} | {each / found[network]['network']:.1%} |")
    return {"machine": machine(), "cpu_ms_per_photo": found}


# --------------------------------------------------------------------------------------------------------- growth


def grown(sizes: Sequence[int]) -> dict[str, Any]:
    """Measure cities of growing size in a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="folio-bench-") as folder:
        return {"machine": machine(), "stages": growth_part(Path(folder), sizes)}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="How near encoding comes to the bare network.")
    parser.add_argument("--parts", default="stages,speed", help="of stages, speed, growth (default: %(default)s)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--stores", default="disk,s3", help="of part speed (default: %(default)s)")
    parser.add_argument("--workers", default="1,2", help="of part speed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of part speed; the best counts (default: %(default)s)")
    parser.add_argument("--photos", type=int, help="encode so many, not the usual number")
    parser.add_argument("--sizes", default="1000,10000", help="of part growth (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=WORK / "encode.json", help="the same as JSON (default: out/bench/encode.json)"
    )
    asked = parser.parse_args()
    os.environ.setdefault("FOLIO_THREADS", "2")
    keep_freed_memory()  # as workers do; the bare network has it too
    networks = asked.networks.split(",")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "stages": lambda: stages_part(networks, asked.photos),
        "speed": lambda: speed_part(
            networks, asked.stores.split(","), [int(count) for count in asked.workers.split(",")], asked.rounds, asked.photos
        ),
        "growth": lambda: grown([int(size) for size in asked.sizes.split(",")]),
    }
    if unknown := set(asked.parts.split(",")) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    for part in asked.parts.split(","):
        write_part(asked.out, part, parts[part]())


if __name__ == "__main__":
    main()
