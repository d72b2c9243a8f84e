"""geotags + decisions by hand ▶ geotags: what a person accepted, corrected or refused, in the place of what was found.

`folio geotag --out DIR --apply FILE` adds decisions to those that DIR keeps in `decisions.json`, by query id, and rewrites the
geotags. The rows as they were found are kept in `found.parquet`, so that applying is the same however often it is done, and
everything can be taken back. A later run over the same archive takes the kept decisions up again (`with_decisions`).

What becomes of a photo:

| decision | status    | position                        | expected error                                  |
|----------|-----------|---------------------------------|-------------------------------------------------|
| accept   | accepted  | the one that the person saw     | as found; null where it is found elsewhere now  |
| correct  | corrected | the person's                    | null: nobody measured how well people point     |
| refuse   | refused   | none                            | null                                            |
| undo     | as found  | as found                        | as found                                        |

The reason is "by hand", with the note if there is one. Exact copies of a photo follow it unless they were decided on themselves.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table, read_table_facts, write_table
from pipelines.catalog.positions import position_problem
from pipelines.geotag.geojson import to_geojson
from pipelines.locate.position import WGS84
from schemas.decisions import Decision, Decisions, decode_decisions
from schemas.errors import ObjectMissing, StorageError
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS, GeotagStatus
from schemas.manifest import encode_json

KEPT: Final = "decisions.json"
FOUND: Final = "found.parquet"

SAME_PLACE_M: Final = 1.0
"""A position that was accepted is the one found now up to this; pages round to a centimetre."""

NAMED: Final = 20
"""Skipped entries that a summary names; `--json` names all."""

STATUSES: Final = {
    "accept": GeotagStatus.ACCEPTED,
    "correct": GeotagStatus.CORRECTED,
    "refuse": GeotagStatus.REFUSED,
}
BY_HAND: Final = pa.array([status.value for status in STATUSES.values()])

Row = dict[str, Any]


class AppliedSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file of decisions. `folio geotag --apply --json` prints it."""

    out: str
    accepted: int
    corrected: int
    refused: int
    undone: int
    skipped: list[str]
    """A line on each entry that was left out."""
    decided: int
    """Photos of the folder whose geotag is by hand now, copies included."""
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = [
            *(f"note: {note}" for note in self.notes),
            *(f"skipped: {line}" for line in self.skipped[:NAMED]),
            *([f"skipped: {len(self.skipped) - NAMED:,} more, see --json"] if len(self.skipped) > NAMED else []),
        ]
        counts = f"{self.accepted:,} accepted, {self.corrected:,} corrected, {self.refused:,} refused, {self.undone:,} undone"
        lines.append(f"{counts}, {len(self.skipped):,} skipped")
        lines.append(f"{self.out}: {self.decided:,} geotags are by hand now, kept in {KEPT}")
        return lines


def apply_decisions(out: str, file: Path, settings: Settings) -> AppliedSummary:
    """Add a file of decisions to those of a results folder, and rewrite its geotags. Nothing is searched again.

    Doing it twice changes nothing, and one that is stopped half-way is made whole by doing it again.

    Args:
        out: the results folder.
        file: what the review page saved.
        settings: of this process.

    Raises:
        ObjectMissing: no geotags there.
        FormatError: the file holds no decisions, or the geotags are not in a format this Folio reads.
        StorageError: the file cannot be read, or the folder not written.
    """
    storage = open_storage(out, settings)
    geotags, facts = _stored(storage)
    given, skipped = decode_decisions(_read(file), where=str(file))
    found = _as_found(storage, geotags)
    good, problems, notes = _checked(given, found, facts["map_version"])
    kept = _kept(storage)
    decisions = {name: said for name, said in {**kept, **good}.items() if said.decision != "undo"}
    decided = _decided(found, decisions)
    _keep(storage, found, decided)
    storage.put(KEPT, encode_json(Decisions(map_version=facts["map_version"], decisions=_in_order(decisions, found))))
    facts = {name: value for name, value in facts.items() if name not in ("kind", "version")}
    geotags = _with_rows(found, decided)
    storage.put("geotags.geojson", to_geojson(geotags, facts))
    write_table(storage, "geotags.parquet", geotags, kind="geotags", facts=facts)
    counts = Counter(said.decision for said in good.values())
    return AppliedSummary(
        out=out,
        accepted=counts["accept"],
        corrected=counts["correct"],
        refused=counts["refuse"],
        undone=counts["undo"],
        skipped=[*skipped, *problems],
        decided=len(decided),
        notes=notes,
    )


def with_decisions(geotags: pa.Table, storage: Storage, *, hidden: Collection[str] = ()) -> pa.Table:
    """Take up the decisions that a results folder keeps, before a new run over the archive writes its geotags there.

    Args:
        geotags: as they were found by this run, in the schema of geotags.
        storage: of the results folder.
        hidden: query ids of photos that nothing may be told of; what was decided on them stays in `decisions.json` alone.

    Returns:
        The geotags to write. What they replace is kept beside them, so that it can still be taken back.

    Raises:
        FormatError: what the folder keeps holds no decisions. Nothing is written then, rather than without them.
    """
    decided = _decided(geotags, {name: said for name, said in _kept(storage).items() if name not in hidden})
    if hidden and len(decided):
        decided = decided.filter(pc.invert(pc.is_in(decided["query_id"], value_set=pa.array(sorted(hidden), pa.string()))))
    if len(decided) or _is_there(storage, FOUND):
        _keep(storage, geotags, decided)
    return _with_rows(geotags, decided)


def by_hand_note(geotags: pa.Table) -> list[str]:
    """Say how many of the geotags of a run are by hand."""
    photos = len(geotags.filter(pc.is_in(geotags["status"], value_set=BY_HAND)))
    return [f"{photos:,} photos were decided by hand before, and stay so ({KEPT})"] if photos else []


def _stored(storage: Storage) -> tuple[pa.Table, dict[str, Any]]:
    try:
        geotags, facts = read_table_facts(storage, "geotags.parquet", kind="geotags")
    except ObjectMissing as error:
        raise ObjectMissing(
            f"{storage.url}/geotags.parquet: not there, so there is nothing to decide on. Nothing was changed. "
            "Give the folder that `folio geotag` wrote: --out DIR"
        ) from error
    return newest_format(geotags), facts


def newest_format(geotags: pa.Table) -> pa.Table:
    """Add the columns that geotags of formats 1 and 2 have not."""
    geotags = geotags.replace_schema_metadata(None)
    return pa.concat_tables([geotags, GEOTAGS.empty_table()], promote_options="default").select(GEOTAGS.names).cast(GEOTAGS)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StorageError(
            f"{file}: could not read this: {error.strerror}. Nothing was changed. Give the file that the review page saved."
        ) from error


def _kept(storage: Storage) -> dict[str, Decision]:
    try:
        data = storage.get(KEPT)
    except ObjectMissing:
        return {}
    kept, _ = decode_decisions(data, where=f"{storage.url}/{KEPT}")
    return {said.query_id: said for said in kept.decisions}


def _is_there(storage: Storage, path: str) -> bool:
    try:
        storage.info(path)
    except ObjectMissing:
        return False
    return True


def _as_found(storage: Storage, geotags: pa.Table) -> pa.Table:
    """Undo in memory what was decided. Rows that a newer run wrote are not by hand, whatever is kept of them."""
    try:
        kept = read_table(storage, FOUND, kind="geotags").replace_schema_metadata(None).cast(GEOTAGS)
    except ObjectMissing:
        return geotags
    by_hand = geotags.filter(pc.is_in(geotags["status"], value_set=BY_HAND))
    return _with_rows(geotags, kept.filter(pc.is_in(kept["query_id"], value_set=by_hand["query_id"].combine_chunks())))


def _keep(storage: Storage, found: pa.Table, decided: pa.Table) -> None:
    """Keep the rows that decisions replace, before they are replaced. Those of decisions taken back stay: until the geotags are
    written, only this file knows them."""
    try:
        names = pc.unique(pa.concat_arrays([*read_table(storage, FOUND, kind="geotags")["query_id"].chunks]))
    except ObjectMissing:
        names = pa.array([], pa.string())
    wanted = pc.or_(
        pc.is_in(found["query_id"], value_set=decided["query_id"].combine_chunks()),
        pc.is_in(found["query_id"], value_set=names),
    )
    write_table(storage, FOUND, found.filter(wanted), kind="geotags")


def _checked(given: Decisions, found: pa.Table, map_version: int) -> tuple[dict[str, Decision], list[str], list[str]]:
    """Sort out what can be applied: decisions by query id, lines on those that cannot, and notes."""
    rows = _rows_by_id(found, {said.query_id for said in given.decisions})
    good: dict[str, Decision] = {}
    problems: list[str] = []
    notes: list[str] = []
    if given.map_version not in (None, map_version):
        notes.append(
            f"the decisions were made on answers of version {given.map_version} of the map, these are of version {map_version}; "
            "positions that were accepted stay those that were seen"
        )
    moved = 0
    for said in given.decisions:
        problem = _problem(said, rows.get(said.query_id))
        if problem:
            problems.append(f"{said.uri} ({said.decision}): {problem}")
            continue
        if said.query_id in good:
            notes.append(f"{said.uri} was decided on more than once; the last decision counts")
        good[said.query_id] = said
        moved += said.decision == "accept" and _position_of(rows[said.query_id], said)[2] is None
    if moved:
        notes.append(f"{moved:,} accepted photos are found elsewhere now, or without an error; they have no expected error")
    return good, problems, notes


def _problem(said: Decision, row: Row | None) -> str | None:
    """Say why a decision cannot be applied."""
    if row is None:
        return f"no photo of this archive has the id {said.query_id}"
    if said.decision in ("refuse", "undo"):
        return None
    if said.lat_deg is None or said.lon_deg is None:
        if said.decision == "correct":
            return "a correction needs lat_deg and lon_deg"
        return None if _places(row) else "nothing was found for it that could be accepted"
    wrong = position_problem(said.lat_deg, said.lon_deg)
    return f"{said.lat_deg}, {said.lon_deg} cannot be a position ({wrong.value})" if wrong else None


def _decided(found: pa.Table, decisions: Mapping[str, Decision]) -> pa.Table:
    """Make the rows of the photos that were decided on, and of their copies. Photos that are not there are passed over."""
    wanted = pa.array(list(decisions), pa.string())
    concerned = found.filter(
        pc.or_(pc.is_in(found["query_id"], value_set=wanted), pc.is_in(found["duplicate_of"], value_set=wanted))
    )
    rows = []
    for row in concerned.drop_columns(["geometry", "bbox"]).to_pylist():
        said = decisions.get(row["query_id"]) or decisions[row["duplicate_of"]]
        if _problem(said, row) is None:
            rows.append(_decided_row(row, said))
    lon, lat = (np.array([row[name] for row in rows], np.float64) for name in ("lon_deg", "lat_deg"))
    geometry, bbox = point_columns(lon, lat)
    plain = pa.Table.from_pylist(rows, pa.schema([each for each in GEOTAGS if each.name not in ("geometry", "bbox")]))
    return plain.append_column("geometry", geometry).append_column("bbox", bbox).cast(GEOTAGS)


def _decided_row(row: Row, said: Decision) -> Row:
    lat_deg, lon_deg, error_m = _position_of(row, said)
    return {
        **row,
        "status": STATUSES[said.decision].value,
        "reason": f"by hand: {said.note}" if said.note else "by hand",
        "lat_deg": lat_deg,
        "lon_deg": lon_deg,
        "expected_error_m": error_m,
    }


def _position_of(row: Row, said: Decision) -> tuple[float | None, float | None, float | None]:
    """Latitude, longitude and expected error by a decision."""
    if said.decision == "refuse":
        return None, None, None
    if said.decision == "correct":
        return said.lat_deg, said.lon_deg, None
    for lat_deg, lon_deg, error_m in _places(row):
        if said.lat_deg is None or WGS84.inv(lon_deg, lat_deg, said.lon_deg, said.lat_deg)[2] <= SAME_PLACE_M:
            return lat_deg, lon_deg, error_m
    return said.lat_deg, said.lon_deg, None


def _places(row: Row) -> list[tuple[float, float, float | None]]:
    """What was found that can be accepted: the position given, then the best one that was not."""
    given = (row["lat_deg"], row["lon_deg"], row["expected_error_m"])
    best = (row["best_lat_deg"], row["best_lon_deg"], row["best_error_m"])
    return [place for place in (given, best) if place[0] is not None]


def _with_rows(table: pa.Table, rows: pa.Table) -> pa.Table:
    """Put rows in the place of those with the same query id."""
    place = pc.index_in(table["query_id"], value_set=rows["query_id"].combine_chunks())
    taken = pc.coalesce(pc.add(place.cast(pa.int64()), len(table)), pa.array(range(len(table)), pa.int64()))
    return pa.concat_tables([table, rows]).take(taken).combine_chunks()


def _rows_by_id(table: pa.Table, wanted: Iterable[str]) -> dict[str, Row]:
    some = table.filter(pc.is_in(table["query_id"], value_set=pa.array(sorted(wanted), pa.string())))
    return {row["query_id"]: row for row in some.drop_columns(["geometry", "bbox"]).to_pylist()}


def _in_order(decisions: Mapping[str, Decision], found: pa.Table) -> list[Decision]:
    """In the order of the archive; those of photos that are not in it now come last."""
    place = {name: at for at, name in enumerate(found["query_id"].to_pylist())}
    return sorted(decisions.values(), key=lambda said: (place.get(said.query_id, len(place)), said.query_id))
