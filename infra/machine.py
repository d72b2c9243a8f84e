"""What this machine has, as far as a plan must know it."""

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
