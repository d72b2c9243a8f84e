"""Build an index with autofaiss and search it; run by `tests.benchmarks.index` in a virtual environment that has autofaiss.

    python tests/benchmarks/autofaiss_side.py ASKED.json

Imports nothing of Folio: the environment has another NumPy and another faiss. Reads a JSON file, writes `said.json` and
`found.npy` into the folder it names.
"""

import json
import logging
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np


def main() -> None:
    """Do what the JSON file asks for."""
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    out = Path(asked["out"])
    print(json.dumps({"build": build, "search": search}[asked["do"]](asked, out)), file=(out / "said.json").open("w"))


def build(asked: dict[str, Any], out: Path) -> dict[str, Any]:
    """Build with what autofaiss chooses for so many photos and so much memory."""
    from autofaiss import build_index
    from autofaiss.indices import training

    logging.getLogger("autofaiss").setLevel(logging.ERROR)
    training_s, train = 0.0, training._train_index

    def timed_train(*arguments: Any, **options: Any) -> Any:
        nonlocal training_s
        start = time.process_time()
        trained = train(*arguments, **options)
        training_s += time.process_time() - start
        return trained

    training._train_index = timed_train
    before, start = resident_mb("VmRSS"), time.process_time()
    _, infos = build_index(
        embeddings=asked["photos"],
        index_path=str(out / "index"),
        index_infos_path=str(out / "infos.json"),
        max_index_memory_usage=asked["memory"],
        max_index_query_time_ms=asked["query_ms"],
        current_memory_available=asked["available"],
        metric_type="ip",
        nb_cores=1,
        verbose=logging.ERROR,
    )
    seconds = time.process_time() - start
    return {
        "train_cpu_s": training_s,
        "add_cpu_s": seconds - training_s,
        "peak_mb": resident_mb("VmHWM") - before,
        "key": infos["index_key"],
        "param": infos["index_param"],
        "faiss": faiss.__version__,
    }


def search(asked: dict[str, Any], out: Path) -> dict[str, Any]:
    """Ask one query at a time, with the parameters that autofaiss chose."""
    faiss.omp_set_num_threads(1)
    queries = np.load(asked["queries"])
    before = resident_mb("VmRSS")
    index = faiss.read_index(str(out / "index"))
    resident = resident_mb("VmRSS") - before
    faiss.ParameterSpace().set_index_parameters(index, asked["param"])
    index.search(queries[:4], 100)
    start = time.process_time()
    found = np.concatenate([index.search(query[None], 100)[1] for query in queries])
    cpu_s = time.process_time() - start
    start = time.perf_counter()
    with ThreadPoolExecutor(2, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        list(pool.map(lambda query: index.search(query[None], 100), queries))
    wall_s = time.perf_counter() - start
    np.save(out / "found.npy", found.astype(np.int64))
    return {"resident_mb": resident, "cpu_ms": 1e3 * cpu_s / len(queries), "queries_per_s": len(queries) / wall_s}


def resident_mb(which: str) -> float:
    """Read this process's memory: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "needs Linux"
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
