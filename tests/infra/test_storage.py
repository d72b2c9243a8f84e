"""The door for bytes: the same promises on disk, in memory and on S3; then what only one of them can get wrong."""

import errno
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from infra import storage as storage_module
from infra.settings import Settings
from infra.storage import FsspecStorage, LocalStorage, Storage, open_storage
from schemas.errors import ObjectMissing, StorageError


def test_what_is_put_is_read_back_and_a_second_put_replaces_it(storage: Storage):
    storage.put("a/b.bin", b"first")
    storage.put("a/b.bin", b"second")

    assert storage.get("a/b.bin") == b"second"


def test_an_empty_object_is_an_object(storage: Storage):
    storage.put("empty", b"")

    assert storage.get("empty") == b""
    assert storage.info("empty").size_bytes == 0


def test_a_range_is_the_bytes_from_start_up_to_stop_that_exist(storage: Storage):
    storage.put("digits", b"0123456789")

    for start, stop, expected in [
        (0, 4, b"0123"),
        (None, 4, b"0123"),
        (3, 7, b"3456"),
        (7, None, b"789"),
        (-3, None, b"789"),
        (-30, None, b"0123456789"),
        (8, 99, b"89"),
        (10, 12, b""),
        (50, None, b""),
    ]:
        assert storage.get("digits", start=start, stop=stop) == expected, (start, stop)


def test_a_range_that_is_empty_by_itself_is_a_mistake(storage: Storage):
    for start, stop in [(5, 5), (6, 5), (-3, 9), (None, 0)]:
        with pytest.raises(ValueError, match="0 <= start < stop"):
            storage.get("digits", start=start, stop=stop)


def test_a_missing_object_is_said_with_its_url(storage: Storage):
    storage.put("folder/there", b"x")

    for path in ("gone", "folder/gone", "folder"):
        with pytest.raises(ObjectMissing, match=f"{path}: no such object"):
            storage.get(path)
        with pytest.raises(ObjectMissing, match=f"{path}: no such object"):
            storage.info(path)
        with pytest.raises(ObjectMissing):
            storage.get(path, start=0, stop=4)


def test_the_list_is_recursive_sorted_and_of_one_folder(storage: Storage):
    for path in ("b/2", "a/z", "a-b/1", "b/1/deep", "top"):
        storage.put(path, b"12345")

    assert [info.path for info in storage.list()] == ["a-b/1", "a/z", "b/1/deep", "b/2", "top"]
    assert [info.path for info in storage.list("b")] == ["b/1/deep", "b/2"]
    assert [info.path for info in storage.list("b/1/")] == ["b/1/deep"]
    assert {info.size_bytes for info in storage.list()} == {5}


def test_the_list_of_what_is_not_there_is_empty(storage: Storage):
    assert list(storage.list()) == []
    assert list(storage.list("nowhere")) == []


def test_a_list_sees_what_another_process_wrote_since_the_last_one(new_storage: Callable[[], Storage]):
    mine, others = new_storage(), new_storage()
    mine.put("a", b"")
    assert [info.path for info in mine.list()] == ["a"]

    others.put("b", b"")
    others.delete("a")

    assert [info.path for info in mine.list()] == ["b"]


def test_a_name_with_spaces_accents_and_emoji_is_a_name(storage: Storage):
    path = "Åre 2026/bro #1 100% [x] 🌉?.jpg"
    storage.put(path, b"bridge")

    assert storage.get(path) == b"bridge"
    assert [info.path for info in storage.list()] == [path]
    assert storage.info(path).path == path


def test_delete_removes_and_what_is_not_there_is_fine(storage: Storage):
    storage.put("a/b", b"x")

    storage.delete("a/b")
    storage.delete("a/b")

    assert list(storage.list()) == []


def test_only_the_first_create_counts(storage: Storage):
    assert storage.put_if_absent("manifest", b"first")
    assert not storage.put_if_absent("manifest", b"second")

    assert storage.get("manifest") == b"first"


def test_of_eight_racing_creators_exactly_one_wins_every_round(new_storage: Callable[[], Storage]):
    storages = [new_storage(), new_storage()] * 4
    start = Barrier(8)

    def create(writer: int, round_: int) -> bool:
        start.wait()
        return storages[writer].put_if_absent(f"round/{round_}", f"{writer}".encode())

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(10):
            won = list(pool.map(create, range(8), [round_] * 8))
            assert won.count(True) == 1
            assert storages[0].get(f"round/{round_}") == f"{won.index(True)}".encode()
    assert len(list(storages[0].list())) == 10


def test_a_path_that_could_leave_the_root_is_refused(storage: Storage):
    for path in ["../escape", "a/../../escape", "/etc/passwd", "a/..", "..", ".", "", "a/./b", "nul\0"]:
        for method in (storage.get, storage.info, storage.delete):
            with pytest.raises(ValueError, match="must be relative"):
                method(path)
        for write in (storage.put, storage.put_if_absent):
            with pytest.raises(ValueError, match="must be relative"):
                write(path, b"")


def test_a_storage_survives_the_trip_to_another_process(storage: Storage):
    storage.put("a", b"x")

    assert pickle.loads(pickle.dumps(storage)).get("a") == b"x"


# Local disk


def files_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("failing", ["fsync", "replace", "link"])
def test_a_full_disk_leaves_neither_an_object_nor_a_temporary_file(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)

    write = local.put_if_absent if failing == "link" else local.put
    with pytest.raises(
        StorageError, match=r"map/shard\.faiss: could not write this: No space left on device.*whole or not at all"
    ):
        write("shard.faiss", b"x" * 1000)
    assert files_below(tmp_path) == []


def test_a_full_disk_leaves_the_object_before_it_as_it_was(local: Storage, monkeypatch: pytest.MonkeyPatch):
    local.put("a", b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        local.put("a", b"new")

    assert local.get("a") == b"old"


def test_a_file_where_a_folder_is_needed_is_a_storage_error(local: Storage, tmp_path: Path):
    local.put("segments", b"a file")

    with pytest.raises(StorageError, match=r"segments/1/images\.parquet: could not write this"):
        local.put("segments/1/images.parquet", b"x")
    with pytest.raises(StorageError, match="could not write this"):
        local.put_if_absent("segments/1/images.parquet", b"x")
    assert files_below(tmp_path / "map") == ["segments"]


def test_a_killed_writers_temporary_file_is_never_listed(local: Storage, tmp_path: Path):
    local.put("a/b", b"x")
    (tmp_path / "map/a/.0123.folio-tmp").write_bytes(b"half")

    assert [info.path for info in local.list()] == ["a/b"]


def test_links_in_a_circle_to_nowhere_and_pipes_do_not_hold_up_the_list(local: Storage, tmp_path: Path):
    local.put("a/photo", b"x")
    (tmp_path / "map/a/up").symlink_to(tmp_path / "map")
    (tmp_path / "map/a/self").symlink_to(tmp_path / "map/a/self")
    (tmp_path / "map/a/nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "map/a/pipe")

    assert [info.path for info in local.list()] == ["a/photo"]


def test_photos_behind_a_link_to_another_disk_are_listed(local: Storage, tmp_path: Path):
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2/1.jpg").write_bytes(b"x")
    (tmp_path / "map").mkdir()
    (tmp_path / "map/2026").symlink_to(tmp_path / "disk2")

    assert [info.path for info in local.list()] == ["2026/1.jpg"]


def test_a_name_that_is_not_utf8_is_listed_read_and_printable_in_an_error(local: Storage, tmp_path: Path):
    (tmp_path / "map").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "map") + b"/caf\xe9.jpg")).write_bytes(b"x")

    (info,) = local.list()

    assert local.get(info.path) == b"x"
    local.delete(info.path)
    with pytest.raises(ObjectMissing, match=r"caf\\udce9\.jpg: no such object") as caught:
        local.get(info.path)
    assert str(caught.value).encode()


def test_delete_leaves_no_empty_folders(local: Storage, tmp_path: Path):
    local.put("runs/1/a/b", b"")
    local.put("runs/2", b"")

    local.delete("runs/1/a/b")

    assert sorted(path.name for path in (tmp_path / "map/runs").iterdir()) == ["2"]


def test_writers_and_removers_of_the_same_folder_do_not_disturb_each_other(local: Storage):
    def write_and_remove(writer: int) -> None:
        for _ in range(100):
            local.put(f"deep/er/{writer}", b"x")
            local.delete(f"deep/er/{writer}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_remove, range(4)))


def test_the_time_of_an_object_is_in_utc(storage: Storage, request: pytest.FixtureRequest):
    storage.put("a", b"")

    modified_at = storage.info("a").modified_at

    if request.node.callspec.params["new_storage"] == "memory":
        assert modified_at is None
    else:
        assert modified_at is not None
        assert abs(datetime.now(UTC) - modified_at) < timedelta(minutes=1)


def test_a_file_url_is_a_folder(tmp_path: Path):
    LocalStorage(f"file://{tmp_path}").put("a", b"x")

    assert (tmp_path / "a").read_bytes() == b"x"


# URLs and S3


def test_an_unknown_kind_of_url_is_refused_without_its_password():
    with pytest.raises(StorageError, match=r"^gopher://host/x: cannot be opened") as caught:
        open_storage("gopher://me:secret@host/x", Settings(threads=1))

    assert "secret" not in str(caught.value)


def test_credentials_in_an_s3_url_are_refused_and_not_repeated():
    with pytest.raises(StorageError, match="AWS_PROFILE") as caught:
        open_storage("s3://key:secret@maps/lund", Settings(threads=1))

    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_a_storage_error_on_writing(s3_endpoint: str):
    nowhere = open_storage("s3://no-such-bucket/lund", Settings(threads=1, s3_endpoint_url=s3_endpoint))

    with pytest.raises(StorageError, match="s3://no-such-bucket/lund/a: could not write this"):
        nowhere.put("a", b"")
    assert list(nowhere.list()) == []


def test_s3_gives_etags_without_quotes(s3_endpoint: str):
    storage = open_storage("s3://maps/etags", Settings(threads=1, s3_endpoint_url=s3_endpoint))
    storage.put("a", b"hello")

    assert storage.info("a").etag == "5d41402abc4b2a76b9719d911017c592"  # md5 of hello
    assert [info.etag for info in storage.list()] == ["5d41402abc4b2a76b9719d911017c592"]


class Faulty:
    """An S3 file system that gives these HTTP answers, worded as s3fs words them, one a request."""

    protocol = ("s3", "s3a")

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)

    def cat_file(self, path: str, start: int | None, end: int | None) -> bytes:
        self.answer()
        return b"content"

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self.answer()

    def answer(self) -> None:
        status = self.answers.pop(0)
        if status != 200:
            response = {"Error": {"Code": str(status), "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise translate_boto_error(ClientError(response, "Any"))


MakeFaulty = Callable[..., tuple[FsspecStorage, list[int]]]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> MakeFaulty:
    """Give a storage and the answers it has not yet asked for."""
    monkeypatch.setattr(storage_module, "FIRST_PAUSE_S", 0.001)

    def make(*answers: int) -> tuple[FsspecStorage, list[int]]:
        filesystem = Faulty(*answers)
        return FsspecStorage("s3://maps/lund", filesystem, "maps/lund", failures=(OSError,)), filesystem.answers

    return make


def test_a_busy_store_is_asked_again(faulty: MakeFaulty):
    storage, left = faulty(503, 500, 429, 200, 503, 200)

    assert storage.get("a") == b"content"
    storage.put("a", b"")

    assert left == []


def test_a_store_that_stays_busy_is_a_storage_error_after_six_tries(faulty: MakeFaulty):
    storage, left = faulty(*[503] * 7)

    with pytest.raises(StorageError, match="s3://maps/lund/a: could not read this"):
        storage.get("a")

    assert left == [503]


def test_a_refusal_is_not_asked_again(faulty: MakeFaulty):
    storage, left = faulty(403, 200)

    with pytest.raises(StorageError, match="could not write this"):
        storage.put("a", b"")

    assert left == [200]


def test_a_create_is_asked_again_after_not_now_and_lost_where_there_is_one(faulty: MakeFaulty):
    storage, left = faulty(409, 409, 200, 409, 412)

    assert storage.put_if_absent("a", b"")
    assert not storage.put_if_absent("a", b"")

    assert left == []


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_create_that_may_have_happened_is_not_asked_again(faulty: MakeFaulty, status: int):
    storage, left = faulty(status, 412)

    with pytest.raises(StorageError, match=r"could not create this.*may have been created or not; nothing was deleted"):
        storage.put_if_absent("a", b"")

    assert left == [412]
