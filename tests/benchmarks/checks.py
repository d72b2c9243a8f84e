"""What checking every byte costs, on this machine: the same map opened and asked with and without it, in turns, in one run.

    .venv/bin/python -m tests.benchmarks.checks

Not a test; compare the ratios, not the seconds. The map is of noise (`tests.faults.noise_map`), with descriptors and local
features as large as a real network's and 100 candidates matched in each query, from local disk, where reading costs least.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from fol_model.config import PoolConfig, RerankConfig
from infra import arrays, tables
from infra.commits import read_head
from infra.storage import Storage, open_storage
from pipelines.build import build
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.engine.threads import use_threads
from pipelines.query import opened_map
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import QueryWorker
from schemas import manifest
from schemas.manifest import ObjectRef
from tests.faults.noise_map import SETTINGS, NoiseEncoder, write_photos

PHOTOS = 2_000
QUERIES = 8
ROUNDS = 5
ENCODER = NoiseEncoder(dim=8_448, features=104)
CONFIG = RerankConfig(pool=PoolConfig(fixed_size=100))


def read_unchecked(storage: Storage, expected: ObjectRef) -> bytes:
    """What `get_object` would be without its checks."""
    return storage.get(expected.path)


def fetch_block_unchecked(self: tables.DescriptorReader, block: int) -> bytes:
    start = self._starts[block]
    return self._storage.get(self._expected.path, start=start, stop=start + self._blocks[block][0])


def fetch_chunk_unchecked(
    self: arrays._ShardedRows, shard: int, size_bytes: int, *, start: int, stop: int | None = None
) -> bytes:
    return self._storage.get(self._object(shard), start=start, stop=stop)[: -arrays.CRC_BYTES]


@contextmanager
def unchecked() -> Iterator[None]:
    """Believe every byte."""
    with ExitStack() as stack:
        for module in (tables, arrays, opened_map):
            stack.enter_context(patch.object(module, "get_object", read_unchecked))
        stack.enter_context(patch.object(tables.DescriptorReader, "_fetch", fetch_block_unchecked))
        stack.enter_context(patch.object(arrays._ShardedRows, "_fetch", fetch_chunk_unchecked))
        stack.enter_context(patch.object(manifest, "_require_seal", lambda *_: None))
        yield


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(storage: Storage) -> dict[str, float]:
    """Seconds to open the map, and of a query when nothing and when everything has been read before."""
    queries = [ENCODER.photo(number) for number in range(QUERIES)]
    opened: list[OpenedMap] = []

    def open_whole() -> None:
        opened.append(OpenedMap(storage, read_head(storage)))
        for entry in opened[0].manifest.segments:
            segment = opened[0].segment(entry.segment_id)
            _ = segment.images, segment.descriptors, segment.local_features

    def ask() -> None:
        worker = QueryWorker(storage, opened[0], ENCODER, CONFIG, follows=False)
        for query in queries:
            worker.answer_encoded(query)

    return {
        f"open a map of {PHOTOS:,} photos, all segments": seconds(open_whole),
        "a cold query, of 200 photos read": seconds(ask) / QUERIES,
        "a warm query": seconds(ask) / QUERIES,
    }


def main() -> None:
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder) / "photos", range(PHOTOS))
        url = str(Path(folder) / "map")
        with patch.object(build, "load_encoder", lambda *_, **__: ENCODER):
            run_build(BuildRequest(recipe="tiny", map_url=url, photos=(str(photos),)), SETTINGS)
        storage = open_storage(url, SETTINGS)
        measure(storage)
        checked, believed = [], []
        for _ in range(ROUNDS):
            checked.append(measure(storage))
            with unchecked():
                believed.append(measure(storage))

    print(f"{'':<48} {'checked':>10} {'unchecked':>10} {'ratio':>7}")
    for what in checked[0]:
        with_s, without_s = (float(np.min([one[what] for one in rounds])) for rounds in (checked, believed))
        print(f"{what:<48} {with_s * 1e3:>7.1f} ms {without_s * 1e3:>7.1f} ms {with_s / without_s:>7.2f}")


if __name__ == "__main__":
    main()
