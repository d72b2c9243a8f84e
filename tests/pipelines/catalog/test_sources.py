"""From what a user names to the rows of a catalog."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.settings import Settings
from infra.storage import ObjectInfo, open_storage
from pipelines.catalog.hilbert import hilbert_position
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.sources import HEAD_BYTES, Catalog, list_photos
from schemas.errors import CatalogError
from schemas.images import IMAGES, image_id
from schemas.rejects import REJECTS
from tests.pipelines.catalog.photos import TRICKY_NAMES, encoded, jpeg

SETTINGS = Settings(threads=2)


def catalog(
    *sources: Path | str, needs_position: bool = True, utm_zone: str | None = None, limits: PhotoLimits | None = None
) -> Catalog:
    return list_photos(
        [str(source) for source in sources],
        settings=SETTINGS,
        limits=limits or PhotoLimits(),
        needs_position=needs_position,
        utm_zone=utm_zone,
    )


def uris(found: Catalog) -> list[str]:
    return sorted(found.images["uri"].to_pylist())


def reasons(found: Catalog) -> dict[str, str]:
    return dict(zip(found.rejects["uri"].to_pylist(), found.rejects["reason"].to_pylist(), strict=True))


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def lund(tmp_path: Path) -> Path:
    """A folder of two photos with positions, one below the other."""
    folder = tmp_path / "lund"
    write(folder / "a.jpg", jpeg(55.5, 13.25))
    write(folder / "2026" / "b.jpg", jpeg(55.6, 13.25, shade=20))
    return folder


# Folders and single photos


def test_a_folder_gives_a_row_for_each_photo(lund: Path):
    found = catalog(lund)

    assert uris(found) == ["lund/2026/b.jpg", "lund/a.jpg"]
    assert set(found.images["root"].to_pylist()) == {str(lund.parent)}
    assert found.images.schema.equals(IMAGES)
    assert found.rejects.schema.equals(REJECTS)
    assert (len(found.rejects), found.notes) == (0, [])


def test_a_row_says_all_that_is_known(lund: Path):
    (row,) = catalog(lund / "a.jpg").images.to_pylist()

    assert row["uri"] == "lund/a.jpg"
    assert row["image_id"] == image_id("lund/a.jpg")
    assert row["size_bytes"] == (lund / "a.jpg").stat().st_size
    assert row["checksum"].startswith("sha256:")
    assert (row["lat_deg"], row["lon_deg"]) == pytest.approx((55.5, 13.25))
    assert row["bbox"] == {"xmin": row["lon_deg"], "ymin": row["lat_deg"], "xmax": row["lon_deg"], "ymax": row["lat_deg"]}
    assert len(row["geometry"]) == 21


def test_a_second_run_gives_the_same_rows(lund: Path):
    assert catalog(lund).images.equals(catalog(lund).images)


def test_moved_photos_keep_their_ids_and_keys(lund: Path):
    before = catalog(lund).images
    (lund.parent / "other disk").mkdir()

    after = catalog(lund.rename(lund.parent / "other disk" / "lund")).images

    for column in ("image_id", "photo_key", "uri"):
        assert after[column].equals(before[column])
    assert after["root"][0].as_py() == str(lund.parent / "other disk")


def test_a_photo_has_the_same_id_alone_and_in_its_folder(lund: Path):
    assert set(catalog(lund / "a.jpg").images["image_id"].to_pylist()) < set(catalog(lund).images["image_id"].to_pylist())


def test_changed_bytes_are_a_new_key_of_the_same_photo(lund: Path):
    def key() -> tuple[str, str]:
        (row,) = catalog(lund / "a.jpg").images.select(["image_id", "photo_key"]).to_pylist()
        return row["image_id"], row["photo_key"]

    first = key()
    write(lund / "a.jpg", jpeg(55.5, 13.25, shade=91))
    second = key()

    assert first[0] == second[0]
    assert first[1] != second[1]


def test_a_relative_folder_has_its_own_name(lund: Path, monkeypatch):
    monkeypatch.chdir(lund)

    assert uris(catalog(".")) == uris(catalog(lund)) == uris(catalog("../lund/")) == uris(catalog(f"file://{lund}"))


def test_what_is_no_photo_is_skipped_and_counted(lund: Path):
    for name in ("c.jpg.xmp", "notes.txt", "README", ".hidden.jpg", "._a.jpg", ".thumbnails/a.jpg"):
        write(lund / name, b"x")

    found = catalog(lund)

    assert uris(found) == ["lund/2026/b.jpg", "lund/a.jpg"]
    assert len(found.rejects) == 0
    assert found.notes == [f"{lund}: 6 files that are no photos were skipped: 3 .jpg, 1 .txt, 1 .xmp, 1 no ending"]


@pytest.mark.parametrize("name", TRICKY_NAMES)
def test_any_file_name_is_read_and_kept_as_it_is(tmp_path: Path, name: str):
    write(tmp_path / "odd #1 %20 ü" / name, jpeg(55.5, 13.25))

    assert uris(catalog(tmp_path / "odd #1 %20 ü")) == [f"odd #1 %20 ü/{name}"]


def test_a_name_that_is_not_utf8_is_rejected(lund: Path):
    try:
        write(Path(os.fsdecode(bytes(lund) + b"/\xfc.jpg")), jpeg(55.5, 13.25))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")

    assert reasons(catalog(lund)) == {"lund/\\udcfc.jpg": "unreadable"}


def test_linked_photos_are_read_and_circles_of_links_are_not_followed(lund: Path):
    (lund / "link.jpg").symlink_to(write(lund.parent / "far" / "c.jpg", jpeg(1, 2)))
    (lund / "loop").symlink_to(lund)

    assert uris(catalog(lund)) == ["lund/2026/b.jpg", "lund/a.jpg", "lund/link.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", "empty-file"),
        ("text.jpg", b"hello", "not-an-image"),
        ("phone.heic", b"\0\0\0\x18ftypheic", "damaged"),
        ("scan.jp2", b"\0\0\0\x0cjP  ", "unsupported-format"),
        ("cut.jpg", jpeg(1, 2)[:30], "truncated"),
        ("nowhere.jpg", jpeg(), "no-position"),
        ("sea.jpg", jpeg(0, 0), "null-island"),
        ("polar.jpg", jpeg(91, 0), "position-invalid"),
    ],
)
def test_a_bad_photo_is_rejected_with_a_reason_and_the_others_are_kept(lund: Path, name: str, data: bytes, reason: str):
    write(lund / name, data)

    found = catalog(lund)

    assert reasons(found) == {f"lund/{name}": reason}
    assert len(found.images) == 2
    (reject,) = found.rejects.to_pylist()
    assert (reject["stage"], bool(reject["detail"]), reject["root"]) == ("catalog", True, str(lund.parent))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_not_be_read_is_rejected(lund: Path):
    (lund / "a.jpg").chmod(0)

    assert reasons(catalog(lund)) == {"lund/a.jpg": "unreadable"}


def test_limits_are_kept_without_reading_what_breaks_them(lund: Path):
    write(lund / "big.jpg", jpeg(1, 2) + b"\0" * 5000)
    write(lund / "wide.jpg", jpeg(1, 2, size=(400, 300)))

    found = catalog(lund, limits=PhotoLimits(max_bytes=5000, max_pixels=119_999))

    assert reasons(found) == {"lund/big.jpg": "too-many-bytes", "lund/wide.jpg": "too-many-pixels"}


def test_queries_without_a_position_are_kept_without_one(lund: Path):
    write(lund / "nowhere.jpg", jpeg())
    write(lund / "sea.jpg", jpeg(0, 0))

    found = catalog(lund, needs_position=False)

    assert len(found.rejects) == 0
    by_uri = {row["uri"]: row for row in found.images.to_pylist()}
    for name in ("lund/nowhere.jpg", "lund/sea.jpg"):
        assert (by_uri[name]["lat_deg"], by_uri[name]["geometry"], by_uri[name]["bbox"]) == (None, None, None)
    assert found.images["uri"].to_pylist()[2:] == ["lund/nowhere.jpg", "lund/sea.jpg"], "last, by name"


def test_nothing_is_written_beside_the_photos(lund: Path):
    """Neither by listing nor by reading, so that a mount may be read-only."""
    write(lund / "a.jpg.json", "{}")
    write(lund / "x.tar", b"no tar")

    def everything() -> list[tuple[str, int, int]]:
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in [lund, *lund.rglob("*")])

    before = everything()
    for path in (lund, lund / "2026"):
        path.chmod(0o555)
    try:
        found = catalog(lund)
        reader = PhotoReader(SETTINGS, PhotoLimits())
        for row in found.images.select(["uri", "root", "size_bytes", "checksum"]).to_pylist():
            assert reader.read(**row)
    finally:
        for path in (lund, lund / "2026"):
            path.chmod(0o755)

    assert len(found.images) == 2
    assert everything() == before


def test_photos_of_the_same_bytes_are_duplicates_of_the_first_by_name(lund: Path):
    for name in ("z.jpg", "2026/0.jpg"):
        write(lund / name, (lund / "a.jpg").read_bytes())

    found = catalog(lund)

    assert len(found.images) == 4
    assert found.duplicates() == {
        image_id("lund/a.jpg"): image_id("lund/2026/0.jpg"),
        image_id("lund/z.jpg"): image_id("lund/2026/0.jpg"),
    }


def test_photos_of_one_etag_but_another_size_are_no_duplicates(monkeypatch):
    store = StoreWithEtags({"a.jpg": jpeg(1, 2), "b.jpg": jpeg(1, 2), "c.jpg": jpeg(1, 2) + b"\0"})
    store.etag = "the same"
    monkeypatch.setattr("pipelines.catalog.reading.open_storage", lambda url, settings: store)

    found = catalog("s3://survey/lund")

    assert found.duplicates() == {image_id("s3://survey/lund/b.jpg"): image_id("s3://survey/lund/a.jpg")}


# Sources that cannot be used


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "missing: no such folder or file. Nothing was written. Check the path."),
        ("empty", r"empty: no photos in it. Nothing was written. Photos end in .jpg"),
        ("papers", r"papers: no photos in it \(2 .pdf\). Nothing was written."),
        ("papers/1.pdf", "1.pdf: no folder, tar, photo or table. Nothing was written."),
        ("s3://key:secret@bucket/lund", r"s3://\.\.\.@bucket: credentials in a URL would end up in the map"),
    ],
)
def test_a_source_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, monkeypatch, source: str, message: str):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "papers" / "1.pdf", b"%PDF")
    write(tmp_path / "papers" / "2.pdf", b"%PDF")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CatalogError, match=message) as caught:
        catalog(source)
    assert "\n" not in str(caught.value)


# Names


def test_a_name_with_a_position_goes_before_exif(tmp_path: Path):
    write(tmp_path / "@500000.00@0000000.00@31@N@0.00000@3.00000@@.jpg", jpeg(55.5, 13.25))

    (row,) = catalog(tmp_path).images.to_pylist()

    assert (row["lat_deg"], row["lon_deg"]) == pytest.approx((0, 3), abs=1e-9)


def test_the_two_field_form_needs_the_zone(tmp_path: Path):
    write(tmp_path / "@500000.00@0000000.00@.jpg", jpeg())

    with pytest.raises(CatalogError, match="--utm-zone"):
        catalog(tmp_path)
    assert catalog(tmp_path, utm_zone="31U").images["lon_deg"].to_pylist() == pytest.approx([3])


# Tables


def test_a_table_names_photos_beside_it_and_says_where_they_are(lund: Path):
    table = write(lund / "photos.csv", "uri,lat_deg,lon_deg,sequence_id\na.jpg,10,20,s1\n2026/b.jpg,11,21,s1\n")

    found = catalog(table)

    by_uri = {row["uri"]: row for row in found.images.to_pylist()}
    assert {uri: (row["lat_deg"], row["lon_deg"], row["sequence_id"]) for uri, row in by_uri.items()} == {
        "a.jpg": (10, 20, "s1"),
        "2026/b.jpg": (11, 21, "s1"),
    }
    assert by_uri["a.jpg"]["root"] == str(lund)


def test_where_a_table_says_nothing_the_photo_is_asked(lund: Path):
    table = write(lund / "photos.csv", "uri,lat_deg,lon_deg\na.jpg,,\n")

    assert catalog(table).images["lat_deg"].to_pylist() == pytest.approx([55.5])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_of_an_archive_need_not_say_where_photos_are(lund: Path, form: str):
    write(lund / "nowhere.jpg", jpeg())
    columns = {
        "path": ["a.jpg", "nowhere.jpg"],
        "taken_at": ["2026-05-01T12:00:00.250+02:00", None],
        "sequence": ["drive", "drive"],
    }
    if form == "csv":
        write(lund / "photos.csv", "path,taken_at,sequence\na.jpg,2026-05-01T12:00:00.250+02:00,drive\nnowhere.jpg,,drive\n")
    else:
        pq.write_table(pa.table(columns), lund / "photos.parquet")

    found = catalog(lund / f"photos.{form}", needs_position=False)

    first, second = sorted(found.images.to_pylist(), key=lambda row: row["uri"])
    assert (first["lat_deg"], second["lat_deg"]) == (pytest.approx(55.5), None)
    assert (first["taken_at"], second["taken_at"]) == (datetime(2026, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC), None)
    assert (first["sequence_id"], second["sequence_id"]) == ("drive", "drive")
    with pytest.raises(CatalogError, match="no columns lat_deg and lon_deg"):
        catalog(lund / f"photos.{form}")


def test_wrong_positions_in_a_table_are_rejected_by_row(lund: Path):
    table = write(lund / "photos.csv", "uri,lat_deg,lon_deg\na.jpg,95,13\n2026/b.jpg,nan,13\n")

    found = catalog(table)

    assert found.rejects.select(["uri", "reason", "detail"]).to_pylist() == [
        {"uri": "a.jpg", "reason": "position-invalid", "detail": "row 1 of photos.csv gives latitude 95, longitude 13"},
        {"uri": "2026/b.jpg", "reason": "position-invalid", "detail": "row 2 of photos.csv gives latitude nan, longitude 13"},
    ]


def test_wrong_positions_of_queries_are_disbelieved_and_counted(lund: Path):
    table = write(lund / "photos.csv", "uri,lat_deg,lon_deg\na.jpg,95,13\n2026/b.jpg,11,21\n")

    found = catalog(table, needs_position=False)

    assert found.images["lat_deg"].to_pylist() == [11, None]
    assert found.notes == ["1 photos are said to be nowhere on Earth; taken as unknown"]


@pytest.mark.parametrize(
    "uri",
    ["../secret.jpg", "2026/../../secret.jpg", "http://127.0.0.1/a.jpg", "HTTPS://example.org/a.jpg", "ftp://example.org/a.jpg"],
)
def test_a_table_leads_nowhere_outside_its_folder_and_into_no_web(lund: Path, uri: str):
    write(lund.parent / "secret.jpg", jpeg(1, 2))

    found = catalog(write(lund / "photos.csv", f"uri,lat,lon\n{uri},1,2\n"))

    assert reasons(found) == {uri: "outside-root"}


def test_a_table_of_ones_own_may_name_files_by_their_full_path(lund: Path):
    photo = lund / "a.jpg"
    table = write(lund.parent / "tables" / "photos.csv", f"uri,lat,lon\n{photo},1,2\n")

    (row,) = catalog(table).images.to_pylist()

    assert (row["uri"], row["root"]) == (str(photo), "")


def test_rows_that_name_no_file_or_a_missing_one_are_rejected(lund: Path):
    found = catalog(write(lund / "photos.csv", "uri,lat,lon\n,1,2\ngone.jpg,1,2\n2026,1,2\n"))

    assert found.rejects["reason"].to_pylist() == ["missing", "missing", "missing"]


@pytest.mark.parametrize("name", ["nul\0byte.jpg", ".", "/", "memory://", "a\\b.jpg", "x" * 300])
def test_names_that_no_file_can_have_reject_a_row_and_no_more(lund: Path, name: str):
    pq.write_table(pa.table({"uri": [name, "a.jpg"], "lat": [1.0, 1.0], "lon": [2.0, 2.0]}), lund / "photos.parquet")

    found = catalog(lund / "photos.parquet")

    assert uris(found) == ["a.jpg"]
    assert reasons(found)[name] in ("missing", "unreadable")


# Mixtures


def test_sources_add_up_and_a_photo_named_twice_counts_once(lund: Path):
    found = catalog(lund, lund / "a.jpg", lund)

    assert uris(found) == ["lund/2026/b.jpg", "lund/a.jpg"]
    assert len(found.rejects) == 0


def test_the_first_mention_of_a_photo_counts(lund: Path):
    table = write(lund / "photos.csv", "uri,lat,lon\na.jpg,10,20\n")

    found = catalog(table, lund)

    assert {row["uri"]: pytest.approx(row["lat_deg"]) for row in found.images.to_pylist()} == {
        "a.jpg": 10,
        "lund/2026/b.jpg": 55.6,
    }


def test_another_file_under_a_name_that_is_taken_is_rejected(lund: Path):
    write(lund.parent / "copy" / "lund" / "a.jpg", jpeg(1, 2))

    found = catalog(lund, lund.parent / "copy" / "lund")

    assert len(found.images) == 2
    assert reasons(found) == {"lund/a.jpg": "duplicate-name"}


# Order


def test_rows_follow_the_hilbert_curve_and_equal_places_their_names(tmp_path: Path):
    rng = np.random.default_rng(7)
    places = rng.integers(-80, 80, (30, 2)).tolist()
    for number, (lat, lon) in enumerate(places):
        write(tmp_path / "world" / f"{number:02}.jpg", jpeg(lat, lon))
    write(tmp_path / "world" / "00 again.jpg", jpeg(*places[0]))

    images = catalog(tmp_path / "world").images

    along = hilbert_position(images["lon_deg"].to_numpy(), images["lat_deg"].to_numpy())
    names = images["uri"].to_pylist()
    assert list(zip(along.tolist(), names, strict=True)) == sorted(zip(along.tolist(), names, strict=True))


# Buckets


@pytest.fixture
def bucket() -> str:
    return f"memory://{uuid4().hex}/survey"


def test_a_bucket_gives_full_urls(bucket: str):
    storage = open_storage(bucket, SETTINGS)
    storage.put("2026/a b #1.jpg", jpeg(55.5, 13.25))
    storage.put("2026/notes.txt", b"x")

    found = catalog(f"{bucket}/")

    (row,) = found.images.to_pylist()
    assert (row["uri"], row["root"]) == (f"{bucket}/2026/a b #1.jpg", "")
    assert found.notes == [f"{bucket}: 1 files that are no photos were skipped: 1 .txt"]
    assert uris(catalog(f"{bucket}/2026/a b #1.jpg")) == [row["uri"]]


def test_an_empty_bucket_and_a_missing_photo_are_said(bucket: str):
    with pytest.raises(CatalogError, match="no photos in it"):
        catalog(bucket)
    assert reasons(catalog(f"{bucket}/gone.jpg")) == {f"{bucket}/gone.jpg": "missing"}


def test_a_table_in_a_bucket_may_name_only_what_lies_below_it(bucket: str, lund: Path):
    storage = open_storage(bucket, SETTINGS)
    storage.put("a.jpg", jpeg())
    table = f"uri,lat,lon\na.jpg,1,2\n{bucket}/a.jpg,1,2\n{lund}/a.jpg,1,2\ns3://other/a.jpg,1,2\n../a.jpg,1,2\n"
    storage.put("photos.csv", table.encode())

    found = catalog(f"{bucket}/photos.csv")

    assert uris(found) == ["a.jpg"]
    assert found.images["root"].to_pylist() == [bucket]
    assert reasons(found) == dict.fromkeys([f"{lund}/a.jpg", "s3://other/a.jpg", "../a.jpg"], "outside-root")


class StoreWithEtags:
    """Stands for S3: has etags, and remembers how many bytes were read of each object."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = {f"lund/{name}": data for name, data in objects.items()}
        self.read_bytes = dict.fromkeys(objects, 0)
        self.etag = "tag of {path}"

    def list(self) -> list[ObjectInfo]:
        return [replace(self.info(path), path=path.removeprefix("lund/")) for path in sorted(self.objects)]

    def info(self, path: str) -> ObjectInfo:
        return ObjectInfo(path=path, size_bytes=len(self.objects[path]), etag=self.etag.format(path=path), modified_at=None)

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        data = self.objects[path][start:stop]
        self.read_bytes[path.removeprefix("lund/")] += len(data)
        return data


def test_of_a_photo_in_a_bucket_only_as_much_is_read_as_its_format_needs(monkeypatch):
    """A JPEG says all at its beginning, a PNG may say it at its end, and of what is no photo the first bytes are enough."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (400, 400, 3), dtype=np.uint8))
    png = encoded(noise, "PNG")
    store = StoreWithEtags(
        {
            "jpeg.jpg": jpeg(55.5, 13.25) + b"\0" * 10 * HEAD_BYTES,
            "long header.jpg": jpeg(55.5, 13.25, comment_bytes=5 * HEAD_BYTES),
            "png.png": png,
            "text.jpg": b"hello" + b"\0" * 10 * HEAD_BYTES,
        }
    )
    monkeypatch.setattr("pipelines.catalog.reading.open_storage", lambda url, settings: store)

    found = catalog("s3://survey/lund", needs_position=False)

    checksums = dict(zip(found.images["uri"].to_pylist(), found.images["checksum"].to_pylist(), strict=True))
    assert checksums["s3://survey/lund/jpeg.jpg"] == "etag:tag of lund/jpeg.jpg"
    assert reasons(found) == {"s3://survey/lund/text.jpg": "not-an-image"}
    assert store.read_bytes == {
        "jpeg.jpg": HEAD_BYTES,
        "long header.jpg": HEAD_BYTES + len(store.objects["lund/long header.jpg"]),
        "png.png": HEAD_BYTES + len(png),
        "text.jpg": HEAD_BYTES,
    }
