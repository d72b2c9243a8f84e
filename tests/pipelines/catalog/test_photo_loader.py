"""Photos come in their order and each with its own fate, ahead of the one who takes them, and never more than may wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import loading
from pipelines.catalog.loading import PhotoLoader, Waiting
from schemas.errors import PhotoError, StorageError
from schemas.reasons import RejectReason


class Reader:
    """Photo n is one byte n; odd ones take longer. `bad` are truncated, at `lost` the store does not answer."""

    def __init__(self, *, bad: frozenset[int] = frozenset(), lost: int | None = None, slow_s: float = 0.0) -> None:
        self.bad, self.lost, self.slow_s = bad, lost, slow_s
        self.fetched: list[int] = []

    def read(self, uri: str, root: str, *, size_bytes: int, checksum: str) -> bytes:
        number = int(uri)
        time.sleep(self.slow_s * (number % 2))
        self.fetched.append(number)
        if number == self.lost:
            raise StorageError("the store does not answer")
        if number in self.bad:
            raise PhotoError(RejectReason.TRUNCATED, uri)
        return bytes([number])


class Decoder:
    """Takes `seconds` a photo. Counts how many are at work at once."""

    alive, busy, busiest, seconds = 0, 0, 0, 0.0
    lock = threading.Lock()

    def __init__(self) -> None:
        Decoder.alive += 1
        self.mine = threading.Lock()

    def decode(self, data: bytes, *, min_side: int | None) -> np.ndarray:
        assert self.mine.acquire(blocking=False), "a decoder serves one photo at a time"
        with Decoder.lock:
            Decoder.busy += 1
            Decoder.busiest = max(Decoder.busiest, Decoder.busy)
        time.sleep(Decoder.seconds)
        with Decoder.lock:
            Decoder.busy -= 1
        self.mine.release()
        return np.full((1, 1, 3), data[0], np.uint8)

    def close(self) -> None:
        Decoder.alive -= 1


@pytest.fixture(autouse=True)
def fresh_decoders() -> Iterator[None]:
    Decoder.alive, Decoder.busy, Decoder.busiest, Decoder.seconds = 0, 0, 0, 0.0
    yield
    assert Decoder.alive == 0


def photos(count: int, *, size_bytes: int = 1) -> pa.Table:
    names = [str(number) for number in range(count)]
    return pa.table({"uri": names, "root": [""] * count, "size_bytes": [size_bytes] * count, "checksum": ["sha256:0"] * count})


def loader(reader: Reader, *, ahead: int = 4, most: int = 1) -> PhotoLoader[int]:
    return PhotoLoader(reader, Decoder, lambda pixels: int(pixels[0, 0, 0]), min_side=None, ahead=ahead, most_decoders=most)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.frozensets(st.integers(0, 39)), st.integers(1, 9), st.integers(1, 4))
def test_every_photo_comes_once_in_its_place_with_its_own_fate(count: int, bad: frozenset[int], ahead: int, most: int):
    with closing(loader(Reader(bad=bad, slow_s=0.001), ahead=ahead, most=most)) as loads:
        found = list(loads.load(photos(count)))

    assert [row for row, _ in found] == list(range(count))
    assert [isinstance(photo, PhotoError) for _, photo in found] == [row in bad for row in range(count)]
    assert [photo for row, photo in found if row not in bad] == [row for row in range(count) if row not in bad]


def test_no_more_photos_are_under_way_than_may_wait():
    reader = Reader()
    with closing(loader(reader, ahead=3)) as loads:
        for row, _ in loads.load(photos(20)):
            time.sleep(0.01)  # whoever takes them is slow
            assert len(reader.fetched) <= row + 3


def test_large_files_wait_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "BYTES_AHEAD", 100)
    reader = Reader()
    with closing(loader(reader, ahead=8)) as loads:
        for row, _ in loads.load(photos(6, size_bytes=80)):
            time.sleep(0.01)
            assert len(reader.fetched) == row + 1


def test_photos_are_loaded_while_the_taker_works():
    Decoder.seconds = 0.02
    with closing(loader(Reader(), ahead=4)) as loads:
        start, waiting = time.perf_counter(), Waiting()
        for _ in loads.load(photos(10), waiting):
            time.sleep(0.02)

    assert time.perf_counter() - start < 0.36  # 0.4 s one after the other
    assert waiting.waited_s < 0.15


def test_two_who_take_turns_share_a_decoder_and_each_knows_how_long_it_waited():
    """The second has its first photo made and waits for its turn meanwhile, as the second segment of an actor does."""
    Decoder.seconds = 0.01
    with closing(loader(Reader(), ahead=4, most=8)) as loads:
        first, second = Waiting(), Waiting()
        begun = loads.load(photos(10), second)
        behind = [next(begun).photo]
        begun_s = second.waited_s
        before = [slowly(photo) for _, photo in loads.load(photos(10), first)]
        assert second.waited_s == begun_s > 0
        behind += [slowly(photo) for _, photo in begun]

        assert before == behind == list(range(10))
        assert loads.decoders == Decoder.busiest == 1
    assert first.waited_s > 0
    assert second.ready > 10  # three and more were ready whenever one was taken, but at the beginning and the end


def slowly(photo: int | PhotoError) -> int | PhotoError:
    time.sleep(2 * Decoder.seconds)
    return photo


def test_decoders_are_added_while_they_make_photos_come_faster_and_no_further():
    Decoder.seconds = 0.004
    with closing(loader(Reader(), ahead=16, most=8)) as loads:
        for _ in loads.load(photos(200)):
            time.sleep(0.002)
        decoders = loads.decoders

    assert 2 <= decoders <= 5  # two or three keep up; one more is tried before it settles
    assert Decoder.busiest <= decoders


def test_one_decoder_is_enough_for_a_taker_who_is_slow():
    with closing(loader(Reader(), ahead=4, most=8)) as loads:
        for _ in loads.load(photos(40)):
            time.sleep(0.03)

        assert loads.decoders == 1


def test_a_store_that_does_not_answer_ends_it_and_is_no_fault_of_the_photo():
    with closing(loader(Reader(lost=5), ahead=4)) as loads:
        coming = loads.load(photos(20))

        assert [next(coming).row for _ in range(5)] == list(range(5))
        with pytest.raises(StorageError, match="does not answer"):
            next(coming)


def test_it_may_be_left_in_the_middle_and_used_again():
    with closing(loader(Reader(), ahead=4)) as loads:
        for row, _ in loads.load(photos(20)):
            if row == 3:
                break
        again = [photo for _, photo in loads.load(photos(20))]

    assert again == list(range(20))
