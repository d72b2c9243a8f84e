"""Time, CPU time and memory of a block, child processes included. Used by the benchmarks; Linux."""

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill in wall_s, cpu_s and peak_bytes of what the block does, child processes included."""
    found: dict[str, float] = {}
    before, peak, done = _resident(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    start, cpu = time.perf_counter(), _cpu_s()
    try:
        yield found
    finally:
        found |= {"wall_s": time.perf_counter() - start, "cpu_s": _cpu_s() - cpu}
        done.set()
        watcher.join()
        found["peak_bytes"] = max(0, peak[0] - before)


def cpu_of(pid: int | None) -> float:
    """Seconds that another process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_s() -> float:
    """Of this process and the children that have ended; decoders end with their run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _resident() -> int:
    """Memory that this process and its children hold for themselves, without the files that they have mapped.

    Not their share of each page (`smaps_rollup`): to add that up costs the process 7 ms, more than decoding a photo.
    """
    pids = [str(os.getpid())]
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            pids += (thread / "children").read_text().split()
    pages = 0
    for pid in pids:
        with suppress(OSError):  # it has ended
            _, resident, of_files = Path(f"/proc/{pid}/statm").read_text().split()[:3]
            pages += int(resident) - int(of_files)
    return pages * os.sysconf("SC_PAGE_SIZE")
