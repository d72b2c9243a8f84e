"""What a map costs a photo as it grows: `make bench-encode ARGS="--parts growth --sizes 1000,10000,100000"`. Not a test.

A whole build of a sample city through a stand-in for a network, stage by stage, on one thread: CPU milliseconds a photo of this
process and its decoders, and the most memory beyond what was there before the stage.

A town of 1,000 photos is rendered once. A larger city is many of them side by side: each photo again with other positions, and
with another quantization table in its JPEG, so that no two have the same bytes, pixels or descriptor.
"""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
from PIL import Image
from PIL.ExifTags import GPS, IFD

from fol_model.inference import Encoder
from fol_model.recipes import recipe_named
from infra.leases import lease
from infra.settings import Settings
from pipelines.build import build, publishing
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import degrees_minutes_seconds, write_sample_city
from pipelines.engine.threads import use_threads
from tests.benchmarks.measuring import measured

TOWN_PHOTOS: Final = 1000

TILE_DEG: Final = (0.02, 0.03)
"""From one town to the next, in latitude and longitude: wider than one."""

TILES_A_ROW: Final = 10

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a stage of one build cost."""

    photos: int
    stage: str
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def cpu_ms(self) -> float:
        """A photo."""
        return self.cpu_s / self.photos * 1e3


def speck() -> Encoder:
    """A stand-in for a network: descriptors as long as those of others, in a few milliseconds."""
    return Encoder(replace(recipe_named("tiny"), input_size=126), device="cpu")


def write_city(folder: Path, photos: int) -> None:
    """Write a city of so many photos: the town beside the folder, which is rendered if there is none, as often as it takes."""
    town = folder.parent / "town"
    if not town.exists():
        write_sample_city(town, places=TOWN_PHOTOS // 4, queries=1, unmapped=0)
    files = sorted((town / "database").iterdir())
    for tile, first in enumerate(range(0, photos, len(files))):
        place = folder / f"tile-{tile:04}"
        place.mkdir(parents=True)
        for file in files[: photos - first]:
            (place / file.name).write_bytes(moved(file, tile))


def moved(file: Path, tile: int) -> bytes:
    """Give a photo as it were in another town: its position, and the strength of its contrasts."""
    data = file.read_bytes()
    with Image.open(file) as image:
        exif = image.getexif()
    gps = exif.get_ifd(IFD.GPSInfo)
    for tag, steps, step_deg in zip((GPS.GPSLatitude, GPS.GPSLongitude), divmod(tile, TILES_A_ROW), TILE_DEG, strict=True):
        degrees, minutes, seconds = (float(part) for part in gps[tag])
        gps[tag] = degrees_minutes_seconds(degrees + minutes / 60 + seconds / 3600 + steps * step_deg)
    block = exif.tobytes()
    start = data.index(b"Exif\0\0") - 2
    end = start + int.from_bytes(data[start : start + 2])
    return _other_contrasts(data[:start] + (len(block) + 2).to_bytes(2) + block + data[end:], tile)


def _other_contrasts(data: bytes, tile: int) -> bytes:
    """Change the first quantization table, by a fifth at most; the first tile's stays."""
    start = data.index(b"\xff\xdb") + 5
    table = np.frombuffer(data[start : start + 64], np.uint8)
    factors = np.random.default_rng(tile).uniform(0.8, 1.2, 64) if tile else np.ones(64)
    return data[:start] + np.clip(np.rint(table * factors), 1, 255).astype(np.uint8).tobytes() + data[start + 64 :]


def measure_build(city: Path, map_folder: Path, photos: int) -> list[Stage]:
    """Build a map of a city, and say what each stage cost. Index and calibration go on in publishing, and are taken out of it."""
    stages: list[Stage] = []
    settings = replace(Settings.from_environment(), threads=1)
    use_threads(1)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        gc.collect()
        with measured() as found:
            yield
        stages.append(Stage(photos=photos, stage=name, **found))  # type: ignore[arg-type]

    def in_stage(name: str, function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with stage(name):
                return function(*args, **kwargs)

        return call

    with stage("list"), patch.object(build, "load_encoder", lambda *_, **__: speck()):
        surveyed = build.survey(BuildRequest(map_url=str(map_folder), photos=(str(city),), recipe="tiny"), settings)
    with lease(surveyed.storage, run_id=surveyed.run_id, action="build") as held:
        with stage("plan"):
            prepared = build.prepare(surveyed, settings)
        with stage("encode"):
            build.encode(prepared, settings)
        with stage("rewrite"):
            rewriting = build.rewrite(prepared, settings)
        with (
            patch.object(publishing, "build_index", in_stage("index", publishing.build_index)),
            patch.object(publishing, "calibrate", in_stage("calibrate", publishing.calibrate)),
            stage("publish"),
        ):
            published = publishing.publish_version(prepared, [], rewriting, settings=settings, check=held.require)
    assert published.encoded == photos, f"{photos - published.encoded} photos were rejected"
    return _apart(stages)


def _apart(stages: Sequence[Stage]) -> list[Stage]:
    """Take out of publishing what went on in it."""
    inner = [one for one in stages if one.stage in ("index", "calibrate")]
    return [
        replace(one, wall_s=one.wall_s - sum(each.wall_s for each in inner), cpu_s=one.cpu_s - sum(each.cpu_s for each in inner))
        if one.stage == "publish"
        else one
        for one in stages
    ]


def growth_table(stages: Sequence[Stage]) -> list[str]:
    """Say it in Markdown: a line for each stage, two columns for each size."""
    sizes = sorted({one.photos for one in stages})
    lines = [
        f"| stage | {' | '.join(f'{size:,} photos: CPU ms each | peak MB' for size in sizes)} |",
        f"|---|{'---|---|' * len(sizes)}",
    ]
    for name in dict.fromkeys(one.stage for one in stages):
        found = {one.photos: one for one in stages if one.stage == name}
        cells = [f"{found[size].cpu_ms:.2f} | {found[size].peak_bytes / 1e6:.0f}" if size in found else "|" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [f"{sum(one.cpu_ms for one in stages if one.photos == size):.2f} | |" for size in sizes]
    return [*lines, f"| all | {' '.join(totals)}"]


def growth_part(folder: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure and print; leaves the cities in the folder."""
    stages: list[Stage] = []
    for photos in sorted(sizes):
        city, map_folder = folder / f"city-{photos}", folder / f"map-{photos}"
        if not city.exists():
            write_city(city, photos)
        stages += measure_build(city, map_folder, photos)
        shutil.rmtree(map_folder)
        print("\n".join(growth_table(stages)), flush=True)
    return [asdict(one) for one in stages]
