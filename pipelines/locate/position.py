"""results ▶ position: where a photo was taken, how far off that may be, or that we do not know.

The answer is not the position of the first candidate but what the re-ranked candidates agree on: each weighs by its score
relative to the best one, the heaviest group within `agree_within_m` wins, and its weighted mean is the position. Whether it is
given is decided in `decide`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64
from pyproj import Geod

WGS84 = Geod(ellps="WGS84")

FOREIGN_SCORES: Final[Mapping[str, float]] = MappingProxyType({"folio-small": 0.08})
"""By recipe: the S'_l below which a photo shows nothing that the map knows. Nothing is known of other networks.

Chosen for `folio-small` on 178 photos of anything else than a street (cameras' test files, asked of a street in Lund), whose best
candidates have at most 0.077, also since D'_l orders them; of 1,646 photos whose best candidate was right before that (made-up
towns and cities, Lund, drives) 1,644 have more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionConfig:
    """When candidates agree, and how much agreement an answer needs."""

    voters: int = 10
    """Candidates that are asked, from the best."""

    sharpness: float = 5.0
    """A candidate with half the best score weighs 2 ** -sharpness. Higher: the best candidate decides more alone."""

    agree_within_m: float = 25.0
    """Candidates this near to one another speak for the same place. The radius of the field's recall@k."""

    min_support: float = 0.6
    """Share of the weight that must agree; below it the answer is "don't know". Higher: fewer and surer answers."""

    min_matches: int = 4
    """Matched local features the best candidate must have; below it the answer is "don't know"."""

    min_local_score: float = 0.0
    """S'_l that the best candidate must have; below it the answer is "don't know". What a network asks for: `FOREIGN_SCORES`."""

    precision: float = 0.95
    """Promised share of right answers, where the map is calibrated; the three above hold where it is not."""

    gps_error_m: float = 5.0
    """How far off the positions of the map's own photos are taken to be, as a standard deviation in each direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """What one re-ranked candidate says."""

    lat_deg: float
    lon_deg: float
    score: float
    matches: int
    local_score: float = 0.0
    """S'_l: for probabilities, and to tell a photo of another place altogether; the order is by D'_l."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """The candidates that agree on the best supported place."""

    agrees: Bool[np.ndarray, " voters"]
    support: float
    """Share of the weight, 0 to 1."""
    lat_deg: float
    lon_deg: float
    radius_m: float
    """Meant to hold nine of ten answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a photo was taken, or why that is not known."""

    lat_deg: float | None
    lon_deg: float | None
    expected_error_m: float | None
    """Radius meant to hold nine of ten answers."""
    support: float
    """Share of the weight that agrees, 0 to 1."""
    probability: float | None
    """That the best supported place, given or not, is within 25 m of the truth; None: the map is not calibrated."""
    reason: str | None
    """Why not known; None for an answer."""
    best_lat_deg: float | None = None
    """The best supported place, given or not; None: the photo has nothing in common with the map."""
    best_lon_deg: float | None = None
    best_error_m: float | None = None
    """Radius meant to hold nine of ten such places."""


def best_group(votes: Sequence[Vote], config: PositionConfig) -> Group | None:
    """Find the place that most of the weight speaks for.

    Args:
        votes: the re-ranked candidates, best first; may be empty.
        config: what counts as agreement.

    Returns:
        None: no candidate has anything in common with the photo.
    """
    return next(iter(groups_of(votes, config, most=1)), None)


def groups_of(votes: Sequence[Vote], config: PositionConfig, *, most: int) -> list[Group]:
    """Find the places that the candidates speak for, the best supported first; no candidate speaks for two of them.

    Args:
        votes: the re-ranked candidates, best first; may be empty.
        config: what counts as agreement.
        most: places, at most.
    """
    asked = votes[: config.voters]
    if not asked or asked[0].score <= 0:
        return []
    weights = np.maximum([vote.score / asked[0].score for vote in asked], 0.0) ** config.sharpness
    east_m, north_m = _local_metres(asked)
    near = np.hypot(east_m[:, None] - east_m, north_m[:, None] - north_m) <= config.agree_within_m
    left = weights > 0
    found: list[Group] = []
    while left.any() and len(found) < most:
        support = np.where(left, (near * (weights * left)).sum(axis=1) / weights.sum(), 0.0)
        agrees = near[int(support.argmax())] & left
        found.append(_group(asked[0], east_m, north_m, weights, agrees, float(support.max()), config))
        left &= ~agrees
    return found


def distances_m(
    lat_deg: Float64[np.ndarray, " n"],
    lon_deg: Float64[np.ndarray, " n"],
    other_lat_deg: Float64[np.ndarray, " n"],
    other_lon_deg: Float64[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    """Measure from point to point on the WGS84 ellipsoid, in metres."""
    return np.asarray(WGS84.inv(lon_deg, lat_deg, other_lon_deg, other_lat_deg)[2], np.float64)


def _local_metres(votes: Sequence[Vote]) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """East and north of the first candidate, true to distance and direction from it (azimuthal equidistant)."""
    count = len(votes)
    azimuth, _, distance = WGS84.inv(
        np.full(count, votes[0].lon_deg),
        np.full(count, votes[0].lat_deg),
        np.array([vote.lon_deg for vote in votes]),
        np.array([vote.lat_deg for vote in votes]),
    )
    radians = np.radians(azimuth)
    return distance * np.sin(radians), distance * np.cos(radians)


def _group(
    origin: Vote,
    east_m: Float64[np.ndarray, " n"],
    north_m: Float64[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
    agrees: Bool[np.ndarray, " n"],
    support: float,
    config: PositionConfig,
) -> Group:
    its = weights[agrees]
    east, north = np.average(east_m[agrees], weights=its), np.average(north_m[agrees], weights=its)
    variance = np.average((east_m[agrees] - east) ** 2 + (north_m[agrees] - north) ** 2, weights=its) + 2 * config.gps_error_m**2
    lon_deg, lat_deg, _ = WGS84.fwd(origin.lon_deg, origin.lat_deg, np.degrees(np.arctan2(east, north)), np.hypot(east, north))
    return Group(
        agrees=agrees,
        support=support,
        lat_deg=float(lat_deg),
        lon_deg=float(lon_deg),
        # Nine tenths of a round normal distribution lie within 1.52 root-mean-square radii.
        radius_m=float(1.52 * np.sqrt(variance) / support),
    )
