"""What verify-deleted finds of photos taken down, wherever and under whatever name it lies, and what it cannot prove."""

import hashlib
import io
from pathlib import Path
from uuid import uuid4

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import commits
from infra.commits import read_head, receipt_path
from infra.settings import Settings
from infra.storage import TEMPORARY_SUFFIX, Storage, open_storage
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify_deleted import Finding, verify_deleted
from schemas.errors import MapMissing
from schemas.manifest import encode_json
from tests.pipelines.maintain.photo_maps import images, name, publish_map, uri, write_segment

PHOTO = b"the bytes of photo 99"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture
def clean(storage: Storage) -> Storage:
    """Photos 0 to 9 in two segments and one shard; 99, never in the map, is taken down by name."""
    publish_map(storage, [write_segment(storage, images(range(5))), write_segment(storage, images(range(5, 10)))])
    takedown(storage, TakedownRequest(uris=frozenset({uri(99)})))
    return storage


def found(storage: Storage, **options: object) -> tuple[list[str], list[str]]:
    """Paths that are left and that cannot be proved."""
    done = verify_deleted(storage, **options)
    assert done.proved == (not done.left and not done.unproved)
    assert done.lines()
    return [one.path for one in done.left], [one.path for one in done.unproved]


def parquet(columns: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def test_a_clean_map_is_proved_and_every_object_was_read(clean: Storage):
    done = verify_deleted(clean)

    infos = list(clean.list())
    assert done.proved
    assert (done.objects, done.size_bytes, done.photos) == (len(infos), sum(info.size_bytes for info in infos), 1)


def test_a_map_that_nothing_was_taken_down_from_is_clean(storage: Storage):
    publish_map(storage, [write_segment(storage, images(range(3)))])

    assert verify_deleted(storage).proved


def test_before_the_rebuild_everything_of_the_photos_segment_is_named(clean: Storage):
    takedown(clean, TakedownRequest(image_ids=frozenset({name(3)})))
    segment = next(
        entry.segment_id
        for entry in read_head(clean).segments
        if any(info.path for info in clean.list(f"segments/{entry.segment_id}")) and entry.masked_rows
    )
    tables = {"images.parquet", "descriptors.parquet"}
    features = [info.path for info in clean.list(f"segments/{segment}") if "/local_features.zarr/" in info.path]
    shard = read_head(clean).index.shards[0].file.path

    left, unproved = found(clean)

    assert {path.rsplit("/", 1)[1] for path in left if path.endswith(".parquet")} == tables
    assert {*features, shard} <= set(left)
    assert unproved == []


@pytest.mark.parametrize(
    "path", ["segments/x/y/other.parquet", "left-over", "tombstones/not-one.parquet", "runs/r/rejects.parquet"]
)
@pytest.mark.parametrize(
    "columns",
    [
        {"image_id": [name(1), name(99)]},
        {"anything": pa.array([uri(99)]).dictionary_encode()},
        {"nested": [{"deep": [uri(1)]}, {"deep": [uri(2), uri(99)]}]},
        {"pairs": pa.array([[("k", uri(99))]], pa.map_(pa.string(), pa.string()))},
    ],
)
def test_a_table_of_any_shape_and_name_is_searched_by_digest(clean: Storage, path: str, columns: dict[str, object]):
    clean.put(path, parquet(columns))

    assert found(clean) == ([path], [])


@pytest.mark.parametrize(
    "data",
    [
        f'{{"a": ["x", {{"{uri(99)}": 1}}]}}'.encode(),
        f'[{{"photo": "{uri(99)}"}}]'.encode(),
        f"uri,lat\n{uri(1)},1\n{uri(99)},2\n".encode(),
        f"log: {name(99)} encoded".encode(),
        b"\xff\x00" + name(99).upper().encode() + b"\x00",
        b"0" + name(99).encode() + b"0",
    ],
)
def test_json_text_and_bytes_are_searched_too(clean: Storage, data: bytes):
    clean.put("notes/of-somebody", data)

    assert found(clean)[0] == ["notes/of-somebody"]


def test_the_photo_itself_is_known_by_its_bytes_and_by_its_name(storage: Storage):
    table = images([99, 1])
    checksum = "sha256:" + hashlib.sha256(PHOTO).hexdigest()
    table = table.set_column(table.schema.get_field_index("checksum"), "checksum", pa.array([checksum, "sha256:1"]))
    publish_map(storage, [write_segment(storage, table)])
    takedown(storage, TakedownRequest(image_ids=frozenset({name(99)})))
    storage.put("copy", PHOTO)
    storage.put(uri(99), b"something else")

    assert {"copy", uri(99)} <= set(found(storage)[0])


def test_names_given_are_found_in_the_middle_of_other_text(clean: Storage):
    clean.put("a", f"see /mnt/{uri(50)}?".encode())
    clean.put("b.parquet", parquet({"detail": [f"cannot open /mnt/{uri(50)}"]}))

    assert found(clean) == ([], [])
    assert found(clean, uris=[uri(50)]) == (["a", "b.parquet"], [])


def test_an_object_of_no_known_kind_cannot_be_proved(clean: Storage):
    clean.put("backup.zip", b"PK\x03\x04\xff\xfe")

    assert found(clean) == ([], ["backup.zip"])


def test_a_parquet_file_that_cannot_be_read_cannot_be_proved(clean: Storage):
    data = parquet({"image_id": [name(1)]})
    clean.put("half.parquet", data[:-8] + b"\xff\xff\xff\x7f" + data[-4:])  # a footer of 2 GB

    assert found(clean) == ([], ["half.parquet"])


def test_what_a_killed_writer_left_on_disk_is_read_too(tmp_path: Path):
    """Such files are in no listing of objects."""
    disk = open_storage(str(tmp_path / "map"), Settings(threads=1))
    publish_map(disk, [write_segment(disk, images(range(3)))])
    takedown(disk, TakedownRequest(uris=frozenset({uri(99)})))
    (tmp_path / "map" / "segments" / f".1{TEMPORARY_SUFFIX}").write_bytes(b"\xff half a shard of local features")
    (tmp_path / "map" / f".2{TEMPORARY_SUFFIX}").write_bytes(f'{{"uri": "{uri(99)}"}}'.encode())

    assert found(disk) == ([f".2{TEMPORARY_SUFFIX}"], [f"segments/.1{TEMPORARY_SUFFIX}"])


def test_local_features_of_an_attempt_that_no_receipt_names_cannot_be_proved(clean: Storage):
    orphan = write_segment(clean, images([30, 31]), finished=False)

    left, unproved = found(clean)

    assert left == []
    assert unproved
    assert all(path.startswith(f"segments/{orphan.segment_id}/{orphan.attempt}/local_features.zarr/") for path in unproved)


def test_a_second_attempt_at_a_segment_is_explained_by_the_first_for_its_name_is_made_of_its_photos(clean: Storage):
    again = write_segment(clean, images(range(5)), finished=False)
    clean.delete(f"segments/{again.segment_id}/{again.attempt}/images.parquet")

    assert verify_deleted(clean).proved


def test_local_features_whose_photos_are_missing_cannot_be_proved(clean: Storage):
    entry = read_head(clean).segments[0]
    folder = f"segments/{entry.segment_id}/{entry.attempt}"
    clean.delete(f"{folder}/images.parquet")

    left, unproved = found(clean)

    assert left == []
    assert read_head(clean).index.shards[0].file.path in unproved
    assert any(path.startswith(f"{folder}/local_features.zarr/") for path in unproved)


def test_images_that_are_not_those_of_the_receipt_prove_nothing_of_their_segment(clean: Storage):
    entry = read_head(clean).segments[0]
    clean.put(f"segments/{entry.segment_id}/{entry.attempt}/images.parquet", parquet({"image_id": [name(1)]}))

    assert any("/local_features.zarr/" in path for path in found(clean)[1])


def test_features_of_more_photos_than_the_segment_has_cannot_be_proved(clean: Storage):
    """The receipt names them, but they are another array."""
    entry = read_head(clean).segments[0]
    path = receipt_path(entry.segment_id)
    receipt = commits.read_receipts(clean)[entry.segment_id]
    clean.delete(path)
    clean.put(path, encode_json(msgspec.structs.replace(receipt, rows=3)))

    assert any(one.endswith("zarr.json") for one in found(clean)[1])


def test_an_index_that_no_version_names_cannot_be_proved(clean: Storage):
    shard = read_head(clean).index.shards[0].file.path
    clean.put("indexes/i/killed/shard-00000.faiss", clean.get(shard))
    clean.put("indexes/i/killed/quantizer.faiss", b"\xff\xfe")

    assert found(clean)[1] == ["indexes/i/killed/quantizer.faiss", "indexes/i/killed/shard-00000.faiss"]


def test_a_receipt_or_old_manifest_that_cannot_be_read_is_named(clean: Storage):
    receipt = receipt_path(read_head(clean).segments[0].segment_id)
    for path in (receipt, commits.manifest_path(1)):
        clean.put(path, clean.get(path).replace(b"segment", b"sEgment", 1))

    unproved = found(clean)[1]

    assert {receipt, commits.manifest_path(1)} <= set(unproved)


def test_what_was_found_is_said_in_plain_words(clean: Storage):
    clean.put("t.parquet", parquet({"uri": [uri(99)]}))

    done = verify_deleted(clean)

    assert done.left == [Finding(path="t.parquet", what=f"column uri has {uri(99)}")]
    assert done.lines()[0] == f"t.parquet: is left: column uri has {uri(99)}"


def test_nothing_is_changed_by_looking(clean: Storage):
    before = {info.path: clean.get(info.path) for info in clean.list()}

    verify_deleted(clean)

    assert {info.path: clean.get(info.path) for info in clean.list()} == before


def test_where_there_is_no_map_there_is_nothing_to_prove(storage: Storage):
    with pytest.raises(MapMissing):
        verify_deleted(storage)
