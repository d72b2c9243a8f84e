"""The names of photos must be the same in ten years: a changed one would encode every photo of every map again."""

import io
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.images import IMAGES, image_id, photo_key

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FACTS = ("lat_deg", "lon_deg", "altitude_m", "heading_deg", "taken_at", "sequence_id")

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
photos = st.fixed_dictionaries(
    {
        "uri": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        "size_bytes": st.integers(0, 2**40),
        "checksum": st.text(string.hexdigits, max_size=64).map("sha256:{}".format),
        "lat_deg": numbers,
        "lon_deg": numbers,
        "altitude_m": numbers,
        "heading_deg": numbers,
        "taken_at": st.none() | st.integers(-(10**15), 10**16),  # microseconds, from 1938 to 2286
        "sequence_id": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    }
)


def key_of(photo: dict[str, Any]) -> str:
    return photo_key(photo["uri"], photo["size_bytes"], photo["checksum"], *(photo[name] for name in FACTS))


def test_an_image_id_is_the_start_of_the_sha256_of_the_name():
    """`printf lund/2026/0812.jpg | sha256sum`, the first 32 digits."""
    assert image_id("lund/2026/0812.jpg") == "ab8ab8523ac71ebda5a6d3a551f567c5"
    assert image_id("lund/ö 2.jpg") == "18f8d1ebea706c605f3dd6e00bc7d81c"


def test_a_photo_key_is_the_start_of_the_sha256_of_a_json_list():
    """`printf '["a.jpg",3,"sha256:00",55.7,13.0,null,null,1000000,"s"]' | sha256sum`, the first 32 digits."""
    assert photo_key("a.jpg", 3, "sha256:00", 55.7, 13.0, None, None, 1_000_000, "s") == "73e35f7e8fbbc6f878dfe27962056931"
    assert photo_key("a.jpg", 3, "sha256:00", *[None] * 6) == "a55877b1db4d2abd82746e1068c70da7"


@given(st.lists(photos, min_size=1, max_size=5))
@settings(max_examples=60)
def test_names_made_again_from_a_stored_table_are_the_same(listed: list[dict[str, Any]]):
    rows = [
        {
            **photo,
            "image_id": image_id(photo["uri"]),
            "photo_key": key_of(photo),
            "root": "/photos",
            "taken_at": None if photo["taken_at"] is None else EPOCH + timedelta(microseconds=photo["taken_at"]),
        }
        for photo in listed
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, IMAGES), buffer)

    stored = pq.read_table(buffer)

    microseconds = stored["taken_at"].cast(pa.int64()).to_pylist()
    for row, taken_at in zip(stored.to_pylist(), microseconds, strict=True):
        assert row["image_id"] == image_id(row["uri"])
        assert row["photo_key"] == key_of({**row, "taken_at": taken_at})


@given(photos, photos, st.sampled_from(["uri", "size_bytes", "checksum", *FACTS]))
@settings(max_examples=100)
def test_a_photo_of_which_one_thing_changed_has_another_key(photo: dict[str, Any], other: dict[str, Any], changed: str):
    assume(photo[changed] != other[changed])

    assert key_of({**photo, changed: other[changed]}) != key_of(photo)
