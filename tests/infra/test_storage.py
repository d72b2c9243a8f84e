"""The door for bytes: the same promises on disk, in memory and on S3; then what only one of them can get wrong."""

import errno
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

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

    def __init__(self, *answers: int | str) -> None:
        self.answers = list(answers)
        self.content = b"content"

    def cat_file(self, path: str, start: int | None, end: int | None) -> bytes:
        self.answer()
        return self.content[start:end]

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self.answer()

    def info(self, path: str) -> dict[str, Any]:
        return {"type": "file", "size": len(self.content)}

    def answer(self) -> None:
        status, _, code = str(self.answers.pop(0)).partition(" ")
        if status != "200":
            answer = {"HTTPStatusCode": int(status), "HTTPHeaders": {"retry-after": "7"} if status == "429" else {}}
            raise translate_boto_error(
                ClientError({"Error": {"Code": code or status, "Message": ""}, "ResponseMetadata": answer}, "Any")
            )


MakeFaulty = Callable[..., tuple[FsspecStorage, list[int | str]]]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def faulty(pauses: list[float]) -> MakeFaulty:
    """Give a storage and the answers it has not yet asked for."""

    def make(*answers: int | str) -> tuple[FsspecStorage, list[int | str]]:
        filesystem = Faulty(*answers)
        return FsspecStorage("s3://maps/lund", filesystem, "maps/lund", failures=(OSError,)), filesystem.answers

    return make


def test_a_busy_store_is_asked_again(faulty: MakeFaulty):
    storage, left = faulty(503, 500, 429, 200, 503, 200)

    assert storage.get("a") == b"content"
    storage.put("a", b"")

    assert left == []


def test_a_store_that_stays_busy_is_a_storage_error_after_ten_tries(faulty: MakeFaulty, pauses: list[float]):
    storage, left = faulty(*[503] * 11)

    with pytest.raises(StorageError, match="s3://maps/lund/a: could not read this"):
        storage.get("a")

    assert left == [503]
    assert len(set(pauses)) == 9
    assert all(pause <= min(3.0, 0.2 * 2**attempt) for attempt, pause in enumerate(pauses))


def test_a_store_that_says_how_long_to_wait_is_left_alone_so_long(faulty: MakeFaulty, pauses: list[float]):
    storage, _ = faulty(429, 503, 200)

    storage.put("a", b"")

    assert 7 <= pauses[0] <= 7.2
    assert pauses[1] <= 0.4


@pytest.mark.parametrize("answer", ["404 NoSuchUpload", "400 RequestTimeout", "400 BadDigest"])
def test_an_upload_that_was_cut_short_is_made_again(faulty: MakeFaulty, answer: str):
    storage, left = faulty(answer, 200)

    storage.put("a", b"")

    assert left == []


def test_a_refusal_is_not_asked_again(faulty: MakeFaulty):
    storage, left = faulty(403, 200)

    with pytest.raises(StorageError, match="could not write this"):
        storage.put("a", b"")

    assert left == [200]


@pytest.mark.parametrize("doubt", [409, 429, 500, 502, 503, 504])
def test_a_create_is_asked_again_and_an_object_of_our_own_then_is_ours(faulty: MakeFaulty, doubt: int):
    storage, left = faulty(doubt, 200, doubt, 412, 200, doubt, 412, 200)

    assert storage.put_if_absent("a", b"")
    assert storage.put_if_absent("a", b"content")  # what is there now
    assert not storage.put_if_absent("a", b"another's")

    assert left == []


def test_a_create_without_any_answer_may_have_happened(faulty: MakeFaulty):
    storage, _ = faulty(*[500] * 10)

    with pytest.raises(StorageError, match=r"could not create this.*may have been created or not; nothing was deleted"):
        storage.put_if_absent("a", b"")


def test_a_create_that_is_refused_is_not_asked_again(faulty: MakeFaulty):
    storage, left = faulty(403, 200)

    with pytest.raises(StorageError, match="could not create this"):
        storage.put_if_absent("a", b"")

    assert left == [200]


def test_what_is_too_large_for_one_request_is_not_created(faulty: MakeFaulty, monkeypatch: pytest.MonkeyPatch):
    """Because a store may ignore the condition when it puts parts together."""
    monkeypatch.setattr(storage_module, "CREATE_MAX_BYTES", 10)
    storage, _ = faulty()

    with pytest.raises(StorageError, match=r"lund/a: found 11 bytes to create if absent, needed at most 10.*Nothing was written"):
        storage.put_if_absent("a", b"x" * 11)


@pytest.mark.parametrize(("start", "stop"), [(None, None), (3, None), (3, 24), (0, 5), (0, 99), (20, 30), (-9, None)])
def test_a_large_object_is_read_in_parts_each_of_which_may_fail(
    faulty: MakeFaulty, monkeypatch: pytest.MonkeyPatch, start: int | None, stop: int | None
):
    monkeypatch.setattr(storage_module, "PART_BYTES", 5)
    storage, _ = faulty(500, *[200, 503] * 6)
    content = bytes(range(25))
    monkeypatch.setattr(storage._filesystem, "content", content)

    assert storage.get("a", start=start, stop=stop) == content[start:stop]


def test_without_credentials_a_request_fails_at_once_and_says_so(monkeypatch: pytest.MonkeyPatch, pauses: list[float]):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(StorageError, match="Unable to locate credentials"):
        open_storage("s3://maps/lund", Settings(threads=1, s3_endpoint_url="http://127.0.0.1:9")).get("a")

    assert pauses == []


def test_a_server_that_is_not_there_is_asked_ten_times(aws_environment: None, pauses: list[float]):
    with pytest.raises(StorageError, match=r"could not read this: Could not connect to the endpoint URL"):
        open_storage("s3://maps/lund", Settings(threads=1, s3_endpoint_url="http://127.0.0.1:9")).get("a")

    assert len(pauses) == 9


def test_a_storage_in_another_process_does_not_try_again_below_this_door(aws_environment: None):
    """Else its second try would be told of the object that its first try made."""
    storage = open_storage("s3://maps/lund", Settings(threads=1))
    assert isinstance(storage, FsspecStorage)

    assert storage._filesystem.retries == 1
    assert pickle.loads(pickle.dumps(storage))._filesystem.retries == 1
