"""How fast and how large, on this machine, on the sample city: `make bench`. Not a test; compare the ratios, not the seconds.

Machines differ and are shared, so each line also gives its ratio to one pass of a photo through the network alone, which is the
limit of what encoding can reach on a core.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fol_model.inference import open_encoder
from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.engine.threads import use_threads
from pipelines.query.worker import open_worker

PHOTOS = 60


def per_item(work: Callable[[], object], items: int) -> float:
    """Seconds an item; the best of two, because other work on the machine only ever adds."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / items


def main() -> None:
    settings = Settings(threads=2)
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder, PhotoDecoder(PhotoLimits()) as decoder:
        city, place = Path(folder) / "city", Path(folder) / "map"
        write_sample_city(city, queries=PHOTOS)
        encoder = open_encoder("tiny", weights=None)
        files = [path.read_bytes() for path in sorted((city / "queries").iterdir())]
        photos = [decoder.decode(data, min_side=encoder.decode_side) for data in files]

        network_s = per_item(lambda: [encoder.encode([photo]) for photo in photos], PHOTOS)
        decode_s = per_item(lambda: [decoder.decode(data, min_side=encoder.decode_side) for data in files], PHOTOS)
        built = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(city / "database"),)), settings)
        start = time.perf_counter()
        worker = open_worker(str(place), settings)
        open_s = time.perf_counter() - start
        encoded = encoder.encode(photos)
        start = time.perf_counter()
        first = [worker.answer_encoded(photo) for photo in encoded]
        cold_s = (time.perf_counter() - start) / PHOTOS
        warm_s = per_item(lambda: [worker.answer_encoded(photo) for photo in encoded], PHOTOS)

    def line(what: str, seconds: float) -> None:
        print(f"{what:<44} {seconds * 1e3:8.1f} ms   {seconds / network_s:6.2f} x network")

    line("network, one photo, one core", network_s)
    line("decode, one photo", decode_s)
    line("build, one photo, two cores (limit 0.5)", 1 / built.encode_photos_per_second)
    line("open a map for queries", open_s)
    line("search and re-rank, first time", cold_s)
    line("search and re-rank, again", warm_s)
    print(f"{'pool re-ranked, mean of at most 100':<44} {np.mean([answer.pool_size for answer in first]):8.1f}")
    print(f"{'store, one photo':<44} {built.bytes_per_photo / 1e3:8.1f} kB")


if __name__ == "__main__":
    main()
