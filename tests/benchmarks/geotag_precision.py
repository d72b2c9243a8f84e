"""Whether geotags keep their promise, photo by photo and along paths: `make bench-precision`. Not a test.

For each set the product builds a map and geotags an archive whose positions are known, as `folio build` and `folio geotag` do.
What the search found is then decided on for each promise in two ways: each photo alone, and photos of a sequence together.

| set | map | archive |
|---|---|---|
| street-lund | manifest's split of a walk | every 5th photo of it, without times: nothing can be decided together |
| sample-city | the survey's photos | photos of later visits, here and there: neighbours in time say little of each other |
| walks-1, walks-2 | the sample city of seeds 1 and 2 | four `walks` of 60 photos; each ends in a street without photos |
| town-1, 2, 3 | sample cities with 400 stops | four walks of 120 |
| mapillary | 4 of 5 frames of five drives | every 5th frame; **places and times are made up**: 15 m and 1 s a frame |

An answer is right within 25 m. What `pipelines.locate.path` does was chosen on walks-1, walks-2 and mapillary; no
constant was fitted to the towns.

Prints a Markdown table and writes `precision.json` and `risk-coverage.html`: how many answers are right when only the surest are
given, alone and together. Photos and maps are kept below `out/bench/precision`.

    python -m tests.benchmarks.geotag_precision --sets walks-1,street-lund
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import Range1d
from bokeh.plotting import figure
from bokeh.resources import INLINE

from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import read_table, read_table_facts
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import plan_sample_city, write_photos
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from pipelines.geotag.together import ALONE, Around, Decision, decide_together
from pipelines.locate.decide import needed_probability
from pipelines.locate.fitting import risk_coverage
from pipelines.locate.path import metres
from pipelines.locate.position import PositionConfig
from pipelines.query.answering import Answers
from schemas.calibration import decode_calibration
from schemas.geotags import GeotagStatus
from tests.benchmarks.calibrated import PLACES, Placed
from tests.benchmarks.recall_sets import RADIUS_M, WORK, MissingPhotosError, load_set
from tests.benchmarks.walks import walks_in

SETTINGS: Final = Settings(threads=1)
FOLDER: Final = WORK / "precision"
PROMISES: Final = (0.9, 0.95, 0.99)
WAYS: Final = {"alone": ALONE, "together": Around()}
COLOURS: Final = {"alone": "#b4532a", "together": "#3b5b92"}

# ----------------------------------------------------------------------------------------------------------- the sets


class Asked(NamedTuple):
    """A row of the table that an archive is read from; what is None is left to the photo's EXIF."""

    uri: str
    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: str | None = None
    sequence_id: str | None = None


class PrecisionSet(NamedTuple):
    """A map's photos and an archive whose positions are known."""

    database: list[Placed]
    queries: list[Asked]


def _lund() -> PrecisionSet:
    found = load_set("street-lund")
    database, queries = (PLACES["street-lund"](paths) for paths in (found.database, found.queries))
    return PrecisionSet(database, [Asked(one.uri, one.lat_deg, one.lon_deg) for one in queries])


def _city() -> PrecisionSet:
    found = load_set("sample-city")
    return PrecisionSet(PLACES["sample-city"](found.database), [Asked(str(path)) for path in found.queries])


def _walks(seed: int, places: int, photos_each: int) -> Callable[[], PrecisionSet]:
    def make() -> PrecisionSet:
        city = walks_in(plan_sample_city(seed=seed, places=places), photos_each=photos_each)
        folder = FOLDER / f"walks-{seed}-{places}"
        if not (folder / "complete").exists():
            for _ in write_photos(city, folder):
                pass
            (folder / "complete").touch()
        return PrecisionSet(
            [Placed(str(folder / photo.name), None, None, None) for photo in city.database],
            [Asked(str(folder / photo.name)) for photo in city.queries],
        )

    return make


def _drives() -> PrecisionSet:
    found = load_set("mapillary")
    placed = PLACES["mapillary"]([*found.database, *found.queries])
    drives = sorted({str(one.sequence_id) for one in placed})

    def when(one: Placed) -> str:
        begin = datetime(2026, 6, 1, 8, tzinfo=UTC) + timedelta(days=drives.index(str(one.sequence_id)))
        return (begin + timedelta(seconds=int(Path(one.uri).stem))).isoformat()

    queries = placed[len(found.database) :]
    return PrecisionSet(
        placed[: len(found.database)],
        [Asked(one.uri, one.lat_deg, one.lon_deg, when(one), one.sequence_id) for one in queries],
    )


SETS: Final[Mapping[str, Callable[[], PrecisionSet]]] = {
    "street-lund": _lund,
    "sample-city": _city,
    "walks-1": _walks(1, 90, 60),
    "walks-2": _walks(2, 90, 60),
    "mapillary": _drives,
    "town-1": _walks(1, 400, 120),
    "town-2": _walks(2, 400, 120),
    "town-3": _walks(3, 400, 120),
}
DEFAULT_SETS: Final = "street-lund,sample-city,walks-1,mapillary,town-1,town-3"

# ---------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one way to decide gave at one promise."""

    set: str
    promise: float
    proven: bool
    """Whether the map could prove the promise on its own photos."""
    way: str
    photos: int
    answered: int
    right: int
    median_error_m: float
    within_expected: int
    """Answers no further off than was expected."""
    interpolated: int
    interpolated_right: int
    interpolated_within_expected: int
    decided_per_s: float
    """Photos; search and encoding left out."""


def searched(name: str) -> tuple[Answers, float]:
    """Build the map of a set and geotag its archive, as a user does.

    Returns:
        What was found, and photos a second.
    """
    found, folder = SETS[name](), FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in (("database", found.database), ("queries", found.queries)):
        with (folder / f"{table}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0]._fields)
            writer.writerows(rows)
    place, out = str(folder / "map"), str(folder / "geotags")
    run_build(BuildRequest(map_url=place, photos=(str(folder / "database.csv"),), device="cpu"), SETTINGS)
    summary = run_geotag(GeotagRequest(map_url=place, photos=(str(folder / "queries.csv"),), out=out, device="cpu"), SETTINGS)
    assert not summary.rejected, summary.lines()
    return stored_answers(out), summary.photos_per_second


def stored_answers(folder: str) -> Answers:
    """Read what a search has found."""
    storage = open_storage(folder, SETTINGS)
    results, facts = read_table_facts(storage, "results.parquet", kind="results")
    return Answers(
        queries=read_table(storage, "queries.parquet", kind="images"),
        results=results,
        rejects=read_table(storage, "rejects.parquet", kind="rejects"),
        coverage=read_table(storage, "coverage.parquet", kind="coverage"),
        versions=[facts["map_version"]],
        facts=facts,
        calibration=decode_calibration(facts["calibration"]),
    )


def measure(name: str, answers: Answers, promise: float, way: str) -> Row:
    """Decide on an archive, and compare with the truth."""
    confidence = answers.calibration.confidence if answers.calibration else None
    begin = time.perf_counter()
    decisions, _ = decide_together(answers, PositionConfig(precision=promise), WAYS[way])
    seconds = time.perf_counter() - begin
    errors = {status: _errors(decisions, status) for status in (GeotagStatus.ANSWERED, GeotagStatus.INTERPOLATED)}
    answered, interpolated = errors.values()
    return Row(
        set=name,
        promise=promise,
        proven=confidence is not None and needed_probability(confidence, promise) is not None,
        way=way,
        photos=len(decisions),
        answered=len(answered),
        right=int((answered[:, 0] <= RADIUS_M).sum()),
        median_error_m=round(float(np.median(answered[:, 0])), 2) if len(answered) else float("nan"),
        within_expected=int((answered[:, 0] <= answered[:, 1]).sum()),
        interpolated=len(interpolated),
        interpolated_right=int((interpolated[:, 0] <= RADIUS_M).sum()),
        interpolated_within_expected=int((interpolated[:, 0] <= interpolated[:, 1]).sum()),
        decided_per_s=round(len(decisions) / seconds, 1),
    )


def _errors(decisions: Sequence[Decision], status: GeotagStatus) -> np.ndarray:
    """(n, 2): how far off the photos of a status are, and how far off they were expected to be."""
    ours = [each for each in decisions if each.status == status]
    return np.array([(_off_m(each, best=False), each.location.expected_error_m) for each in ours], float).reshape(-1, 2)


def _off_m(decision: Decision, *, best: bool) -> float:
    at, known = decision.location, decision.row
    lat, lon = (at.best_lat_deg, at.best_lon_deg) if best else (at.lat_deg, at.lon_deg)
    return float(metres(*np.array([lat, lon, known["lat_deg"], known["lon_deg"]], np.float64)))


def curve(answers: Answers, way: str) -> list[tuple[float, float, float]]:
    """Least probability, share of photos answered and share of right ones; empty where the map is not calibrated."""
    decisions, _ = decide_together(answers, PositionConfig(), WAYS[way])
    likely = np.array([each.location.probability for each in decisions], np.float64)
    if np.isnan(likely).any():
        return []
    return risk_coverage(likely, np.array([_off_m(each, best=True) <= RADIUS_M for each in decisions]))


# ---------------------------------------------------------------------------------------------------------- reporting


def table(rows: Sequence[Row]) -> str:
    """Write what came of it as a Markdown table."""
    lines = [
        "| set | promise | way | answered | right | median error | within the expected error | interpolated: right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        promise = f"{row.promise:.0%}" if row.proven else f"{row.promise:.0%}, not proven"
        between = f"{row.interpolated}: {_share(row.interpolated_right, row.interpolated)}" if row.interpolated else ""
        lines.append(
            f"| {row.set} | {promise} | {row.way} | {row.answered} of {row.photos}, {_share(row.answered, row.photos)} | "
            f"{_share(row.right, row.answered)} | {row.median_error_m:.1f} m | {_share(row.within_expected, row.answered)} | "
            f"{between} |"
        )
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def chart(name: str, curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> figure:
    """Draw how many answers are right when only the surest are given."""
    plot = figure(
        title=name,
        height=320,
        width=560,
        x_axis_label="photos answered, the surest first, per cent",
        y_axis_label="right answers, per cent",
        x_range=Range1d(start=0, end=102),
        y_range=Range1d(start=60, end=100.5),
    )
    for way, points in curves.items():
        _, x, y = 100 * np.array(points).T
        plot.line(x, y, color=COLOURS[way], line_width=2, legend_label=way)
        plot.scatter(x, y, color=COLOURS[way], size=6, legend_label=way)
    plot.legend.location = "bottom_left"
    return plot


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description="Whether geotags keep their promise, alone and along paths.")
    parser.add_argument("--sets", default=DEFAULT_SETS, help=f"of {', '.join(SETS)}")
    rows, charts = [], []
    for name in parser.parse_args().sets.split(","):
        try:
            answers, photos_per_s = searched(name)
        except MissingPhotosError as missing:
            print(f"left out: {missing}")
            continue
        ours = [measure(name, answers, promise, way) for promise in PROMISES for way in WAYS]
        print(
            f"{name}: {photos_per_s:.1f} photos/s in all, {ours[-1].decided_per_s:,.0f} photos/s decided on together", flush=True
        )
        rows += ours
        if all(curves := {way: curve(answers, way) for way in WAYS}.values()):
            charts.append(chart(name, dict(zip(WAYS, curves, strict=True))))
    print(table(rows))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "precision.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if charts:
        (FOLDER / "risk-coverage.html").write_text(file_html(column(*charts), INLINE, "Risk and coverage"))


if __name__ == "__main__":
    main()
