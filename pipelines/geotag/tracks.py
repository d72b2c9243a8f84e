"""GPX tracks ▶ where the photographer was when a photo was taken.

The XML is looked at by defusedxml first: a file with a document type or entities is refused, and so is one larger than any day's
track. What the tracks say is evidence for `pipelines.locate.path`; it is no answer unless it is asked for.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import ParseError

import defusedxml
import defusedxml.ElementTree
import gpxpy
import gpxpy.gpx
import numpy as np
from jaxtyping import Float64

from pipelines.catalog.positions import position_problem
from pipelines.locate.between import Fix, between
from schemas.errors import CatalogError

MOST_BYTES: Final = 32 * 2**20
"""Of a file: a point a second for three days."""

GPS_ERROR_M: Final = 11.0
"""Radius that holds nine of ten points of a handheld receiver: 5 m in each direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Points in runs without an interruption, each in the order of their times."""

    runs: tuple[tuple[Fix, ...], ...]

    def at(self, seconds: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 3"]:
        """Say where somebody was.

        Args:
            seconds: since 1970 in UTC; NaN: not known when.

        Returns:
            Latitude, longitude and the radius that holds nine of ten, of the track that knows it best; NaN where no track has
            points within two minutes around it.
        """
        found = np.full((len(seconds), 3), np.nan)
        for row, when in enumerate(seconds.tolist()):
            fixes = [fix for run in self.runs if run[0].seconds <= when <= run[-1].seconds and (fix := _on_run(run, when))]
            if fixes:
                best = min(fixes, key=lambda fix: fix.error_m)
                found[row] = best.lat_deg, best.lon_deg, best.error_m
        return found

    @property
    def first_s(self) -> float:
        """When the earliest one begins."""
        return min(run[0].seconds for run in self.runs)

    @property
    def last_s(self) -> float:
        """When the latest one ends."""
        return max(run[-1].seconds for run in self.runs)


def read_tracks(files: Sequence[str]) -> Tracks:
    """Read GPX files.

    Raises:
        CatalogError: one cannot be read, is larger than `MOST_BYTES`, has entities, or has no points with a time and a position.
    """
    return Tracks(runs=tuple(run for file in files for run in _runs_of(file)))


def _runs_of(file: str) -> list[tuple[Fix, ...]]:
    text = _checked(file)
    try:
        gpx = gpxpy.parse(text)
    except (gpxpy.gpx.GPXException, ValueError, RecursionError) as error:
        raise _refused(file, f"no GPX ({error})") from error
    runs = [_run(segment.points) for track in gpx.tracks for segment in track.segments]
    if not any(runs):
        raise _refused(file, "no track point with a time and a position")
    return [run for run in runs if run]


def _checked(file: str) -> str:
    """Read a file and see that its XML is harmless."""
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _refused(file, f"more than {MOST_BYTES:,} bytes")
        defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
        return data.decode("utf-8-sig")
    except (defusedxml.DefusedXmlException, ParseError, OSError, ValueError, RecursionError) as error:
        raise _refused(file, str(error)) from error


def _refused(file: str, found: str) -> CatalogError:
    return CatalogError(
        f"{file}: needed a GPX track in UTF-8, found {found}. No photo was answered. Leave it out, or export it again as GPX 1.1"
    )


def _run(points: Sequence[gpxpy.gpx.GPXTrackPoint]) -> tuple[Fix, ...]:
    fixes = {
        (seconds := _seconds(point.time)): Fix(
            seconds=seconds, lat_deg=float(point.latitude), lon_deg=float(point.longitude), error_m=GPS_ERROR_M
        )
        for point in points
        if point.time is not None and position_problem(point.latitude, point.longitude) is None
    }
    return tuple(fixes[seconds] for seconds in sorted(fixes))


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _on_run(run: tuple[Fix, ...], when: float) -> Fix | None:
    after = bisect_right(run, when, key=lambda fix: fix.seconds)
    before = max(after - 1, 0)
    return between(run[before], run[min(after, len(run) - 1)], when)
