"""Which photos of an archive were taken one after the other: those of one folder and one sequence, without a long pause.

Clocks are not believed blindly: times that cameras start from after their battery was out are none, and photos that all have the
same time have none either. Clocks that make most of a sequence's sure answers impossible are found later, by `path`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby, pairwise
from typing import Final

import pyarrow as pa

from pipelines.locate.holding_back import GAP_S

RESET_DAYS: Final = (date(1970, 1, 1), date(1980, 1, 1), date(1980, 1, 6), date(2000, 1, 1))
"""Where clocks begin: computers, cameras, GPS, cameras again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """Photos to decide on together."""

    name: str
    rows: tuple[int, ...]
    """Of the table, in the order the photos were taken; those of one moment by their names."""


def sequences_of(queries: pa.Table) -> list[Sequence]:
    """Find the photos that were taken one after the other.

    Args:
        queries: in the schema of images.

    Returns:
        Sequences of two photos or more, in the order of their first photos in time. Photos without a usable time are in none.
    """
    uris, roots, named, times = (queries[name].to_pylist() for name in ("uri", "root", "sequence_id", "taken_at"))
    source = [(roots[row], uris[row].rpartition("/")[0], named[row] or "") for row in range(len(uris))]
    usable = [row for row, time in enumerate(times) if is_usable(time)]
    usable.sort(key=lambda row: (source[row], times[row], uris[row]))
    found = []
    for (_, folder, given), rows in groupby(usable, key=lambda row: source[row]):
        parts = [part for part in _without_pauses(list(rows), times) if times[part[0]] < times[part[-1]]]
        for part in parts:
            since = times[part[0]].isoformat(timespec="seconds")
            found.append(Sequence(name=given if given and len(parts) == 1 else f"{given or folder}@{since}", rows=tuple(part)))
    return sorted(found, key=lambda sequence: (times[sequence.rows[0]], sequence.name))


def is_usable(time: datetime | None) -> bool:
    """Tell whether a camera's clock was set."""
    return time is not None and time.astimezone(UTC).date() not in RESET_DAYS


def _without_pauses(rows: list[int], times: list[datetime]) -> Iterator[list[int]]:
    part = rows[:1]
    for before, row in pairwise(rows):
        if (times[row] - times[before]).total_seconds() > GAP_S:
            yield part
            part = []
        part.append(row)
    yield part
