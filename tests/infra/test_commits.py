"""Publishing among other writers, lost answers and stores that do not keep their word."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec
import pytest

from infra import commits
from infra.commits import (
    create_tag,
    head_or_none,
    list_retired,
    list_tags,
    list_versions,
    manifest_path,
    probe,
    publish,
    read_head,
    read_manifest,
    read_receipts,
    read_version,
    receipt_path,
    retire,
    write_receipt,
)
from infra.storage import ObjectInfo, Storage
from schemas.errors import CommitError, CommitUnknown, ConditionsIgnored, FormatError, MapError, MapMissing, StorageError
from schemas.manifest import IndexEntry, Manifest, ModelEntry, Producer, Receipt, encode_json

DRAFT = Manifest(
    version=0,
    parent=None,
    commit_id="",
    content_id="",
    created_at="",
    producer=Producer(name="folio-vpr", version="0.1.0", python="3.11"),
    model=ModelEntry(recipe="tiny", fingerprint="f", trained=False, settings={}),
    segments=[],
    index=IndexEntry(kind="flat", index_id="i", seed=0, trained_on=0, trained_for=0, parameters={}, quantizer=None, shards=[]),
    statistics={"photos": []},
    configuration={},
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


def adds(photo: str) -> Callable[[Manifest | None], Manifest | None]:
    """Make a version that holds the photos of the one before, and `photo`."""

    def make(head: Manifest | None) -> Manifest | None:
        before = head.statistics["photos"] if head else []
        return None if photo in before else msgspec.structs.replace(DRAFT, statistics={"photos": [*before, photo]})

    return make


def photos(storage: Storage) -> list[str]:
    return read_head(storage).statistics["photos"]


class Wrapped:
    """A storage to change one behaviour of."""

    def __init__(self, inner: Storage) -> None:
        self.inner, self.url = inner, inner.url

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        return self.inner.get(path, start=start, stop=stop)

    def put(self, path: str, data: bytes) -> None:
        self.inner.put(path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return self.inner.put_if_absent(path, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def info(self, path: str) -> ObjectInfo:
        return self.inner.info(path)

    def delete(self, path: str) -> None:
        self.inner.delete(path)


def test_versions_count_up_from_one_and_name_their_parents(storage: Storage):
    first = publish(storage, adds("a"))
    second = publish(storage, adds("b"))

    assert (first.version, first.parent) == (1, None)
    assert (second.version, second.parent) == (2, 1)
    assert first.commit_id != second.commit_id
    assert list_versions(storage) == [1, 2]
    assert read_head(storage) == second
    assert read_version(storage, 1) == first
    assert photos(storage) == ["a", "b"]


def test_where_nothing_was_published_there_is_no_map(local: Storage):
    local.put("manifests/notes.txt", b"not a manifest")
    local.put("manifests/7.json", b"not 20 digits")

    assert head_or_none(local) is None
    with pytest.raises(MapMissing, match=r"no map here.*folio build"):
        read_head(local)
    publish(local, adds("a"))
    with pytest.raises(MapMissing, match=r"no version 3 here.*folio versions"):
        read_version(local, 3)


def test_what_is_no_manifest_is_not_read_as_one(local: Storage):
    local.put(manifest_path(4), b'{"format_version": 1, "version": 4')

    with pytest.raises(FormatError, match=r"00000000000000000004\.json: expected a manifest"):
        read_head(local)


def test_nothing_changed_publishes_nothing(local: Storage):
    first = publish(local, adds("a"))

    assert publish(local, adds("a")) == first
    assert list_versions(local) == [1]


def test_rolling_back_is_a_new_version_with_the_old_content(local: Storage):
    publish(local, adds("a"))
    publish(local, adds("b"))
    old = read_version(local, 1)

    publish(local, lambda head: old)

    assert list_versions(local) == [1, 2, 3]
    assert read_head(local).parent == 2
    assert photos(local) == ["a"]


@pytest.mark.parametrize("new_storage", ["local", "memory"], indirect=True)
def test_two_racing_publishers_lose_nothing_and_the_versions_chain(new_storage: Callable[[], Storage]):
    start = Barrier(2)

    def publish_ten(writer: str) -> None:
        storage = new_storage()
        start.wait()
        for number in range(10):
            publish(storage, adds(f"{writer}{number}"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(publish_ten, "ab"))

    storage = new_storage()
    assert list_versions(storage) == list(range(1, 21))
    assert [read_version(storage, version).parent for version in range(1, 21)] == [None, *range(1, 20)]
    assert sorted(photos(storage)) == [f"{writer}{number}" for writer in "ab" for number in range(10)]


class LosesAnswers(Wrapped):
    """Creates objects, but the first answers never arrive."""

    lost = 1

    def put_if_absent(self, path: str, data: bytes) -> bool:
        created = super().put_if_absent(path, data)
        if self.lost:
            self.lost -= 1
            raise StorageError("timeout")
        return created


def test_a_lost_answer_gives_one_version_not_two(storage: Storage):
    published = publish(LosesAnswers(storage), adds("a"))

    assert published == read_head(storage)
    assert list_versions(storage) == [1]


class Refuses(Wrapped):
    """Fails the first creates, and creates nothing."""

    def __init__(self, inner: Storage, times: int) -> None:
        super().__init__(inner)
        self.times = times

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self.times:
            self.times -= 1
            raise StorageError("503 SlowDown")
        return super().put_if_absent(path, data)


def test_a_create_that_failed_for_a_while_is_made_good(local: Storage):
    made: list[Manifest | None] = []

    publish(Refuses(local, 3), lambda head: made.append(head) or DRAFT)

    assert list_versions(local) == [1]
    assert made == [None]  # the content, which may have cost an hour, was made once


def test_a_store_that_goes_on_failing_leaves_the_outcome_unknown(local: Storage):
    with pytest.raises(CommitUnknown, match=r"version 1 may have been published or not: 503.*Run the same command again"):
        publish(Refuses(local, 100), adds("a"))


class AnswersNothing(LosesAnswers):
    """Loses the answer and cannot be read back; what it deletes is remembered."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.deleted: list[str] = []

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        raise StorageError("connection refused")

    def delete(self, path: str) -> None:
        self.deleted.append(path)


def test_an_unreadable_outcome_is_unknown_and_deletes_nothing(local: Storage):
    silent = AnswersNothing(local)

    with pytest.raises(CommitUnknown, match=r"version 1 may have been published or not: connection refused"):
        publish(silent, adds("a"))

    assert silent.deleted == []
    assert photos(local) == ["a"]
    assert publish(local, adds("a")).version == 1  # run again: it is there


class SomebodyIsFaster(Wrapped):
    """Before each of the first creates another publisher takes the number; then the answer may get lost besides."""

    def __init__(self, inner: Storage, *, times: int, lose_answer: bool) -> None:
        super().__init__(inner)
        self.times, self.lose_answer = times, lose_answer

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self.times:
            self.times -= 1
            publish(self.inner, adds(f"theirs {self.times}"))
            if self.lose_answer:
                raise StorageError("timeout")
        return super().put_if_absent(path, data)


@pytest.mark.parametrize("lose_answer", [False, True])
def test_behind_a_faster_publisher_the_version_is_made_anew_on_top(local: Storage, lose_answer: bool):
    published = publish(SomebodyIsFaster(local, times=2, lose_answer=lose_answer), adds("mine"))

    assert (published.version, published.parent) == (3, 2)
    assert photos(local) == ["theirs 1", "theirs 0", "mine"]


def test_what_a_faster_publisher_already_published_is_not_published_again(local: Storage):
    head = publish(SomebodyIsFaster(local, times=1, lose_answer=False), adds("theirs 0"))

    assert head.version == 1
    assert list_versions(local) == [1]


def test_a_publisher_that_always_loses_gives_up(local: Storage):
    with pytest.raises(CommitError, match=r"faster publisher 20 times.*Nothing was published"):
        publish(SomebodyIsFaster(local, times=20, lose_answer=False), adds("mine"))

    assert "mine" not in photos(local)


def receipt(attempt: str, segment_id: str = "s1") -> Receipt:
    return Receipt(segment_id=segment_id, attempt=attempt, model_fingerprint="f", rows=1, rejected=0, bbox=None, objects=[])


def test_the_first_attempt_at_a_segment_wins(storage: Storage):
    assert write_receipt(storage, receipt("first")).attempt == "first"
    assert write_receipt(storage, receipt("second")).attempt == "first"
    write_receipt(storage, receipt("only", "s2"))

    assert {name: found.attempt for name, found in read_receipts(storage).items()} == {"s1": "first", "s2": "only"}
    assert storage.get(receipt_path("s1")) == encode_json(receipt("first"))


def test_a_lost_answer_to_a_receipt_does_not_make_a_segment_foreign(local: Storage):
    assert write_receipt(LosesAnswers(local), receipt("mine")).attempt == "mine"


def test_a_receipt_that_cannot_be_written_says_why(local: Storage):
    with pytest.raises(StorageError, match="503 SlowDown"):
        write_receipt(Refuses(local, 100), receipt("mine"))


class AsleepError(Exception):
    """What a run that must not publish any more raises."""


def test_a_run_that_must_not_publish_any_more_is_stopped_before_every_try(local: Storage):
    """It falls asleep after a try that failed; the store had created nothing."""
    allowed = iter([None])

    def check() -> None:
        if next(allowed, AsleepError) is AsleepError:
            raise AsleepError

    with pytest.raises(AsleepError):
        publish(Refuses(local, 1), adds("a"), check=check)

    assert list_versions(local) == []


def test_a_retired_version_is_not_opened_but_its_manifest_can_be_read(storage: Storage):
    first = publish(storage, adds("a"))
    publish(storage, adds("b"))

    retire(storage, [1], reason="gc")
    retire(storage, [1], reason="purge")  # again: the first mark stands

    assert list_retired(storage) == {1}
    assert read_manifest(storage, 1) == first
    with pytest.raises(MapError, match=r"version 1 is retired.*folio versions"):
        read_version(storage, 1)
    assert read_version(storage, 2).version == 2


def test_a_tag_names_a_version(storage: Storage):
    publish(storage, adds("a"))
    publish(storage, adds("b"))

    create_tag(storage, "prod-2026.11", 1)
    create_tag(storage, "prod-2026.11", 1)

    assert list_tags(storage) == {"prod-2026.11": 1}
    assert read_version(storage, "prod-2026.11").version == 1
    assert read_version(storage, "2").version == 2


def test_a_tag_is_never_moved(local: Storage):
    create_tag(local, "prod", 1)

    with pytest.raises(MapError, match=r"the tag prod is version 1 already, not 2.*--delete"):
        create_tag(local, "prod", 2)

    assert list_tags(local) == {"prod": 1}


@pytest.mark.parametrize("name", ["42", "", "a/b", "../a", ".hidden", "-x", "a b", "ä", "x" * 65])
def test_what_cannot_be_a_tag_is_refused(local: Storage, name: str):
    with pytest.raises(MapError, match="needed a letter or digit"):
        create_tag(local, name, 1)

    assert list(local.list()) == []


@pytest.mark.parametrize("name", ["nightly", "../manifests/00000000000000000001", ""])
def test_there_is_no_such_tag(local: Storage, name: str):
    publish(local, adds("a"))

    with pytest.raises(MapMissing, match=r"no tag .*folio versions"):
        read_version(local, name)


def test_a_lost_answer_to_a_tag_does_not_make_it_anothers(local: Storage):
    create_tag(LosesAnswers(local), "prod", 1)

    assert list_tags(local) == {"prod": 1}


def test_the_probe_passes_where_the_first_create_counts_and_leaves_nothing(storage: Storage):
    probe(storage)

    assert list(storage.list()) == []


class IgnoresConditions(Wrapped):
    """Like several S3 clones: every create succeeds."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self.inner.put(path, data)
        return True


def test_the_probe_refuses_a_store_that_ignores_conditions_and_leaves_nothing(local: Storage):
    with pytest.raises(ConditionsIgnored, match=r"9 of 9 writers.*Nothing was published.*--single-writer"):
        probe(IgnoresConditions(local))

    assert list(local.list()) == []
