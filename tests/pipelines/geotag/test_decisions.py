"""Decisions by hand: what becomes of a geotag, what is refused, and that everything can be done twice and taken back."""

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table, read_table_facts, write_table
from pipelines.geotag.decisions import apply_decisions, with_decisions
from pipelines.geotag.geojson import to_geojson
from schemas.errors import FormatError, ObjectMissing
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS

SETTINGS = Settings(threads=1)
FACTS = {"map_version": 7, "model": "folio-small", "trained": True}

# name, status, position given, best position, copy of
PHOTOS = [
    ("sure", "answered", (50.0, 10.0), (50.0, 10.0), None),
    ("doubtful", "unknown", None, (50.1, 10.1), None),
    ("copy", "unknown", None, (50.1, 10.1), "doubtful"),
    ("lost", "unknown", None, None, None),
    ("between", "interpolated", (50.2, 10.2), None, None),
]
NAMES = [name for name, *_ in PHOTOS]


def geotags(*, moved: bool = False) -> pa.Table:
    """The table above; with `moved`, as a later run might find them: the best positions a kilometre further north."""
    rows = []
    for name, status, given_at, best, copy_of in PHOTOS:
        if moved and best:
            best = (best[0] + 0.01, best[1])
        rows.append(
            {
                "query_id": name,
                "uri": f"{name}.jpg",
                "root": "/photos",
                "status": status,
                "reason": "too little agrees" if status == "unknown" else None,
                "lat_deg": given_at[0] if given_at else None,
                "lon_deg": given_at[1] if given_at else None,
                "expected_error_m": 12.0 if given_at else None,
                "support": 0.5,
                "best_lat_deg": best[0] if best else None,
                "best_lon_deg": best[1] if best else None,
                "best_error_m": 20.0 if best else None,
                "duplicate_of": copy_of,
                "pool_size": 3,
            }
        )
    known = [[float("nan") if row[name] is None else row[name] for row in rows] for name in ("lon_deg", "lat_deg")]
    geometry, bbox = point_columns(*(pa.array(degrees).to_numpy() for degrees in known))
    plain = pa.Table.from_pylist(rows, pa.schema([each for each in GEOTAGS if each.name not in ("geometry", "bbox")]))
    return plain.append_column("geometry", geometry).append_column("bbox", bbox).cast(GEOTAGS)


def write(storage: Storage, table: pa.Table) -> None:
    storage.put("geotags.geojson", to_geojson(table, FACTS))
    write_table(storage, "geotags.parquet", table, kind="geotags", facts=FACTS)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path / "out"), SETTINGS)
    write(storage, geotags())
    return storage


def entry(name: str, decision: str, at: tuple[Any, Any] | None = None, note: str = "") -> dict[str, Any]:
    lat, lon = at or (None, None)
    return {"query_id": name, "uri": f"{name}.jpg", "decision": decision, "lat_deg": lat, "lon_deg": lon, "note": note}


def save(tmp_path: Path, *entries: Any, map_version: int | None = 7, format_version: int = 1) -> Path:
    file = tmp_path / "saved.json"
    document = {"format_version": format_version, "map_version": map_version, "decisions": entries}
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def rows_of(storage: Storage) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in read_table(storage, "geotags.parquet", kind="geotags").to_pylist()}


def place(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    return row["lat_deg"], row["lon_deg"], row["expected_error_m"]


def test_an_accepted_photo_gets_the_position_that_was_found_and_its_error(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("doubtful", "accept", (50.1, 10.1), "the church")), SETTINGS)

    row = rows_of(folder)["doubtful"]
    assert (row["status"], row["reason"]) == ("accepted", "by hand: the church")
    assert place(row) == (50.1, 10.1, 20.0)
    assert struct.unpack("<BIdd", row["geometry"])[2:] == (10.1, 50.1)
    assert row["bbox"]["xmin"] == 10.1


def test_a_position_that_the_page_rounded_is_still_the_one_that_was_found(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("doubtful", "accept", (50.10000004, 10.1))), SETTINGS)

    assert place(rows_of(folder)["doubtful"]) == (50.1, 10.1, 20.0)


def test_an_interpolated_photo_is_accepted_where_it_was_put(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("between", "accept")), SETTINGS)

    assert place(rows_of(folder)["between"]) == (50.2, 10.2, 12.0)


def test_a_corrected_photo_gets_the_persons_position_without_an_error_that_nobody_measured(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("lost", "correct", (-33.9, 179.5))), SETTINGS)

    row = rows_of(folder)["lost"]
    assert (row["status"], row["reason"]) == ("corrected", "by hand")
    assert place(row) == (-33.9, 179.5, None)


def test_a_refused_photo_has_no_position(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse")), SETTINGS)

    row = rows_of(folder)["sure"]
    assert row["status"] == "refused"
    assert place(row) == (None, None, None)
    assert row["geometry"] is None
    assert row["best_lat_deg"] == 50.0  # what was found is not forgotten


def test_copies_follow_their_photo_unless_they_were_decided_on_themselves(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("doubtful", "accept")), SETTINGS)
    assert rows_of(folder)["copy"]["status"] == "accepted"

    apply_decisions(folder.url, save(tmp_path, entry("copy", "refuse")), SETTINGS)
    assert [rows_of(folder)[name]["status"] for name in ("doubtful", "copy")] == ["accepted", "refused"]


def test_the_geojson_and_the_other_photos_say_the_same_as_the_table(folder: Storage, tmp_path: Path):
    before = rows_of(folder)
    apply_decisions(folder.url, save(tmp_path, entry("lost", "correct", (1.0, 2.0))), SETTINGS)

    written = json.loads(folder.get("geotags.geojson"))
    assert [feature["id"] for feature in written["features"]] == NAMES
    assert written["features"][3]["geometry"] == {"type": "Point", "coordinates": [2.0, 1.0]}
    assert written["folio"] == FACTS
    assert {name: row for name, row in rows_of(folder).items() if name != "lost"} == {
        name: row for name, row in before.items() if name != "lost"
    }
    assert read_table_facts(folder, "geotags.parquet", kind="geotags")[1]["map_version"] == 7


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (entry("stranger", "refuse"), "stranger.jpg.*no photo of this archive has the id stranger"),
        (entry("doubtful", "correct"), "doubtful.jpg.*needs lat_deg and lon_deg"),
        (entry("doubtful", "correct", (90.5, 10.0)), "90.5, 10.0 cannot be a position.*position-invalid"),
        (entry("doubtful", "correct", (0, 0)), "cannot be a position.*null-island"),
        (entry("doubtful", "accept", (0.0, 0.0)), "cannot be a position.*null-island"),
        (entry("doubtful", "correct", (float("nan"), 1.0)), None),
        (entry("lost", "accept"), "lost.jpg.*nothing was found"),
        (entry("doubtful", "delete"), "entry 1 .doubtful.jpg.*delete"),
        (entry("doubtful", "correct", ("50", 10.0)), "entry 1 .doubtful.jpg.*float"),
        ({"decision": "accept"}, "entry 1.*query_id"),
        (["accept"], "entry 1 .not an object"),
        (None, "entry 1 .not an object"),
    ],
)
def test_a_bad_entry_is_named_and_left_out_and_the_good_ones_are_applied(
    folder: Storage, tmp_path: Path, bad: Any, said: str | None
):
    file = save(tmp_path, bad, entry("sure", "refuse"))
    if said is None:  # NaN is not JSON: nothing of such a file can be trusted
        with pytest.raises(FormatError, match=r"saved\.json: expected decisions, found .*Nothing was changed"):
            apply_decisions(folder.url, file, SETTINGS)
        assert rows_of(folder)["sure"]["status"] == "answered"
        return

    summary = apply_decisions(folder.url, file, SETTINGS)

    assert len(summary.skipped) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(summary.skipped[0])
    assert [rows_of(folder)[name]["status"] for name in ("sure", "doubtful", "lost")] == ["refused", "unknown", "unknown"]


def test_a_file_of_another_kind_or_a_newer_format_changes_nothing(folder: Storage, tmp_path: Path):
    before = folder.get("geotags.parquet")
    (tmp_path / "photo.json").write_bytes(b"\xff\xd8\xff")

    with pytest.raises(FormatError, match="expected decisions"):
        apply_decisions(folder.url, tmp_path / "photo.json", SETTINGS)
    with pytest.raises(FormatError, match="decisions format 2 was found, but this Folio reads format 1"):
        apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse"), format_version=2), SETTINGS)
    assert folder.get("geotags.parquet") == before
    assert [each.path for each in folder.list()] == ["geotags.geojson", "geotags.parquet"]


def test_a_folder_without_geotags_is_refused(tmp_path: Path):
    with pytest.raises(ObjectMissing, match=r"geotags\.parquet: not there, so there is nothing to decide on"):
        apply_decisions(str(tmp_path / "empty"), save(tmp_path, entry("sure", "refuse")), SETTINGS)


def test_decisions_on_another_version_of_the_map_are_named_and_keep_what_the_person_saw(folder: Storage, tmp_path: Path):
    file = save(tmp_path, entry("doubtful", "accept", (50.15, 10.1)), map_version=6)

    summary = apply_decisions(folder.url, file, SETTINGS)

    assert "version 6 of the map, these are of version 7" in summary.notes[0]
    assert "1 accepted photos are found elsewhere now" in summary.notes[1]
    assert place(rows_of(folder)["doubtful"]) == (50.15, 10.1, None)


def test_of_two_decisions_on_one_photo_the_last_counts_and_it_is_said(folder: Storage, tmp_path: Path):
    summary = apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse"), entry("sure", "accept")), SETTINGS)

    assert rows_of(folder)["sure"]["status"] == "accepted"
    assert "sure.jpg was decided on more than once" in summary.notes[0]
    assert (summary.accepted, summary.refused, summary.decided) == (1, 0, 1)


def test_files_add_up_and_the_folder_keeps_them_all(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse")), SETTINGS)
    summary = apply_decisions(folder.url, save(tmp_path, entry("lost", "correct", (1.0, 2.0))), SETTINGS)

    assert summary.decided == 2
    assert [each["query_id"] for each in json.loads(folder.get("decisions.json"))["decisions"]] == ["sure", "lost"]


def test_what_the_folder_keeps_can_itself_be_applied(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse"), entry("lost", "correct", (1.0, 2.0))), SETTINGS)
    before = {each.path: folder.get(each.path) for each in folder.list()}

    apply_decisions(folder.url, tmp_path / "out" / "decisions.json", SETTINGS)

    assert {each.path: folder.get(each.path) for each in folder.list()} == before


def test_a_later_run_takes_the_decisions_up_again(folder: Storage, tmp_path: Path):
    """It finds the doubtful photo elsewhere; the person's position stays, and can still be taken back."""
    apply_decisions(folder.url, save(tmp_path, entry("doubtful", "accept", (50.1, 10.1)), entry("sure", "refuse")), SETTINGS)

    write(folder, with_decisions(geotags(moved=True), folder))

    rows = rows_of(folder)
    assert [rows[name]["status"] for name in NAMES] == ["refused", "accepted", "accepted", "unknown", "interpolated"]
    assert place(rows["doubtful"]) == (50.1, 10.1, None)
    apply_decisions(folder.url, save(tmp_path, entry("doubtful", "undo"), entry("sure", "undo")), SETTINGS)
    assert read_table(folder, "geotags.parquet", kind="geotags").select(GEOTAGS.names).equals(geotags(moved=True))


def test_a_later_run_over_fewer_photos_forgets_no_decision(folder: Storage, tmp_path: Path):
    apply_decisions(folder.url, save(tmp_path, entry("sure", "refuse"), entry("lost", "correct", (1.0, 2.0))), SETTINGS)

    write(folder, with_decisions(geotags().slice(1), folder))
    assert rows_of(folder)["lost"]["status"] == "corrected"

    write(folder, with_decisions(geotags(), folder))
    assert rows_of(folder)["sure"]["status"] == "refused"


def test_a_run_without_decisions_is_left_as_it_is(folder: Storage):
    assert with_decisions(geotags(), folder).equals(geotags())
    assert [each.path for each in folder.list()] == ["geotags.geojson", "geotags.parquet"]


def test_geotags_of_older_formats_are_decided_on_too(folder: Storage, tmp_path: Path):
    write_table(folder, "geotags.parquet", geotags().drop_columns(["best_lat_deg", "duplicate_of"]), kind="geotags", facts=FACTS)

    apply_decisions(folder.url, save(tmp_path, entry("sure", "accept"), entry("lost", "correct", (1.0, 2.0))), SETTINGS)

    assert [rows_of(folder)[name]["status"] for name in ("sure", "lost")] == ["accepted", "corrected"]


POSITIONS = st.one_of(st.none(), st.tuples(st.floats(-90, 90), st.floats(-180, 180)))
ENTRIES = st.lists(
    st.builds(entry, st.sampled_from([*NAMES, "stranger"]), st.sampled_from(["accept", "correct", "refuse", "undo"]), POSITIONS),
    max_size=6,
)


@given(files=st.lists(ENTRIES, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_applying_twice_is_applying_once_and_undoing_leaves_the_bytes_there_were(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[dict[str, Any]]]
):
    tmp_path = tmp_path_factory.mktemp("law")
    folder = open_storage(f"memory://{tmp_path}", SETTINGS)
    write(folder, geotags())
    names = ("geotags.parquet", "geotags.geojson")
    before = [folder.get(name) for name in names]

    for entries in files:
        file = save(tmp_path, *entries)
        apply_decisions(folder.url, file, SETTINGS)
        once = {each.path: folder.get(each.path) for each in folder.list()}
        apply_decisions(folder.url, file, SETTINGS)
        assert {each.path: folder.get(each.path) for each in folder.list()} == once

    apply_decisions(folder.url, save(tmp_path, *(entry(name, "undo") for name in NAMES)), SETTINGS)
    assert [folder.get(name) for name in names] == before


@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("decision", ["refuse", "undo"])
def test_one_that_is_stopped_half_way_is_made_whole_by_doing_it_again(
    folder: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, decision: str
):
    """Also where it was to take an earlier decision back: what was found is not lost before the geotags have it."""
    apply_decisions(folder.url, save(tmp_path, entry("sure", "correct", (1.0, 2.0))), SETTINGS)
    file = save(tmp_path, entry("sure", decision))
    put, written = type(folder).put, 0

    def stopped(self: Storage, path: str, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > writes:
            raise KeyboardInterrupt
        put(self, path, data)

    with monkeypatch.context() as patched:
        patched.setattr(type(folder), "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            apply_decisions(folder.url, file, SETTINGS)

    apply_decisions(folder.url, file, SETTINGS)

    assert rows_of(folder)["sure"]["status"] == ("refused" if decision == "refuse" else "answered")
    apply_decisions(folder.url, save(tmp_path, entry("sure", "undo")), SETTINGS)
    assert read_table(folder, "geotags.parquet", kind="geotags").select(GEOTAGS.names).equals(geotags())
