"""Make review.html: the photos of an archive on a map and in a list, and what speaks for their positions.

A person accepts, corrects or refuses positions in the page and saves a file that `folio geotag --apply` takes. What the page
knows is gathered here as JSON; `review.js` shows it, `review.html` is how it looks. Pictures are made of the photos that are
most worth a look. When these are decided and applied, the page that is written then has pictures of the next ones.
"""

from collections import Counter
from enum import StrEnum
from importlib.resources import files
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from pipelines.report.answers import distance_m, is_known, positions
from pipelines.report.examples import THUMBNAIL_SIDE, Photos, matched_patches, show_photo
from pipelines.report.map_plot import MAX_DRAWN, review_map
from pipelines.report.offline import as_data, render_offline
from pipelines.report.pictures import Picture, Region, matched_regions
from schemas.decisions import DECISIONS_FORMAT
from schemas.geotags import GeotagStatus

PHOTO_SIDE: Final = 420
"""Long side of the two photos that are compared, in pixels; each is about 35 kB in the page."""

ALTERNATIVES: Final = 3
"""Other places that are offered for a photo."""

DISTINCT_M: Final = 25.0
"""Places nearer than this are the same place; `pipelines.locate` groups candidates by the same distance."""


class Kind(StrEnum):
    """How a photo stands."""

    CONFIDENT = "confident"
    DOUBTFUL = "doubtful"  # something was found, but not surely enough to be given
    UNKNOWN = "unknown"  # nothing was found
    INTERPOLATED = "interpolated"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REFUSED = "refused"


class Row(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One photo, as the page's script reads it. Copies of a photo have no row: they follow it."""

    id: str
    uri: str
    kind: str
    lat: float | None
    lon: float | None
    error_m: float | None
    best_lat: float | None
    best_lon: float | None
    best_error_m: float | None
    known_lat: float | None
    known_lon: float | None
    known_off_m: float | None
    """From the position that the photo itself tells to the one given, or else to the best."""
    probability: float | None
    support: float
    matches: int | None
    reason: str | None
    copies: int


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """Another place that candidates speak for."""

    lat: float
    lon: float
    away_m: float | None
    """From the position; null: there is none."""
    uri: str
    matches: int | None
    picture: Picture | None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What speaks for and against the position of one photo. "The position" is the one given, or else the best one."""

    query: Picture | None
    candidate: Picture | None
    candidate_uri: str
    """Empty: left out of the results; then the two below are null."""
    candidate_away_m: float | None
    """From the position, which is what several candidates agree on."""
    cosine: float | None
    query_regions: list[Region]
    candidate_regions: list[Region]
    alternatives: list[Alternative]


def render_review(
    geotags: pa.Table,
    results: pa.Table,
    coverage: pa.Table | None,
    photos: Photos,
    *,
    facts: dict[str, Any],
    evidence: int,
) -> str:
    """Make the page.

    Args:
        geotags: of the archive, in the schema of geotags.
        results: candidates of its photos.
        coverage: photos of the map, light dots; None: no dots.
        photos: where to read the photos that are shown.
        facts: of the results.
        evidence: photos that are shown with pictures, each about 100 kB.
    """
    rows = gather_rows(geotags)
    shown = rows[:evidence]
    wanted = pa.array([row.id for row in shown], pa.string())
    found = results.filter(pc.is_in(results["query_id"], value_set=wanted))
    lying = geotags.filter(pc.is_in(geotags["query_id"], value_set=wanted)).select(["query_id", "root", "matched_image_id"])
    of = {row["query_id"]: row for row in lying.to_pylist()}
    counts = Counter(row.kind for row in rows)
    return render_offline(
        "review.html",
        {"map": review_map()},
        scripts=[files("pipelines.report").joinpath("review.js").read_text(encoding="utf-8")],
        facts=facts,
        photos=len(rows),
        copies=len(geotags) - len(rows),
        kinds=[(kind.value, counts[kind]) for kind in Kind if counts[kind]],
        shown=len(shown),
        doubtful=counts[Kind.DOUBTFUL],
        data=as_data(
            {
                "format_version": DECISIONS_FORMAT,
                "map_version": facts["map_version"],
                "grid_side": facts["grid_side"],
                "fields": Row.__struct_fields__,
                "rows": rows,
                "coverage": _thinned_coverage(coverage),
                "evidence": {
                    row.id: show_evidence(
                        row,
                        found,
                        photos,
                        root=of[row.id]["root"],
                        matched=of[row.id]["matched_image_id"],
                        grid_side=facts["grid_side"],
                    )
                    for row in shown
                },
            }
        ),
    )


def gather_rows(geotags: pa.Table) -> list[Row]:
    """Say how each photo stands, in the order of what a look is worth; exact copies are counted with the photo they follow."""
    own = geotags.filter(pc.is_null(geotags["duplicate_of"]))
    copies = Counter(geotags["duplicate_of"].drop_null().to_pylist())
    given, best, known = _places(own, ""), _places(own, "best_"), _places(own, "known_")
    there = np.where(np.isfinite(given), given, best)
    off_m = distance_m(known, there)
    columns = ["query_id", "uri", "status", "expected_error_m", "best_error_m", "probability", "support", "matches", "reason"]
    rows = [
        Row(
            id=row["query_id"],
            uri=row["uri"],
            kind=kind_of(row["status"], found=bool(np.isfinite(best[at, 0]))).value,
            lat=_degrees(given[at, 0]),
            lon=_degrees(given[at, 1]),
            error_m=_rounded(row["expected_error_m"], 1),
            best_lat=_degrees(best[at, 0]),
            best_lon=_degrees(best[at, 1]),
            best_error_m=_rounded(row["best_error_m"], 1),
            known_lat=_degrees(known[at, 0]),
            known_lon=_degrees(known[at, 1]),
            known_off_m=_rounded(float(off_m[at]), 1),
            probability=_rounded(row["probability"], 4),
            support=round(row["support"], 4),
            matches=row["matches"],
            reason=row["reason"],
            copies=copies[row["query_id"]],
        )
        for at, row in enumerate(own.select(columns).to_pylist())
    ]
    return sorted(rows, key=worth)


def kind_of(status: str, *, found: bool) -> Kind:
    """How a photo stands, by the status of its geotag and whether a best position was found."""
    if status == GeotagStatus.ANSWERED:
        return Kind.CONFIDENT
    if status == GeotagStatus.UNKNOWN:
        return Kind.DOUBTFUL if found else Kind.UNKNOWN
    return Kind(status)


def worth(row: Row) -> tuple[int, float, str]:
    """Sort photos by what a look at them is worth.

    The doubtful first, from the surest on: most of those are accepted. Then positions far from the one that the photo itself
    tells, the farthest first; then the least sure of the others, what was not found, and what was decided by hand.
    """
    if row.kind == Kind.DOUBTFUL:
        return 0, -sureness(row), row.id
    if row.kind in (Kind.CONFIDENT, Kind.INTERPOLATED):
        off_m = row.known_off_m or 0.0
        contradicted = off_m > max(DISTINCT_M, row.error_m or 0.0)
        return (1, -off_m, row.id) if contradicted else (2, sureness(row), row.id)
    return (3 if row.kind == Kind.UNKNOWN else 4), sureness(row), row.id


def sureness(row: Row) -> float:
    """The probability that its best position is right; where the map has none, the share of the evidence that agrees."""
    return row.support if row.probability is None else row.probability


def show_evidence(row: Row, results: pa.Table, photos: Photos, *, root: str, matched: str | None, grid_side: int) -> Evidence:
    """Gather the pictures, matched regions and other places of one photo.

    Args:
        row: the photo.
        results: candidates of it and of other photos. Where they were left out, it is shown alone.
        photos: where to read them.
        root: where its name starts.
        matched: image id of the candidate that the position rests on; None: the first.
        grid_side: patches along one side of a photo.
    """
    found = results.filter(pc.equal(results["query_id"], row.id)).sort_by("rank")
    candidates = found.select(["image_id", "uri", "root", "lat_deg", "lon_deg", "matches", "cosine"]).to_pylist()
    place = (row.best_lat, row.best_lon) if row.lat is None else (row.lat, row.lon)
    here = np.array([place], np.float64)
    away_m = distance_m(np.repeat(here, len(found), axis=0), positions(found)).round(1).tolist()
    best = next((at for at, candidate in enumerate(candidates) if candidate["image_id"] == matched), 0)
    query = show_photo(photos, row.uri, root, PHOTO_SIDE)
    candidate = _shown(photos, candidates[best], PHOTO_SIDE) if candidates else None
    regions: tuple[list[Region], list[Region]] = ([], [])
    if query and candidate and best == 0:  # patches are stored of the first alone
        regions = matched_regions(matched_patches(found), grid_side, query, candidate)
    return Evidence(
        query=query,
        candidate=candidate,
        candidate_uri=candidates[best]["uri"] if candidates else "",
        candidate_away_m=away_m[best] if candidates else None,
        cosine=candidates[best]["cosine"] if candidates else None,
        query_regions=regions[0],
        candidate_regions=regions[1],
        alternatives=[
            Alternative(
                lat=round(candidates[at]["lat_deg"], 7),
                lon=round(candidates[at]["lon_deg"], 7),
                away_m=away_m[at],
                uri=candidates[at]["uri"],
                matches=candidates[at]["matches"],
                picture=_shown(photos, candidates[at], THUMBNAIL_SIDE),
            )
            for at in distinct_places(np.concatenate([here, positions(found)]))
        ],
    )


def distinct_places(places: Float64[np.ndarray, "n 2"]) -> list[int]:
    """Choose the next places that are neither the first nor one another.

    Args:
        places: rows of lat_deg, lon_deg: the position, NaN for none, then those of the candidates, best first.

    Returns:
        Candidates, 0 is the first of them.
    """
    chosen = [0]
    for at in range(1, len(places)):
        near = distance_m(places[chosen], np.repeat(places[at : at + 1], len(chosen), axis=0))
        if len(chosen) <= ALTERNATIVES and not (near <= DISTINCT_M).any():
            chosen.append(at)
    return [at - 1 for at in chosen[1:]]


def _shown(photos: Photos, candidate: dict[str, Any], long_side: int) -> Picture | None:
    return show_photo(photos, candidate["uri"], candidate["root"], long_side) if candidate["uri"] else None


def _places(geotags: pa.Table, which: str) -> Float64[np.ndarray, "n 2"]:
    """Rows of lat_deg, lon_deg; NaN in both where either is missing."""
    names = [f"{which}lat_deg", f"{which}lon_deg"]
    places = positions(geotags.select(names).rename_columns(["lat_deg", "lon_deg"])).copy()
    places[~is_known(places)] = np.nan
    return places


def _thinned_coverage(coverage: pa.Table | None) -> list[tuple[float, float]]:
    places = np.empty((0, 2)) if coverage is None else positions(coverage)
    kept = np.linspace(0, len(places) - 1, min(len(places), MAX_DRAWN)).round().astype(int)
    return [(lat, lon) for lat, lon in places[kept].round(6).tolist()]


def _degrees(angle: float) -> float | None:
    """To a centimetre."""
    return None if np.isnan(angle) else round(float(angle), 7)


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None or np.isnan(number) else round(number, digits)
