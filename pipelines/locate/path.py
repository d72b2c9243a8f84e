"""Photos taken one after the other ▶ how likely each of their candidate places is, given that nobody flies from one to the next.

Alone, a photo has candidate places, each with a probability, and the chance that it was taken at none of them. Two photos of a
path are rarely far apart: places that agree with it gain by as much as agreement is rare among wrong places, and places that
would take an impossible speed are as good as ruled out. All paths are summed over (forward and backward, as for a hidden Markov
model; the most likely path alone, as by Viterbi, would not say how likely it is), in time linear in the number of photos. Photos
at none of their candidate places are passed over: the next ones within `WINDOW` still prove each other.

How rare agreement is among wrong places differs from map to map: in a town where streets look alike it is rare, along one road
where a wrong answer is the next bend it is the rule. So it is learnt from the photos themselves: where a photo is sure of its
place, its next best place is a wrong one, and how far off those are says how often wrong places would have fitted (`Lookalikes`).

Photos of one moment, and places that rest on the same photo of the map, prove nothing to each other: they are wrong together.

Letters: n photos, K places of each, s sure photos, m photos of the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.neighbors import BallTree

from pipelines.locate.fitting import SURENESS
from pipelines.locate.holding_back import EARTH_M, RADIUS_M

WINDOW: Final = 4
"""Photos ahead that a photo's place is compared with, as long as those in between are at no known place."""

FASTER: Final = 0.1
"""Share of the steps between photos that are quicker than the pace; and of tracks that are further off than they say."""

IMPOSSIBLE: Final = 1e-6
"""What is left of a path with an impossible step."""

BURST_S: Final = 3.0
"""Photos no further apart in time show the same; what makes one wrong makes the other wrong."""

CLOCK_S: Final = 2.0
"""Times are told to the second, and cut off or rounded."""

SLACK_M: Final = 50.0
"""Two right positions are up to this much nearer or further than the photos were."""

SLOWEST_MPS: Final = 1.5
"""A pace is not taken to be slower than a walk, since who stands still may walk on."""

FEWEST_STEPS: Final = 5
"""Steps between sure photos that tell a pace; with fewer every speed is as likely, up to the limit."""

FEWEST_SURE: Final = 20
"""Sure photos that tell how far off wrong places are; with fewer nothing is proven by agreement."""

FAR_OFF: Final = 4.0
"""Times further from a track than it may be, from which on one of the two is wrong."""

SUREST: Final = 0.999
"""No photo alone is surer than this."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Path:
    """Photos in the order they were taken."""

    seconds: Float64[np.ndarray, " n"]
    lat_deg: Float64[np.ndarray, "n K"]
    lon_deg: Float64[np.ndarray, "n K"]
    prior: Float64[np.ndarray, "n K"]
    """How likely each place is by the photo alone; 0 where there is none. A row sums to less than 1."""
    match: Int64[np.ndarray, "n K"]
    """Number of the map's photo that each place rests on most."""
    sure: Bool[np.ndarray, " n"]
    """Whether the first place is an answer already."""
    track: Float64[np.ndarray, "n 3"]
    """Where a track says the photo was taken: latitude, longitude, and the radius that holds nine of ten; NaN: unknown."""


class Reach:
    """How many of a map's photos stand within a distance of a place.

    Args:
        lat_deg: of the map's photos, or of a part of them that stands for all.
        lon_deg: the same.
    """

    def __init__(self, lat_deg: Float64[np.ndarray, " m"], lon_deg: Float64[np.ndarray, " m"]) -> None:
        self._photos = len(lat_deg)
        self._tree = BallTree(np.radians(np.stack([lat_deg, lon_deg], axis=1)), metric="haversine") if self._photos else None

    def share(
        self, lat_deg: Float64[np.ndarray, " n"], lon_deg: Float64[np.ndarray, " n"], within_m: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Count the photos within a distance of each place, as a share of all; of a map without photos all are."""
        if self._tree is None or not len(lat_deg):
            return np.ones(len(lat_deg))
        points = np.radians(np.stack([lat_deg, lon_deg], axis=1))
        found: Int64[np.ndarray, " n"] = self._tree.query_radius(points, within_m / EARTH_M, count_only=True)
        return found / self._photos


class Lookalikes:
    """How far off wrong places are, learnt from the next best places of photos that are sure of theirs.

    Args:
        paths: all there are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        apart = [np.empty(0)]
        for path in paths:
            if path.prior.shape[1] > 1:
                rows = np.flatnonzero(path.sure & (path.prior[:, 1] > 0))
                lat, lon = path.lat_deg[rows], path.lon_deg[rows]
                apart.append(metres(lat[:, 0], lon[:, 0], lat[:, 1], lon[:, 1]))
        self._apart_m: Float64[np.ndarray, " s"] = np.sort(np.concatenate(apart))

    @property
    def photos(self) -> int:
        """Sure photos that this was learnt from; fewer than `FEWEST_SURE` prove nothing."""
        return len(self._apart_m)

    def share(self, within_m: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        """Say which share of the wrong places lies within a distance of the right one, at the upper end of its error."""
        found = len(self._apart_m)
        if found < FEWEST_SURE:
            return np.ones_like(within_m)
        share = np.searchsorted(self._apart_m, within_m, side="right") / found
        spread = SURENESS * np.sqrt(share * (1 - share) / found + SURENESS**2 / (4 * found**2))
        return (share + SURENESS**2 / (2 * found) + spread) / (1 + SURENESS**2 / found)


def probabilities(path: Path, reach: Reach, lookalikes: Lookalikes, *, max_speed_mps: float) -> Float64[np.ndarray, "n K"]:
    """Say how likely each place is, given all photos of a path and their tracks.

    Args:
        path: with at least one photo.
        reach: of the map.
        lookalikes: of all paths.
        max_speed_mps: nobody is quicker.
    """
    none = np.maximum(1 - path.prior.sum(axis=1, keepdims=True), 1 - SUREST)
    fits, most = _on_track(path, reach, lookalikes)
    with np.errstate(divide="ignore"):
        odds = np.log(path.prior * fits / none)  # against no known place
    links = _links(path, reach, lookalikes, max_speed_mps)
    ahead = _summed(odds, links)
    back = _summed(odds[::-1], [np.swapaxes(link, 1, 2)[::-1] for link in links])[::-1]
    everything = np.logaddexp.reduce(np.append(ahead.ravel(), 0.0))
    joint = np.exp(ahead + back - np.where(np.isfinite(odds), odds, 0.0) - everything)
    # What a wrong place would have fitted just as well is not proven, however many photos agree.
    bound = path.prior / np.maximum(1 - path.prior, 1 - SUREST) * most[:, None]
    return np.minimum(joint, bound / (1 + bound))  # type: ignore[no-any-return]


def pace_mps(path: Path, max_speed_mps: float) -> float:
    """Say how quick somebody was: twice what nine of ten steps between sure photos stay below; of too few steps, the limit."""
    rows = np.flatnonzero(path.sure)
    if len(rows) <= FEWEST_STEPS:
        return max_speed_mps
    lat, lon = path.lat_deg[rows, 0], path.lon_deg[rows, 0]
    speeds = metres(lat[:-1], lon[:-1], lat[1:], lon[1:]) / (np.diff(path.seconds[rows]) + CLOCK_S)
    return float(np.clip(2 * np.quantile(speeds, 0.9), SLOWEST_MPS, max_speed_mps))


def reachable_m(seconds: Float64[np.ndarray, "..."], speed_mps: float) -> Float64[np.ndarray, "..."]:
    """Say how far apart two positions may be, told by photos taken so many seconds apart."""
    return SLACK_M + speed_mps * (seconds + CLOCK_S)


def metres(
    lat_deg: Float64[np.ndarray, "..."],
    lon_deg: Float64[np.ndarray, "..."],
    other_lat_deg: Float64[np.ndarray, "..."],
    other_lon_deg: Float64[np.ndarray, "..."],
) -> Float64[np.ndarray, "..."]:
    """Measure on a sphere, where half a per cent is enough; arrays are broadcast."""
    lat, lon, other_lat, other_lon = (np.radians(each) for each in (lat_deg, lon_deg, other_lat_deg, other_lon_deg))
    half = np.sin((other_lat - lat) / 2) ** 2 + np.cos(lat) * np.cos(other_lat) * np.sin((other_lon - lon) / 2) ** 2
    return 2 * EARTH_M * np.arcsin(np.sqrt(np.minimum(half, 1.0)))  # type: ignore[no-any-return]


def _on_track(path: Path, reach: Reach, lookalikes: Lookalikes) -> tuple[Float64[np.ndarray, "n K"], Float64[np.ndarray, " n"]]:
    """Say what each place gains by the track, and by how much the odds of a photo's places may grow in all."""
    fits = np.ones(path.prior.shape)
    most = np.full(len(fits), float(1 / lookalikes.share(np.array(SLACK_M))))
    rows = np.flatnonzero(np.isfinite(path.track[:, 0]))
    if len(rows):
        lat, lon, error_m = path.track[rows].T
        near = RADIUS_M + error_m
        rare = np.maximum(reach.share(lat, lon, near), lookalikes.share(near))
        apart = metres(path.lat_deg[rows], path.lon_deg[rows], lat[:, None], lon[:, None])
        gain = np.where(apart <= near[:, None], ((1 - FASTER) / rare)[:, None], 0.0) + FASTER
        fits[rows] = np.where(apart <= FAR_OFF * near[:, None], gain, IMPOSSIBLE)
        most[rows] = np.maximum(most[rows], 1 / rare)
    return fits, most


def _links(path: Path, reach: Reach, lookalikes: Lookalikes, max_speed_mps: float) -> list[Float64[np.ndarray, "l K K"]]:
    """For the next photo, the one after it and so on: logarithms of what each pair of places gains by being neighbours."""
    pace = pace_mps(path, max_speed_mps)
    links = []
    for step in range(1, min(WINDOW, len(path.seconds) - 1) + 1):
        here, there = slice(None, -step), slice(step, None)
        between_s = path.seconds[there] - path.seconds[here]
        apart = metres(
            path.lat_deg[here, :, None], path.lon_deg[here, :, None], path.lat_deg[there, None], path.lon_deg[there, None]
        )
        gain = np.full(apart.shape, IMPOSSIBLE)
        for speed, likely in ((pace, 1 - FASTER), (max_speed_mps, FASTER)):
            within = reachable_m(between_s, speed)
            chance = np.maximum(_chance(path, reach, here, within)[:, :, None], _chance(path, reach, there, within)[:, None])
            rare = np.maximum(chance, lookalikes.share(within)[:, None, None])
            gain += np.where(apart <= within[:, None, None], likely / rare, 0.0)
        same = (path.match[here, :, None] == path.match[there, None]) | (between_s <= BURST_S)[:, None, None]
        links.append(np.log(np.where(same, np.minimum(gain, 1.0), gain)))
    return links


def _chance(path: Path, reach: Reach, rows: slice, within_m: Float64[np.ndarray, " l"]) -> Float64[np.ndarray, "l K"]:
    lat, lon = path.lat_deg[rows], path.lon_deg[rows]
    share = np.ones(lat.shape)
    known = path.prior[rows] > 0
    share[known] = reach.share(lat[known], lon[known], np.broadcast_to(within_m[:, None], lat.shape)[known])
    return share


def _summed(odds: Float64[np.ndarray, "n K"], links: list[Float64[np.ndarray, "l K K"]]) -> Float64[np.ndarray, "n K"]:
    """Sum all paths up to each photo and place, in logarithms."""
    total = np.full(odds.shape, -np.inf)
    before = 0.0  # paths whose last known place lies before the window, and the one without any
    for row in range(len(odds)):
        if row > WINDOW:
            before = float(np.logaddexp(before, np.logaddexp.reduce(total[row - WINDOW - 1])))
        parts = [np.full(odds.shape[1], before)]
        parts += [
            np.logaddexp.reduce(total[row - step][:, None] + links[step - 1][row - step], axis=0)
            for step in range(1, min(WINDOW, row) + 1)
        ]
        total[row] = odds[row] + np.logaddexp.reduce(parts, axis=0)
    return total
