"""results ▶ geotags ▶ files: geotag an archive of photos. `folio geotag`, and the first half of `folio evaluate`.

A results folder holds everything that was found, so that evaluation and report read files and search nothing again:
queries, results, geotags, rejects and coverage as Parquet, and geotags.geojson.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from infra.metrics import ARCHIVE_PHOTOS, METRICS, exported, show_version
from infra.observability import Stopwatch
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import write_table
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from pipelines.engine.model import untrained_note
from pipelines.geotag.decisions import by_hand_note, with_decisions
from pipelines.geotag.geojson import to_geojson
from pipelines.geotag.kept import KeptAnswers, facts_of_results
from pipelines.geotag.regions import Region, redact, withhold
from pipelines.geotag.together import ALONE, MAX_SPEED_MPS, Around, Decision, decide_together
from pipelines.geotag.tracks import read_tracks
from pipelines.locate.decide import needed_probability, strictest_promise
from pipelines.locate.position import PositionConfig
from pipelines.query.answering import Answers, answer_catalog
from pipelines.query.prior import Prior, polygons_of
from pipelines.query.worker import open_worker
from schemas.errors import CatalogError
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS, GeotagStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class GeotagRequest:
    """What a user asks for."""

    map_url: str
    photos: tuple[str, ...]
    out: str
    version: int | str | None = None
    """Number or tag; None: the newest, and should objects of it go meanwhile, the next."""
    weights: str | None = None
    utm_zone: str | None = None
    device: str = "auto"
    prior: Prior | None = None
    position: PositionConfig = field(default_factory=PositionConfig)
    alone: bool = False
    """Decide on each photo by itself, also where photos were taken one after the other."""
    max_speed_kmh: float = MAX_SPEED_MPS * 3.6
    """Nobody was quicker from one photo to the next."""
    gpx: tuple[str, ...] = ()
    """Files of tracks that were recorded while the photos were taken."""
    time_offset_s: float = 0.0
    """How much the cameras' clocks are ahead of UTC; only tracks need it."""
    use_track: bool = False
    """Give photos whose pixels say nothing the position of the track."""
    redact: bool = False
    """Name no photo of the map in what is written."""
    never_in: str | None = None
    """File of polygons, as GeoJSON: photos that may have been taken there are not answered, and nothing is told of them."""
    limits: PhotoLimits = field(default_factory=PhotoLimits)


class GeotagSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an archive. `folio geotag --json` prints it."""

    out: str
    map_version: int
    photos: int
    answered: int
    unknown: int
    interpolated: int
    """Between photos that were answered, or on a track; not by their own pixels."""
    rejected: dict[str, int]
    answered_before: int
    """Of the photos, in an earlier run."""
    duplicates: int
    """Of the photos, those with the same bytes as another one, whose answer they have."""
    photos_per_second: float
    """Of those answered now; 0: none was."""
    recipe: str
    trained: bool
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        interpolated = f"{self.interpolated:,} interpolated, " if self.interpolated else ""
        found = [f"{self.photos:,} photos: {self.answered:,} answered, {interpolated}{self.unknown:,} don't know"]
        if self.duplicates:
            found.append(f"{self.duplicates:,} are copies of others")
        if self.answered_before:
            found.append(f"{self.answered_before:,} were known from before")
        if self.photos_per_second:
            found.append(f"{self.photos_per_second:.1f} photos/s")
        notes = [note if note.startswith("error: ") else f"note: {note}" for note in self.notes]
        lines = [*notes, "; ".join(found)]
        if self.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"{sum(self.rejected.values()):,} rejected ({reasons}), see {self.out}/rejects.parquet")
        lines.append(f"{self.out}: geotags.parquet and geotags.geojson, from version {self.map_version} of the map")
        if not self.trained:
            lines.append(untrained_note(self.recipe))
        return lines


def run_geotag(request: GeotagRequest, settings: Settings) -> GeotagSummary:
    """Geotag an archive into a results folder, and count it for Prometheus meanwhile. Raises any `FolioError`."""
    with watched(request, settings):
        return geotag_archive(request, settings)


@contextmanager
def watched(request: GeotagRequest, settings: Settings) -> Iterator[None]:
    """Count what is geotagged inside for Prometheus.

    Raises:
        WorkError: the port or file that the settings name cannot be used.
    """
    with exported(settings, {"map": open_storage(request.map_url, settings).url, "action": "geotag"}):
        yield


def geotag_archive(request: GeotagRequest, settings: Settings) -> GeotagSummary:
    """Geotag an archive into a results folder. Raises any `FolioError`."""
    around = _around(request)
    worker = open_worker(
        request.map_url,
        settings,
        version=request.version,
        weights=Path(request.weights) if request.weights else None,
        device=request.device,
        prior=request.prior,
    )
    if request.version is None:
        show_version(worker.map.manifest)
    catalog = list_photos(
        request.photos, settings=settings, utm_zone=request.utm_zone, needs_position=False, limits=request.limits
    )
    storage = open_storage(request.out, settings)
    kept = KeptAnswers(storage)
    clock = Stopwatch()
    with clock.stage("query"):
        answers = answer_catalog(
            worker, catalog, settings, request.limits, description="geotag", before=kept, duplicates=catalog.duplicates()
        )
    decisions, said = decide_together(answers, request.position, around)
    geotags = table_of([_redacted(each) for each in decisions] if request.redact else decisions)
    withheld = {each.row["image_id"] for each in decisions if each.withheld}
    geotags = with_decisions(geotags, storage, hidden=withheld)
    shown = _private(answers, decisions, around, redacted=request.redact)
    kept.prepare(shown)
    write_results(storage, shown, geotags)
    kept.finish()
    seconds = clock.seconds()["query"]
    statuses = Counter(geotags["status"].to_pylist())
    _show_decisions(statuses, withheld=len(withheld))
    return GeotagSummary(
        out=request.out,
        map_version=answers.facts["map_version"],
        photos=len(geotags),
        answered=statuses[GeotagStatus.ANSWERED],
        unknown=statuses[GeotagStatus.UNKNOWN],
        interpolated=statuses[GeotagStatus.INTERPOLATED],
        rejected=dict(Counter(answers.rejects["reason"].to_pylist()).most_common()),
        answered_before=answers.answered_before,
        duplicates=len(answers.duplicates),
        photos_per_second=answers.answered_now / seconds if seconds else 0.0,
        recipe=answers.facts["model"],
        trained=answers.facts["trained"],
        notes=[
            *catalog.notes,
            *kept.notes,
            *_moved_on(answers.versions),
            *_degraded(len(answers.without_features)),
            *_unproven(answers, request.position),
            *said,
            *_withheld(decisions),
            *by_hand_note(geotags),
        ],
    )


def make_geotags(answers: Answers, config: PositionConfig) -> pa.Table:
    """Decide on a position for each query photo alone: rows in the schema of geotags, in the order of the queries."""
    return table_of(decide_together(answers, config, ALONE)[0])


def table_of(decisions: Sequence[Decision]) -> pa.Table:
    """Make the rows of decisions, in the schema of geotags."""
    rows = [_geotag(decision) for decision in decisions]
    lon, lat = (np.array([row[name] for row in rows], np.float64) for name in ("lon_deg", "lat_deg"))
    geometry, bbox = point_columns(lon, lat)
    plain = pa.Table.from_pylist(rows, pa.schema([each for each in GEOTAGS if each.name not in ("geometry", "bbox")]))
    return plain.append_column("geometry", geometry).append_column("bbox", bbox).cast(GEOTAGS)


def write_results(storage: Storage, answers: Answers, geotags: pa.Table) -> None:
    """Write a results folder; the geotags come last, so a folder that has them is complete."""
    write_table(storage, "results.parquet", answers.results, kind="results", facts=facts_of_results(answers))
    write_table(storage, "queries.parquet", answers.queries, kind="images")  # not before: see `kept.py`
    write_table(storage, "rejects.parquet", answers.rejects, kind="rejects")
    write_table(storage, "coverage.parquet", answers.coverage, kind="coverage")
    storage.put("geotags.geojson", to_geojson(geotags, answers.facts))
    write_table(storage, "geotags.parquet", geotags, kind="geotags", facts=answers.facts)


def _show_decisions(statuses: Mapping[str, int], *, withheld: int) -> None:
    """Tell Prometheus what was decided; those that are withheld are not told from unknown ones in what is written."""
    photos = {status.value: statuses.get(status.value, 0) for status in GeotagStatus}
    photos |= {"unknown": photos["unknown"] - withheld, "withheld": withheld}
    for decision, number in photos.items():
        METRICS.set(ARCHIVE_PHOTOS, number, decision)


def _moved_on(versions: list[int]) -> list[str]:
    if len(versions) < 2:
        return []
    return [f"objects of version {versions[0]} were removed meanwhile; later photos were answered from version {versions[-1]}"]


def _unproven(answers: Answers, config: PositionConfig) -> list[str]:
    """Say when the promise is not one: nothing was fitted to the map, or too little to prove it."""
    confidence = answers.calibration.confidence if answers.calibration else None
    if confidence is not None and needed_probability(confidence, config.precision) is not None:
        return []
    agree = "what the candidates agree on is answered, and how often that is right is not known"
    if confidence is None:
        return [f"the map is not calibrated: {agree}"]
    proven = strictest_promise(confidence)
    most = f"; {proven[0]:.0%} is the most it has proven, and what that needs is asked for too" if proven else ""
    return [f"the map could not prove {config.precision:.0%} on its own photos: {agree}{most}"]


def _withheld(decisions: Sequence[Decision]) -> list[str]:
    photos = sum(each.withheld for each in decisions)
    return [f"{photos:,} photos were left out, since no answer may be given of where they may have been taken"] if photos else []


def _redacted(decision: Decision) -> Decision:
    return replace(decision, candidates=[replace(each, uri=None, image_id=None) for each in decision.candidates])


def _degraded(queries: int) -> list[str]:
    if not queries:
        return []
    return [f"{queries} photos had candidates without usable local features, ranked by descriptor alone. Next: folio verify MAP"]


def _geotag(decision: Decision) -> dict[str, Any]:
    query, location = decision.row, decision.location
    best = decision.candidates[decision.matched] if decision.candidates else None
    return {
        "query_id": query["image_id"],
        "uri": query["uri"],
        "root": query["root"],
        "status": decision.status.value,
        "reason": location.reason,
        "lat_deg": location.lat_deg,
        "lon_deg": location.lon_deg,
        "expected_error_m": location.expected_error_m,
        "support": location.support,
        "probability": location.probability,
        "best_lat_deg": location.best_lat_deg,
        "best_lon_deg": location.best_lon_deg,
        "best_error_m": location.best_error_m,
        "sequence_id": decision.sequence,
        "duplicate_of": decision.duplicate_of,
        "matched_uri": best and best.uri,
        "matched_image_id": best and best.image_id,
        "matches": best and best.vote.matches,
        "cosine": best and best.cosine,
        "pool_size": len(decision.candidates),
        "known_lat_deg": query["lat_deg"],
        "known_lon_deg": query["lon_deg"],
        "taken_at": query["taken_at"],
    }


def _around(request: GeotagRequest) -> Around:
    try:
        never_in = Region(area=polygons_of(Path(request.never_in))) if request.never_in else None
    except ValueError as error:
        raise CatalogError(f"{error}. No photo was answered. Next: give --never-in a file of polygons") from error
    return Around(
        sequences=not request.alone,
        max_speed_mps=request.max_speed_kmh / 3.6,
        tracks=read_tracks(request.gpx) if request.gpx else None,
        time_offset_s=request.time_offset_s,
        use_track=request.use_track,
        never_in=never_in,
        prior=request.prior,
    )


def _private(answers: Answers, decisions: Sequence[Decision], around: Around, *, redacted: bool) -> Answers:
    """Take out of everything that is written what must not be told; what is left is nothing that a later run can start from."""
    if around.never_in is not None:
        withheld = [each.row["image_id"] for each in decisions if each.withheld]
        answers = replace(withhold(answers, around.never_in, withheld), basis=None)
    return replace(redact(answers), basis=None) if redacted else answers
