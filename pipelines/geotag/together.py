"""results ▶ geotags: decide on the photos of an archive together, where they were taken one after the other or along a track.

Each photo is decided on alone first. Then, sequence by sequence, a path through the candidate places says how likely each is
(`pipelines.locate.path`), and

- a photo that is not sure alone is answered if the path makes its place as likely as was promised: each such answer for itself,
  so that the answers are no less often right than those given without;
- a sure answer that the path makes clearly less likely, and less likely than was promised, is refused;
- what is still unknown, between two answers near in time and space, gets the position between them, marked as interpolated.

Where most sure answers of a sequence cannot all be true, it is the times that are wrong: each photo stands alone then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from pipelines.geotag.regions import WITHHELD, Region
from pipelines.geotag.tracks import Tracks
from pipelines.locate.between import Fix, between
from pipelines.locate.confidence import probability, signals_of
from pipelines.locate.decide import locate, needed_probability, place_of, strictest_promise
from pipelines.locate.holding_back import RADIUS_M
from pipelines.locate.impossible import covered_box, why_impossible
from pipelines.locate.path import FAR_OFF, FEWEST_SURE, Lookalikes, Path, Reach, metres, pace_mps, probabilities, reachable_m
from pipelines.locate.position import FOREIGN_SCORES, Group, Location, PositionConfig, Vote, groups_of
from pipelines.locate.sequences import is_usable, sequences_of
from pipelines.query.answering import COVERAGE_POINTS, Answers
from pipelines.query.prior import Prior
from schemas.calibration import ConfidenceFit
from schemas.geotags import GeotagStatus
from schemas.manifest import BBox

MAX_SPEED_MPS: Final = 150 / 3.6
"""Nobody drives quicker from one photo to the next."""

PLACES: Final = 5
"""Candidate places of a photo."""

ELSEWHERE: Final = 0.5
"""Of the chance that the best place is wrong, how much the other places share, each by its support. The rest is for no place of
the map at all, or none that was found."""

SURE_UNCALIBRATED: Final = 0.9
UNSURE_UNCALIBRATED: Final = 0.45
"""What stands for a probability where the map has none: of what is an answer alone, and at most of what is not. Only refusals are
made of it."""

LESS: Final = 0.95
"""A sure answer that a path makes hardly less likely than it was alone is kept, however unlikely that was."""

READ_ROWS: Final = 65_536
"""Candidates read from their table at once."""

FEWEST: Final = 3
"""Sure photos of which more than half must contradict the times, or a track, to make those wrong and not the photos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    """What is known of photos beyond their pixels, and what is asked for."""

    sequences: bool = True
    max_speed_mps: float = MAX_SPEED_MPS
    tracks: Tracks | None = None
    time_offset_s: float = 0.0
    """How much the cameras' clocks are ahead of UTC."""
    use_track: bool = False
    """Answer with the track's position where the pixels say nothing."""
    never_in: Region | None = None
    prior: Prior | None = None
    """Which photos of the map could match."""


ALONE: Final = Around(sequences=False)
"""Each photo for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A photo of the map that was re-ranked for a photo."""

    image_id: str | None
    """None: it is not told; likewise `uri`."""
    uri: str | None
    cosine: float
    vote: Vote


@dataclass(kw_only=True, slots=True, eq=False)
class Decision:
    """What became of one photo."""

    row: dict[str, Any]
    """Of the queries."""
    candidates: list[Candidate]
    """Best first."""
    groups: list[Group]
    location: Location
    status: GeotagStatus
    matched: int = 0
    """The best candidate of the place."""
    sequence: str | None = None
    fix: Float64[np.ndarray, " 3"] = field(default_factory=lambda: np.full(3, np.nan))
    """Of a track."""
    contradicted: bool = False
    """By the path or by a track."""
    duplicate_of: str | None = None
    """Image id of a photo with the same bytes, whose answer it has."""

    @property
    def withheld(self) -> bool:
        """Whether nothing may be told of it."""
        return self.location.reason == WITHHELD


def decide_together(answers: Answers, config: PositionConfig, around: Around) -> tuple[list[Decision], list[str]]:
    """Decide on the photos of an archive.

    Args:
        answers: of the whole archive.
        config: what counts as agreement, and how much is needed.
        around: what else is known.

    Returns:
        The decisions in the order of the queries, and what a person should know of the times and tracks.
    """
    confidence = answers.calibration.confidence if answers.calibration else None
    foreign = FOREIGN_SCORES.get(answers.facts["model"], 0.0)
    config = replace(config, min_local_score=max(config.min_local_score, foreign))
    decisions = _alone(answers, config, confidence, most=PLACES if around.sequences or around.tracks else 1)
    notes = _set_fixes(decisions, around)
    if around.never_in is not None:
        _withhold(decisions, around.never_in)
    covered = _covered(answers)
    _refuse_impossible(decisions, covered)
    if around.sequences or around.tracks:
        notes += _along_paths(answers, decisions, config, confidence, around)
    if around.use_track:
        _take_track(decisions)
    if around.never_in is not None:
        _withhold(decisions, around.never_in)
    _refuse_impossible(decisions, covered)
    _share(decisions, answers.duplicates)
    return decisions, notes


# ------------------------------------------------------------------------------------------------------------- alone


def _alone(answers: Answers, config: PositionConfig, confidence: ConfidenceFit | None, *, most: int) -> list[Decision]:
    found = _candidates(answers.results)
    decisions = []
    for row in answers.queries.to_pylist():
        candidates = found.get(row["image_id"], [])
        votes = [each.vote for each in candidates]
        location = locate(votes, config, confidence)
        decisions.append(
            Decision(
                row=row,
                candidates=candidates,
                groups=groups_of(votes, config, most=most),
                location=location,
                status=GeotagStatus.UNKNOWN if location.reason else GeotagStatus.ANSWERED,
            )
        )
    return decisions


def _candidates(results: pa.Table) -> dict[str, list[Candidate]]:
    """Read the candidates of each query. Of large archives they are most of what is in memory, so names are kept once."""
    found: dict[str, list[Candidate]] = {}
    names: dict[str, str] = {}
    votes = [each.name for each in fields(Vote)]
    pool = results.filter(pc.is_valid(results["score"])).select(["query_id", "image_id", "uri", "cosine", *votes])
    for batch in pool.to_batches(max_chunksize=READ_ROWS):
        for row in batch.to_pylist():
            candidate = Candidate(
                image_id=names.setdefault(row["image_id"], row["image_id"]),
                uri=names.setdefault(row["uri"], row["uri"]),
                cosine=row["cosine"],
                vote=Vote(**{name: row[name] for name in votes}),
            )
            found.setdefault(row["query_id"], []).append(candidate)
    return found


def _refuse(decision: Decision, reason: str) -> None:
    decision.status = GeotagStatus.UNKNOWN
    decision.location = replace(decision.location, lat_deg=None, lon_deg=None, expected_error_m=None, reason=reason)


def _share(decisions: Sequence[Decision], duplicates: Mapping[str, str]) -> None:
    """Give copies the answer of the photo they are copies of; where nothing may be told of one of them, not of any."""
    by_name = {each.row["image_id"]: each for each in decisions}
    pairs = [(each, by_name[duplicates[name]]) for name, each in by_name.items() if name in duplicates]
    for copy, original in pairs:
        if copy.withheld and not original.withheld:
            original.location, original.status, original.candidates = copy.location, copy.status, []
            original.row |= {"lat_deg": None, "lon_deg": None}
    for copy, original in pairs:
        copy.location, copy.status, copy.matched = original.location, original.status, original.matched
        copy.candidates, copy.sequence, copy.duplicate_of = original.candidates, original.sequence, original.row["image_id"]
        if original.withheld:
            copy.row |= {"lat_deg": None, "lon_deg": None}


def _refuse_impossible(decisions: Sequence[Decision], covered: BBox | None) -> None:
    for each in decisions:
        lat_deg, lon_deg = each.location.lat_deg, each.location.lon_deg
        if lat_deg is not None and lon_deg is not None and (reason := why_impossible(lat_deg, lon_deg, covered)):
            _refuse(each, reason)


def _covered(answers: Answers) -> BBox | None:
    """Draw a box round the map's photos; coverage that was thinned may lack remote ones, which candidates then make up for."""
    tables = [answers.coverage] if len(answers.coverage) < COVERAGE_POINTS else [answers.coverage, answers.results]
    lat_deg, lon_deg = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("lat_deg", "lon_deg"))
    return covered_box(lat_deg, lon_deg)


def _withhold(decisions: Sequence[Decision], region: Region) -> None:
    """Forget all that is known of the photos that may have been taken there, and other photos' candidate places there."""
    for each in decisions:
        first = each.candidates[0].vote if each.candidates else None
        if region.holds_any(
            (each.location.lat_deg, each.location.lon_deg),
            (each.location.best_lat_deg, each.location.best_lon_deg),
            (first.lat_deg, first.lon_deg) if first else (None, None),
            (each.row["lat_deg"], each.row["lon_deg"]),
            (each.fix[0], each.fix[1]),
        ):
            each.location = Location(
                lat_deg=None, lon_deg=None, expected_error_m=None, support=0.0, probability=None, reason=WITHHELD
            )
            each.status, each.sequence, each.candidates, each.groups = GeotagStatus.UNKNOWN, None, [], []
            each.row |= {"lat_deg": None, "lon_deg": None}
            each.fix = np.full(3, np.nan)
        elif each.groups:
            each.groups = [group for group in each.groups if not region.holds_any((group.lat_deg, group.lon_deg))]


# ------------------------------------------------------------------------------------------------------------ tracks


def _set_fixes(decisions: Sequence[Decision], around: Around) -> list[str]:
    """Look up where the tracks say that photos were taken; not at all, where they say that of none, or contradict most photos."""
    tracks = around.tracks
    if tracks is None or not decisions:
        return []
    seconds = np.array([_seconds(each) for each in decisions]) - around.time_offset_s
    fixes = tracks.at(seconds)
    if not np.isfinite(fixes[:, 0]).any():
        return [_no_overlap(tracks, seconds)]
    sure = np.array([each.status == GeotagStatus.ANSWERED for each in decisions]) & np.isfinite(fixes[:, 0])
    off_m = np.array([_off_track_m(each, fix) if known else 0.0 for each, fix, known in zip(decisions, fixes, sure, strict=True)])
    against = int((off_m > RADIUS_M + fixes[:, 2])[sure].sum())
    if sure.sum() >= FEWEST and against > sure.sum() / 2:
        return [
            f"error: {against} of {sure.sum()} photos that are sure of their place were taken elsewhere than the tracks say, "
            f"{np.median(off_m[sure]):,.0f} m off in the middle. The tracks were not used. Next: see --time-offset"
        ]
    for each, fix in zip(decisions, fixes, strict=True):
        each.fix = fix
    return []


def _no_overlap(tracks: Tracks, seconds: Float64[np.ndarray, " n"]) -> str:
    taken = seconds[np.isfinite(seconds)]
    photos = f"from {_told(taken.min())} to {_told(taken.max())}" if len(taken) else "at times that nobody knows"
    return (
        f"error: the tracks go from {_told(tracks.first_s)} to {_told(tracks.last_s)}, the photos were taken {photos} "
        "(UTC), none of them between two points of a track. Nothing was made of the tracks. Next: see --time-offset, or give the "
        "tracks of these days"
    )


def _told(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(decision: Decision) -> float:
    time = decision.row["taken_at"]
    return float(time.timestamp()) if is_usable(time) else np.nan


def _off_track_m(decision: Decision, fix: Float64[np.ndarray, " 3"]) -> float:
    lat_deg, lon_deg = decision.location.best_lat_deg, decision.location.best_lon_deg
    return float(metres(*np.array([lat_deg, lon_deg, fix[0], fix[1]], np.float64)))


def _take_track(decisions: Sequence[Decision]) -> None:
    for each in decisions:
        if each.status != GeotagStatus.ANSWERED and not each.contradicted and np.isfinite(each.fix[0]):
            _interpolate(
                each,
                Fix(seconds=0.0, lat_deg=float(each.fix[0]), lon_deg=float(each.fix[1]), error_m=float(each.fix[2])),
                "where the track was at its time; not sure by its own pixels",
            )


def _interpolate(decision: Decision, fix: Fix, reason: str) -> None:
    decision.status = GeotagStatus.INTERPOLATED
    decision.location = replace(
        decision.location, lat_deg=fix.lat_deg, lon_deg=fix.lon_deg, expected_error_m=fix.error_m, reason=reason
    )


# ------------------------------------------------------------------------------------------------------------- paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """What an answer needs."""

    confidence: ConfidenceFit | None
    sure: float
    """Least probability of one that was sure alone."""
    proven: float
    """Least probability of one that was not: each for itself is to be as often right as was promised."""
    factor: float
    """Of expected errors."""

    @staticmethod
    def of(confidence: ConfidenceFit | None, precision: float) -> "Bar":
        """Ask of a map's own model what a promise needs, as `locate` does."""
        if confidence is None:
            return Bar(confidence=None, sure=0.5, proven=np.inf, factor=1.0)
        needed, strictest = needed_probability(confidence, precision), strictest_promise(confidence)
        level = needed if needed is not None else strictest[1] if strictest else 0.0
        return Bar(
            confidence=confidence,
            sure=max(min(level, precision), 0.5),
            proven=max(level, precision),
            factor=1.0 if needed is None else confidence.error_factor,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequenced:
    """Photos that were taken one after the other."""

    photos: list[Decision]
    name: str | None = None
    hidden_s: tuple[float, ...] = ()
    """When those were taken of which nothing may be told: they are not among the photos."""


def _along_paths(
    answers: Answers, decisions: list[Decision], config: PositionConfig, confidence: ConfidenceFit | None, around: Around
) -> list[str]:
    bar = Bar.of(confidence, config.precision)
    sequences = _sequences(answers.queries, decisions, around)
    paths = [_path(each.photos, confidence) for each in sequences]
    lookalikes, reach = Lookalikes(paths), _reach(answers.coverage, around.prior)
    notes = [] if around.use_track else _tracks_prove_nothing(decisions, lookalikes, confidence)
    mistrusted = 0
    for sequence, path in zip(sequences, paths, strict=True):
        run = sequence.photos
        chances = probabilities(path, reach, lookalikes, max_speed_mps=around.max_speed_mps)
        against = path.sure & (chances[:, 0] < np.minimum(LESS * path.prior[:, 0], bar.sure))
        if len(run) > 1 and path.sure.sum() >= FEWEST and against.sum() > path.sure.sum() / 2:
            mistrusted += len(run)
            continue
        for each, chance in zip(run, chances, strict=True):
            each.sequence = sequence.name
            _settle(each, chance, bar, config)
        for number in np.flatnonzero(against).tolist():
            run[number].contradicted = True
            _refuse(run[number], _why_against(run, path, number, around))
        _fill(sequence, path, around.max_speed_mps)
    return [*notes, *_mistrust(mistrusted)]


def _tracks_prove_nothing(decisions: Sequence[Decision], lookalikes: Lookalikes, confidence: ConfidenceFit | None) -> list[str]:
    """Say when tracks can speak against answers but can add none."""
    if not any(np.isfinite(each.fix[0]) for each in decisions):
        return []
    if confidence is None:
        why = "the map is not calibrated"
    elif lookalikes.photos < FEWEST_SURE:
        sure = lookalikes.photos
        why = f"to learn what a track proves here takes {FEWEST_SURE} photos that are sure of their place, and {sure} were found"
    else:
        return []
    return [f"the tracks add no answers, they only speak against some: {why}. --use-track takes their positions, marked as such"]


def _mistrust(photos: int) -> list[str]:
    if not photos:
        return []
    return [
        f"the times of {photos:,} photos cannot be right, since most of their answers would contradict them: each stands alone"
    ]


def _sequences(queries: pa.Table, decisions: list[Decision], around: Around) -> list[Sequenced]:
    """Photos that were taken one after the other; and each of the others that a track says something of."""
    found = sequences_of(queries) if around.sequences else []
    sequences = []
    for each in found:
        photos = [decisions[row] for row in each.rows]
        hidden_s = tuple(_seconds(photo) for photo in photos if photo.withheld)
        sequences.append(Sequenced(photos=[photo for photo in photos if not photo.withheld], name=each.name, hidden_s=hidden_s))
    inside = {row for each in found for row in each.rows}
    lone = [each for row, each in enumerate(decisions) if row not in inside and np.isfinite(each.fix[0])]
    return [*(each for each in sequences if each.photos), *(Sequenced(photos=[each]) for each in lone)]


def _path(run: Sequence[Decision], confidence: ConfidenceFit | None) -> Path:
    lat, lon, prior = (np.zeros((len(run), PLACES)) for _ in range(3))
    match = np.full((len(run), PLACES), -1)
    numbers: dict[str | None, int] = {}
    for number, each in enumerate(run):
        chances = _chances(each, confidence)
        for place, (group, chance) in enumerate(zip(each.groups, chances, strict=True)):
            lat[number, place], lon[number, place], prior[number, place] = group.lat_deg, group.lon_deg, chance
            photo = each.candidates[int(group.agrees.argmax())].image_id
            match[number, place] = numbers.setdefault(photo, len(numbers))
    times = [_seconds(each) for each in run]
    return Path(
        seconds=np.nan_to_num(np.array(times)),  # a lone photo may have none
        lat_deg=lat,
        lon_deg=lon,
        prior=prior,
        match=match,
        sure=np.array([each.status == GeotagStatus.ANSWERED for each in run]),
        track=np.array([each.fix for each in run]),
    )


def _chances(decision: Decision, confidence: ConfidenceFit | None) -> list[float]:
    """How likely each place is, by the photo alone."""
    if not decision.groups:
        return []
    first, *others = decision.groups
    if confidence is not None:
        best = probability(confidence, signals_of([each.vote for each in decision.candidates], first))
    elif decision.status == GeotagStatus.ANSWERED:
        best = SURE_UNCALIBRATED
    else:
        best = UNSURE_UNCALIBRATED * first.support
    support = sum(group.support for group in others)
    return [best, *((1 - best) * ELSEWHERE * group.support / support for group in others)]


def _reach(coverage: pa.Table, prior: Prior | None) -> Reach:
    if prior is not None:
        coverage = coverage.filter(pa.array(replace(prior, taken_from=None, taken_until=None).matches(coverage)))
    return Reach(coverage["lat_deg"].to_numpy(), coverage["lon_deg"].to_numpy())


def _settle(decision: Decision, chances: Float64[np.ndarray, " K"], bar: Bar, config: PositionConfig) -> None:
    """Say how likely the best place is by the whole path, and answer if that is as likely as was promised."""
    if bar.confidence is None or not decision.groups:
        return
    if decision.status == GeotagStatus.ANSWERED:
        decision.location = replace(decision.location, probability=float(chances[0]))
        return
    place = int(chances.argmax())
    group, likely = decision.groups[place], float(chances[place])
    reason = None
    if likely < bar.proven:
        reason = (
            f"probability {likely:.2f} with the photos taken before and after it, and {bar.proven:.2f} is needed for answers "
            f"of which {config.precision:.0%} are right"
        )
    # What speaks for the place now is more than its share of the candidates.
    factor = bar.factor * group.support / max(group.support, likely)
    decision.matched = int(group.agrees.argmax())
    decision.location = place_of(group, likely, reason, factor=factor)
    decision.status = GeotagStatus.UNKNOWN if reason else GeotagStatus.ANSWERED


def _why_against(run: Sequence[Decision], path: Path, number: int, around: Around) -> str:
    fix, off_m = path.track[number], _off_track_m(run[number], path.track[number])
    if off_m > FAR_OFF * (RADIUS_M + fix[2]):
        return f"a track was {off_m:,.0f} m away when it was taken"
    apart_m = metres(path.lat_deg[number, 0], path.lon_deg[number, 0], path.lat_deg[:, 0], path.lon_deg[:, 0])
    took_s = np.abs(path.seconds - path.seconds[number])
    too_far = path.sure & (apart_m > reachable_m(took_s, around.max_speed_mps))
    if not too_far.any():
        return "the photos taken before and after it speak against its place"
    refused = np.array([each.status != GeotagStatus.ANSWERED for each in run])
    other = min(np.flatnonzero(too_far).tolist(), key=lambda row: (refused[row], took_s[row], row))
    when = "later" if path.seconds[other] > path.seconds[number] else "before"
    return (
        f"{apart_m[other]:,.0f} m from where {run[other].row['uri']} was taken {took_s[other]:,.0f} s {when}: quicker than "
        f"{around.max_speed_mps * 3.6:.0f} km/h"
    )


def _fill(sequence: Sequenced, path: Path, max_speed_mps: float) -> None:
    """Give unknown photos the positions between answers; not where the way went through a place that may not be told."""
    run = sequence.photos
    answered = [number for number, each in enumerate(run) if each.status == GeotagStatus.ANSWERED]
    usual_mps = pace_mps(path, max_speed_mps) / 2
    for first, last in pairwise(answered):
        if any(path.seconds[first] <= hidden_s <= path.seconds[last] for hidden_s in sequence.hidden_s):
            continue
        for number in range(first + 1, last):
            each, before, after = run[number], run[first], run[last]
            fix = between(
                _known(before, path.seconds[first]),
                _known(after, path.seconds[last]),
                float(path.seconds[number]),
                speed_mps=usual_mps,
            )
            if fix is not None and not each.contradicted:
                _interpolate(
                    each,
                    fix,
                    f"between {before.row['uri']}, {path.seconds[number] - path.seconds[first]:.0f} s before, and "
                    f"{after.row['uri']}, {path.seconds[last] - path.seconds[number]:.0f} s later; not sure by its own pixels",
                )


def _known(decision: Decision, seconds: float) -> Fix:
    at = decision.location
    assert at.lat_deg is not None
    assert at.lon_deg is not None
    assert at.expected_error_m is not None
    return Fix(seconds=float(seconds), lat_deg=at.lat_deg, lon_deg=at.lon_deg, error_m=at.expected_error_m)
