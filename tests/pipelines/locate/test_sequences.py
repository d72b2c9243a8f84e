"""Which photos were taken one after the other."""

from datetime import UTC, datetime, timedelta
from random import Random

import pyarrow as pa
import pytest

from pipelines.locate.sequences import sequences_of
from schemas.images import IMAGES, image_id

START = datetime(2026, 6, 1, 8, tzinfo=UTC)


def photo(uri: str, taken_at: datetime | None, *, sequence_id: str | None = None, root: str = "/photos") -> dict[str, object]:
    return {
        "image_id": image_id(uri),
        "photo_key": "",
        "uri": uri,
        "root": root,
        "size_bytes": 1,
        "checksum": "",
        "taken_at": taken_at,
        "sequence_id": sequence_id,
    }


def found(*photos: dict[str, object]) -> dict[str, list[str]]:
    table = pa.Table.from_pylist(list(photos), IMAGES)
    return {sequence.name: [str(photos[row]["uri"]) for row in sequence.rows] for sequence in sequences_of(table)}


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_photos_of_a_folder_belong_together_in_the_order_they_were_taken():
    assert found(photo("a/2.jpg", after(20)), photo("a/1.jpg", after(30)), photo("b/1.jpg", after(25))) == {
        "a@2026-06-01T08:00:20+00:00": ["a/2.jpg", "a/1.jpg"]
    }


def test_a_pause_of_more_than_ten_minutes_ends_a_sequence():
    photos = [photo(f"a/{seconds}.jpg", after(seconds)) for seconds in (0, 600, 1201, 1300)]

    assert list(found(*photos).values()) == [["a/0.jpg", "a/600.jpg"], ["a/1201.jpg", "a/1300.jpg"]]


def test_named_sequences_keep_their_names_and_stay_apart():
    photos = [photo(f"a/{number}.jpg", after(number), sequence_id="odd" if number % 2 else "even") for number in range(6)]

    assert found(*photos) == {"even": ["a/0.jpg", "a/2.jpg", "a/4.jpg"], "odd": ["a/1.jpg", "a/3.jpg", "a/5.jpg"]}


def test_the_same_folder_elsewhere_is_another():
    assert found(photo("a/1.jpg", after(0), root="/one"), photo("a/2.jpg", after(9), root="/two")) == {}


def test_photos_without_a_time_stay_alone():
    assert found(photo("a/1.jpg", None, sequence_id="x"), photo("a/2.jpg", after(1), sequence_id="x")) == {}


@pytest.mark.parametrize(
    "reset",
    [datetime(1980, 1, 1, 0, 0, 7, tzinfo=UTC), datetime(2000, 1, 1, 12, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)],
)
def test_times_of_a_clock_that_was_never_set_are_none(reset: datetime):
    assert found(*(photo(f"a/{number}.jpg", reset + timedelta(seconds=number)) for number in range(4))) == {}


def test_photos_that_all_have_the_same_time_were_not_all_taken_then():
    assert found(*(photo(f"a/{number}.jpg", START) for number in range(9))) == {}


def test_the_order_of_the_catalog_does_not_matter():
    photos = [photo(f"a/{number}.jpg", after(number // 3)) for number in range(20)]
    mixed = photos[:]
    Random(1).shuffle(mixed)

    assert found(*mixed) == found(*photos)
