"""Some queries beside what was found for them: good ones, lucky ones, mistakes and refusals.

The choice depends on nothing but the answers. `page` shows it.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from pipelines.report.answers import Answers, Verdict, distance_m, positions
from pipelines.report.pictures import Picture, Region, make_picture, matched_regions

KINDS: Final = (
    ("Right, on strong evidence", Verdict.RIGHT, -1),
    ("Right, on thin evidence", Verdict.RIGHT, +1),
    ("Wrong, the most convinced first", Verdict.WRONG, -1),
    ("Don’t know", Verdict.UNKNOWN, -1),
    ("Answered, but the truth is not known", Verdict.UNCHECKED, -1),
)
"""Heading, verdict, and whether many (-1) or few (+1) matches come first."""

PHOTO_SIDE: Final = 480
"""Long side of an example's two photos in pixels; each is about 40 kB."""

THUMBNAIL_SIDE: Final = 160
"""Long side of the further candidates; each is about 6 kB."""

CANDIDATES: Final = 5
"""Candidates shown of a query, the best one large."""


class Photos(Protocol):
    """Where photos come from."""

    def read(self, uri: str, root: str, *, min_side: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """Decode a photo, no smaller than `min_side` on either side; None: it cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One photo of the map that was found for a query."""

    rank: int
    uri: str
    picture: Picture | None
    cosine: float
    matches: int | None
    distance_m: float
    """To where the query was taken; NaN where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One query and what was found for it."""

    uri: str
    picture: Picture | None
    verdict: Verdict
    error_m: float
    expected_error_m: float
    reason: str | None
    candidates: list[Candidate]
    regions: tuple[list[Region], list[Region]]
    """Matched patches on the query and on the best candidate; empty where a photo cannot be read."""
    pairs: int
    """Matched pairs that are drawn."""


def choose_examples(answers: Answers, count: int) -> list[tuple[str, list[int]]]:
    """Pick up to `count` queries, in turn from each kind there is.

    Returns:
        Heading and rows of `answers` of each kind, in the order of `KINDS`, kinds without any left out. No row stands twice.
    """
    chosen: dict[int, int] = {}  # row: kind
    for turn in zip_longest(*(_ranked(answers, verdict, sign) for _, verdict, sign in KINDS)):
        for kind, row in enumerate(turn):
            if row is not None and len(chosen) < count:
                chosen.setdefault(row, kind)
    groups = [(heading, [row for row, of in chosen.items() if of == kind]) for kind, (heading, _, _) in enumerate(KINDS)]
    return [(heading, rows) for heading, rows in groups if rows]


def show_example(answers: Answers, row: int, results: pa.Table, grid_side: int, photos: Photos) -> Example:
    """Gather the photos, candidates and matched regions of one query.

    Args:
        answers: of all queries.
        row: of the query to show.
        results: candidates of all queries.
        grid_side: patches along one side of a photo.
        photos: where to read them.
    """
    found = results.filter(pc.equal(results["query_id"], answers.query_id[row])).sort_by("rank").slice(0, CANDIDATES)
    truth = np.repeat(answers.truth[row : row + 1], len(found), axis=0)
    distances = distance_m(truth, positions(found))
    candidates = [_candidate(entry, away, photos) for entry, away in zip(found.to_pylist(), distances, strict=True)]
    picture = show_photo(photos, answers.uri[row], answers.root[row], PHOTO_SIDE)
    patches = matched_patches(found)
    return Example(
        uri=answers.uri[row],
        picture=picture,
        verdict=answers.verdict[row],
        error_m=float(answers.error_m[row]),
        expected_error_m=float(answers.expected_error_m[row]),
        reason=answers.reason[row],
        candidates=candidates,
        regions=_regions(patches, grid_side, picture, candidates),
        pairs=len(patches),
    )


def show_photo(photos: Photos, uri: str, root: str, long_side: int) -> Picture | None:
    """Make a picture of a photo; None: it cannot be read."""
    pixels = photos.read(uri, root, min_side=long_side)
    return None if pixels is None else make_picture(pixels, long_side=long_side)


def matched_patches(found: pa.Table) -> UInt8[np.ndarray, "pairs 4"]:
    """Read the matched patches of the first candidate of one query; none where nothing was found."""
    flat = found["matched_patches"][0].as_py() if len(found) else None
    return np.array(flat or [], np.uint8).reshape(-1, 4)


def _ranked(answers: Answers, verdict: Verdict, sign: int) -> list[int]:
    """Rows of this verdict by number of matches; equal ones by id, so that the order never depends on chance."""
    matches = np.nan_to_num(answers.matches)
    rows = [row for row, of in enumerate(answers.verdict) if of == verdict]
    return sorted(rows, key=lambda row: (sign * matches[row], answers.query_id[row]))


def _candidate(entry: dict[str, Any], away_m: float, photos: Photos) -> Candidate:
    return Candidate(
        rank=entry["rank"],
        uri=entry["uri"],
        picture=show_photo(photos, entry["uri"], entry["root"], PHOTO_SIDE if entry["rank"] == 1 else THUMBNAIL_SIDE),
        cosine=entry["cosine"],
        matches=entry["matches"],
        distance_m=away_m,
    )


def _regions(
    patches: UInt8[np.ndarray, "pairs 4"], grid_side: int, query: Picture | None, candidates: list[Candidate]
) -> tuple[list[Region], list[Region]]:
    best = candidates[0].picture if candidates else None
    return ([], []) if query is None or best is None else matched_regions(patches, grid_side, query, best)
