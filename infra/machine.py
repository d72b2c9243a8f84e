"""What this machine has, as far as a plan must know it, and how a process holds its memory."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit stands, in the newer and the older kind."""


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Tell how much memory this process may fill: the machine's, or its container's; None where the system does not say."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) * 1024)
    for limit in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            found.append(int((root / limit.lstrip("/")).read_text()))
    return min(found, default=None)


KEPT_BYTES: Final = 128 << 20
"""What a process may keep of memory that it has let go of, for each of its threads that ever needed so much."""

LARGEST_KEPT: Final = 32 << 20
"""Pieces from this size on go back at once; the GNU C library takes no larger limit."""

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MOST_POOLS: Final = -8


def keep_freed_memory(*, pools: int | None = None) -> None:
    """Let this process use memory again that it has let go of, where its C library can. For whoever owns the process.

    Otherwise each photo has its layers and pixels in pages that the system must clear first: 4,800 of them, 9 ms of 67.

    Args:
        pools: that its threads share. Each takes 64 MB of addresses, too many where these are limited. None: one a thread.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, LARGEST_KEPT)
        set_option(_TRIM_THRESHOLD, KEPT_BYTES)
        if pools:
            set_option(_MOST_POOLS, pools)
