"""What the calibration of a map is worth: `make bench-calibrated`. Not a test.

For each set of `recall_sets` the product builds a map of the database photos, as `folio build` does from a table, and fits pools
and the weight of local features to photos it holds back. Then the map is asked for the set's queries, in four ways:

    descriptor alone    nothing is re-ranked
    fixed 100           the best 100 are re-ranked, with the network's default weight
    default             the network's default pool and weight, as in a map that is not calibrated
    calibrated          the pool and weight that the build has fitted

An answer is right as the set says, so what was fitted to held-back photos is judged by others. Pools and CPU times are means over
the queries; the time is that of re-ranking alone, without search and reading. Prints two Markdown tables and writes
`out/bench/calibrated.json`. Every run builds the maps anew; queries are encoded once and kept, as `recall` does.

A build can hold photos back only where it knows where they were taken. street-lund and the sample city have real positions (the
manifest's, and what EXIF says of the made-up town). **The other sets get made-up ones** that agree with their truth and say
nothing more; the table marks them with a star:

- the drives of Mapillary lie far apart, each a straight line with a frame every 15 m, so that one frame away is within 25 m;
- each area of a floor of ie_tower is 200 m from the next, and the frames of a clip are spread over 20 m of it, in their order.

Held-back photos are harder than queries, whose neighbours in the drive or clip are in the map. In ie_tower 19 of 102 areas, with
half of the photos, have more than one clip: there the build leaves out the whole clip of a photo it asks for.

    python -m tests.benchmarks.calibrated --sets street-lund,mapillary --out out/bench/calibrated.json
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import msgspec
import numpy as np

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker, open_encoder
from fol_model.recall import recall_at
from infra.commits import read_head
from infra.observability import progress
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import DEFAULT_RECIPE, BuildRequest
from pipelines.catalog.sample_city.photos import ORIGIN_LAT_DEG, ORIGIN_LON_DEG
from pipelines.engine.threads import use_threads
from pipelines.locate.decide import fitted_reranking
from pipelines.locate.holding_back import EARTH_M
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import Answer, Candidate, QueryWorker
from schemas.calibration import Calibration, encode_calibration
from schemas.images import image_id
from tests.benchmarks.recall import Cache, network
from tests.benchmarks.recall_sets import DATA, WORK, MissingPhotosError, RecallSet, load_set, set_names

SETTINGS: Final = Settings(threads=1)
KS: Final = (1, 5)

ALONE: Final = "descriptor alone"
FIXED: Final = "fixed 100"
DEFAULT: Final = "default"
CALIBRATED: Final = "calibrated"

NOT_CALIBRATED: Final = "not calibrated: defaults"

FRAME_M: Final = 15.0
DRIVE_APART_M: Final = 10_000.0
PLACE_APART_M: Final = 200.0
CLIP_M: Final = 20.0

# ----------------------------------------------------------------------------------------------------------- where


class Placed(NamedTuple):
    """A row of the table that a map is built from; what is None is left to the photo's EXIF."""

    uri: str
    lat_deg: float | None
    lon_deg: float | None
    sequence_id: str | None


def _lund(photos: Sequence[Path]) -> list[Placed]:
    """One walk, where the phone said it was."""
    rows = {DATA / "street" / row["file"]: row for row in _csv_rows(DATA / "street" / "manifest.csv")}
    return [Placed(str(path), float(rows[path]["lat"]), float(rows[path]["lon"]), rows[path]["sequence"]) for path in photos]


def _city(photos: Sequence[Path]) -> list[Placed]:
    """EXIF says where and when; the times tell the two surveys apart."""
    return [Placed(str(path), None, None, None) for path in photos]


def _drives(photos: Sequence[Path]) -> list[Placed]:
    """Made up: each drive a line to the north, a frame every `FRAME_M`; the frames that are queries are gaps."""
    line = {name: number for number, name in enumerate(sorted({path.parent.name for path in photos}))}
    return [
        _made_up(path, line[path.parent.name] * DRIVE_APART_M, int(path.stem) * FRAME_M, sequence=path.parent.name)
        for path in photos
    ]


def _tower(photos: Sequence[Path]) -> list[Placed]:
    """Made up: areas in a line to the east, the frames of each clip of an area spread over `CLIP_M` to the north."""
    root = DATA / "train" / "ie_tower"
    rows = _csv_rows(root / "dataset.csv")
    area = {root / row["image_path"].split("/", 1)[1]: f"{row['label']}/{row['area']}" for row in rows}
    place = {name: number for number, name in enumerate(sorted({area[path] for path in photos}))}
    clips = [path.stem.rpartition("_frame_") for path in photos]
    frames: dict[str, list[int]] = {}
    for clip, _, frame in clips:
        frames.setdefault(clip, []).append(int(frame))
    placed = []
    for path, (clip, _, frame) in zip(photos, clips, strict=True):
        first, last = min(frames[clip]), max(frames[clip])
        north_m = CLIP_M * (int(frame) - first) / max(last - first, 1)
        placed.append(_made_up(path, place[area[path]] * PLACE_APART_M, north_m, sequence=clip))
    return placed


def _made_up(path: Path, east_m: float, north_m: float, *, sequence: str) -> Placed:
    """Put a photo on the Dogger Bank, beside the sample city."""
    lat_deg = ORIGIN_LAT_DEG + np.degrees(north_m / EARTH_M)
    lon_deg = ORIGIN_LON_DEG + np.degrees(east_m / EARTH_M / np.cos(np.radians(lat_deg)))
    return Placed(str(path), float(lat_deg), float(lon_deg), sequence)


def _csv_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


PLACES: Final[Mapping[str, Callable[[Sequence[Path]], list[Placed]]]] = {
    "street-lund": _lund,
    "mapillary": _drives,
    "mapillary-held-back": _drives,
    "mapillary-held-back-night": _drives,
    "ie-tower": _tower,
    "sample-city": _city,
}
"""Where the database photos of each set were taken."""
MADE_UP_PLACES: Final = (_drives, _tower)

# ------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """What one way to ask gave."""

    mean_pool: float
    recall: tuple[float, ...]
    """At 1 and 5."""
    cpu_ms: float
    """Mean time to re-rank a query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One set."""

    set: str
    made_up_places: bool
    photos: int
    """In the map."""
    queries: int
    ways: dict[str, Way]
    gained: int
    """Queries whose first answer is right as calibrated, and wrong with the best 100 ..."""
    lost: int
    """... and the other way round."""
    calibration: dict[str, Any] | None
    """As the manifest holds it."""


class BuiltMap:
    """A map of some photos, made and calibrated by the product, and how to ask it.

    Args:
        placed: the photos.
        encoder: of the recipe.
        folder: empty; the table and the map are written there.
    """

    def __init__(self, placed: Sequence[Placed], encoder: Encoder, folder: Path) -> None:
        table = folder / "photos.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Placed._fields)
            writer.writerows(placed)
        place = str(folder / "map")
        request = BuildRequest(map_url=place, photos=(str(table),), recipe=encoder.recipe.name, device="cpu")
        summary = run_build(request, SETTINGS)
        assert not summary.rejected, summary.lines()  # the truth counts on all photos
        storage = open_storage(place, SETTINGS)
        manifest = read_head(storage)
        assert manifest.model.fingerprint == encoder.fingerprint
        base = encoder.reranking
        as_published = OpenedMap(storage, manifest)
        not_calibrated = OpenedMap(storage, msgspec.structs.replace(manifest, calibration=None))
        fixed = replace(base, pool=replace(base.pool, fixed_size=100))
        self.photos: Final[int] = manifest.statistics["photos"]
        self.calibration: Final = as_published.calibration
        self.ways: Final = {
            FIXED: (QueryWorker(storage, not_calibrated, encoder, fixed, follows=False), fixed),
            DEFAULT: (QueryWorker(storage, not_calibrated, encoder, base, follows=False), base),
            CALIBRATED: (QueryWorker(storage, as_published, encoder, base, follows=False), fitted(base, self.calibration)),
        }
        """For each way to re-rank, who answers, and with which settings."""


def fitted(base: RerankConfig, calibration: Calibration | None) -> RerankConfig:
    """Say how a query worker re-ranks in a calibrated map; the benchmark fails if it does otherwise."""
    if calibration is None:
        return base
    return fitted_reranking(base, calibration)


def measure(found: RecallSet, built: BuiltMap, queries: Sequence[EncodedPhoto], *, made_up_places: bool) -> Row:
    """Ask a map for the queries of a set, in each way.

    Args:
        found: the set.
        built: the map of its database.
        queries: its queries, encoded.
        made_up_places: whether the map's positions are.
    """
    number = {image_id(str(path)): index for index, path in enumerate(found.database)}
    orders: dict[str, list[list[int]]] = {way: [] for way in (ALONE, *built.ways)}
    pools: dict[str, list[int]] = {way: [] for way in orders}
    cpu_s: dict[str, list[float]] = {way: [] for way in orders}

    def note(way: str, candidates: Sequence[Candidate], pool: int, seconds: float) -> None:
        orders[way].append([number[candidate.photo.image_id] for candidate in candidates])
        pools[way].append(pool)
        cpu_s[way].append(seconds)

    for query in progress(queries, total=len(queries), unit="query", description=f"{found.name}: asking"):
        for way, (worker, config) in built.ways.items():
            answer = worker.answer_encoded(query)
            note(way, answer.candidates, answer.pool_size, rerank_s(query, answer, config))
        note(ALONE, by_descriptor(answer), 0, 0.0)
    hits = {way: np.take_along_axis(found.positives, np.array(order), axis=1) for way, order in orders.items()}
    return Row(
        set=found.name,
        made_up_places=made_up_places,
        photos=built.photos,
        queries=len(queries),
        ways={
            way: Way(
                mean_pool=round(float(np.mean(pools[way])), 3),
                recall=tuple(recall_at(right, KS).round(4).tolist()),
                cpu_ms=round(1e3 * float(np.mean(cpu_s[way])), 3),
            )
            for way, right in hits.items()
        },
        gained=int((hits[CALIBRATED] & ~hits[FIXED])[:, 0].sum()),
        lost=int((hits[FIXED] & ~hits[CALIBRATED])[:, 0].sum()),
        calibration=encode_calibration(built.calibration),
    )


def by_descriptor(answer: Answer) -> list[Candidate]:
    """Put candidates back into the order they had before re-ranking."""
    return sorted(answer.candidates, key=lambda candidate: candidate.global_rank)


def rerank_s(query: EncodedPhoto, answer: Answer, config: RerankConfig) -> float:
    """Re-rank the pool of an answer once more, everything at hand, and give the CPU time it took."""
    best = by_descriptor(answer)
    cosines = np.array([candidate.cosine for candidate in best])
    features = answer.map.local_features_of([candidate.photo for candidate in best[: answer.pool_size]])
    start = time.process_time()
    ranked = Reranker(config).rerank_as_needed(query, features, cosines)
    seconds = time.process_time() - start
    assert [candidate.global_rank - 1 for candidate in answer.candidates[: answer.pool_size]] == ranked.order.tolist()
    return seconds


# ------------------------------------------------------------------------------------------------------- reporting


def tables(rows: Sequence[Row]) -> str:
    """Write what was fitted, and what it is worth, as Markdown tables."""
    lines = [
        "| set | photos | held back (with an answer) | weight | pool | held back, first right: descriptor → re-ranked |",
        "|---|---|---|---|---|---|",
        *(f"| {_name(row)} | {row.photos} | {_fit(row)} |" for row in rows),
        "",
        "| set | queries | way | mean pool | recall@1 | recall@5 | re-ranking, CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, way in row.ways.items():
            shares = " | ".join(f"{share:.3f}" for share in way.recall)
            said = f"{name} ({NOT_CALIBRATED})" if name == CALIBRATED and not _is_calibrated(row) else name
            lines.append(f"| {_name(row)} | {row.queries} | {said} | {way.mean_pool:.1f} | {shares} | {way.cpu_ms:.1f} |")
    if any(row.made_up_places for row in rows):
        lines += ["", "\\* positions made up from the order of the photos: see `tests/benchmarks/calibrated.py`"]
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """Say how much smaller the fitted pools are than fixed ones, and whether that costs recall."""
    fixed, ours, alone = (row.ways[way] for way in (FIXED, CALIBRATED, ALONE))
    lower = "LOWER" if ours.recall[0] < fixed.recall[0] else "no lower"
    harm = f"; LOWER than {alone.recall[0]:.3f} by descriptor alone" if ours.recall[0] < alone.recall[0] else ""
    fewer = f"{fixed.mean_pool:.0f} / {ours.mean_pool:.1f} = {fixed.mean_pool / ours.mean_pool:.1f} times fewer candidates"
    firsts = f"recall@1 {ours.recall[0]:.3f}, fixed {fixed.recall[0]:.3f}: {lower} ({row.gained} gained, {row.lost} lost)"
    return f"{row.set}: {fewer}; {firsts}{harm}"


def _name(row: Row) -> str:
    return f"{row.set}\\*" if row.made_up_places else row.set


def _is_calibrated(row: Row) -> bool:
    return row.calibration is not None and row.calibration["distinct_weight"] is not None


def _fit(row: Row) -> str:
    if not _is_calibrated(row):
        return f"{NOT_CALIBRATED} | | |"
    assert row.calibration is not None
    evidence, pool = row.calibration["evidence"], row.calibration["pool"]
    held_back = f"{evidence['queries']} ({evidence['with_answer']}), without their {evidence['held_back']}"
    shape = ", ".join(f"{name} {value:g}" for name, value in pool.items()) if pool else "default"
    firsts = f"{evidence['first_by_descriptor']:.3f} → {evidence['first_reranked']:.3f}"
    return f"{held_back} | {row.calibration['distinct_weight']:g} | {shape} | {firsts}"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="What the calibration of a map is worth.")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="a network; see `folio models` (default: %(default)s)")
    parser.add_argument("--sets", default=",".join(set_names()), help="separated by commas (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=WORK / "calibrated.json", help="the same as JSON (default: out/bench/calibrated.json)"
    )
    asked = parser.parse_args()

    use_threads(1)
    cv2.setNumThreads(1)
    encoder, cache = open_encoder(asked.recipe, weights=None, device="cpu"), Cache(WORK / "cache")
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=WORK, prefix="calibrated-") as folder:
        maps: dict[tuple[Path, ...], BuiltMap] = {}
        for name in asked.sets.split(","):
            try:
                found = load_set(name)
            except MissingPhotosError as error:
                print(f"not measured: {error}", file=sys.stderr)
                continue
            described = cache.describe(network(encoder), found.queries, of=f"{name}, queries")
            if (photos := tuple(found.database)) not in maps:
                maps[photos] = BuiltMap(PLACES[name](photos), encoder, Path(tempfile.mkdtemp(dir=folder)))
            queries = [EncodedPhoto(**one.arrays) for one in described]
            rows.append(measure(found, maps[photos], queries, made_up_places=PLACES[name] in MADE_UP_PLACES))
    facts = {"recipe": encoder.recipe.name, "fingerprint": encoder.fingerprint, "trained": encoder.trained}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    part = asked.out.with_suffix(".part")
    part.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    part.rename(asked.out)
    print(tables(rows), *map(verdict, rows), sep="\n")


if __name__ == "__main__":
    main()
