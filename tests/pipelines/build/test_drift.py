"""When a quantizer is trained again: once the map has outgrown it, or new photos lose too much by being coded with it.

Photos of one kind lie near a plane of 4 of the 32 dimensions, another for each kind.
"""

from uuid import uuid4

import msgspec
import numpy as np
import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines import ivfpq
from pipelines.build.drift import held_out, outcome, outlook, reason_to_train, with_new_photos
from pipelines.build.index import build_index
from pipelines.build.membership import StoredSegment
from pipelines.ivfpq import IndexConfig
from schemas.manifest import IndexEntry, Manifest
from tests.pipelines.build.stored_segments import DIM, all_of, manifest_of, stored_of, write_segment

CONFIG = IndexConfig(seed=1)
Stored = dict[str, StoredSegment]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def photos_of_kind(kind: int, count: int) -> np.ndarray:
    random = np.random.default_rng(kind)
    plane = np.linalg.qr(np.random.default_rng(100 + kind // 10).normal(size=(DIM, 4)))[0]
    points = random.normal(size=(count, 4)) @ plane.T + 0.02 * random.normal(size=(count, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def index(storage: Storage, stored: Stored, head: Manifest | None = None, *, extend: bool = False) -> IndexEntry:
    return build_index(storage, stored, all_of(stored), head, descriptor_dim=DIM, config=CONFIG, extend=extend)


@pytest.fixture
def stored(storage: Storage) -> Stored:
    """600 photos of the first kind."""
    return stored_of(write_segment(storage, "s0", range(600), descriptors=photos_of_kind(1, 600)))


@pytest.fixture
def head(storage: Storage, stored: Stored) -> Manifest:
    return manifest_of(stored, all_of(stored), index(storage, stored))


def with_photos(storage: Storage, stored: Stored, kind: int, count: int) -> Stored:
    """The same with so many more, in a segment of their own."""
    first = sum(each.receipt.rows for each in stored.values())
    more = write_segment(
        storage, f"s{len(stored)}", range(first, first + count), lon_deg=13.5, descriptors=photos_of_kind(kind, count)
    )
    return stored_of(*stored.values(), more)


def test_the_error_at_training_is_that_of_photos_held_out(storage: Storage):
    """It is what new photos of the same kind will have; that of the photos it has learned is less than half."""
    stored = stored_of(write_segment(storage, "s0", range(2_400), descriptors=photos_of_kind(1, 2_400)))
    head = manifest_of(stored, all_of(stored), index(storage, stored))
    more = with_photos(storage, stored, 2, 400)
    quantizer = storage.get(head.index.quantizer.path)

    error = head.index.parameters["error"]

    assert head.index.trained_on == 2_400 - 150  # a sixteenth
    assert ivfpq.quantization_error(quantizer, photos_of_kind(2, 400).astype(np.float32)) == pytest.approx(error, rel=0.15)
    assert index(storage, more, head).parameters["new_error"] == pytest.approx(error, rel=0.15)


def test_photos_of_the_same_kind_keep_the_quantizer_and_are_accounted_for(storage: Storage, stored: Stored, head: Manifest):
    once = with_photos(storage, stored, 2, 100)
    first = index(storage, once, head, extend=True)
    twice = with_photos(storage, once, 3, 50)

    second = index(storage, twice, manifest_of(once, all_of(once), first))

    assert (first.parameters["new_photos"], second.parameters["new_photos"]) == (100, 150)
    assert head.index.quantizer == first.quantizer == second.quantizer
    assert outcome(second, first).startswith("kept: error 0.0")
    assert "on the 150 photos encoded since, at most 0.0" in outcome(second, first)


def test_photos_of_another_kind_train_it_again_in_a_build_but_not_in_a_backfill(storage: Storage, stored: Stored, head: Manifest):
    more = with_photos(storage, stored, 11, 100)

    backfilled = index(storage, more, head, extend=True)
    kept = manifest_of(more, all_of(more), backfilled)
    plan = outlook(backfilled, 700, DIM, CONFIG, extend=False)
    rebuilt = index(storage, more, kept)

    assert backfilled.quantizer == head.index.quantizer
    assert backfilled.shards[0] == head.index.shards[0]
    assert plan.startswith("will be trained: its error on the 100 photos encoded since is 0.")
    assert "more than the bound 0." in plan
    assert rebuilt.quantizer != head.index.quantizer
    assert rebuilt.trained_for == 700
    assert "new_photos" not in rebuilt.parameters
    assert rebuilt.parameters["trained_because"] == plan.removeprefix("will be trained: ")
    assert outcome(rebuilt, backfilled).startswith("trained: its error on the 100 photos")


def test_what_was_trained_again_is_not_trained_a_third_time(storage: Storage, stored: Stored, head: Manifest):
    more = with_photos(storage, stored, 11, 100)
    rebuilt = index(storage, more, head)
    assert rebuilt.quantizer != head.index.quantizer

    assert index(storage, more, manifest_of(more, all_of(more), rebuilt)) == rebuilt


def test_a_few_odd_photos_are_no_reason(storage: Storage, stored: Stored, head: Manifest):
    more = with_photos(storage, stored, 11, 63)

    entry = index(storage, more, head)

    assert entry.quantizer == head.index.quantizer
    assert "on the 63 photos encoded since (judged from 64 on)" in outcome(entry, head.index)


def test_the_errors_of_several_runs_are_one_mean(head: Manifest):
    once = with_new_photos(head.index, 10, 0.1)

    twice = with_new_photos(once, 30, 0.2)

    assert (twice.parameters["new_photos"], twice.parameters["new_error"]) == (40, pytest.approx(0.175))


def test_a_quantizer_of_an_older_folio_is_kept_until_the_map_has_grown(storage: Storage, stored: Stored, head: Manifest):
    """It has no error to compare with."""
    sizes = {name: head.index.parameters[name] for name in ("pca_dim", "nlist", "code_bytes", "nprobe")}
    old = msgspec.structs.replace(head, index=msgspec.structs.replace(head.index, parameters=sizes))
    more = with_photos(storage, stored, 11, 100)

    assert index(storage, more, old).quantizer == head.index.quantizer
    assert outlook(old.index, 700, DIM, CONFIG, extend=False) == "kept: trained for 600 photos, its error was not measured"
    assert reason_to_train(old.index, 2_401, DIM, CONFIG, extend=True) == (
        "the map has grown from 600 to 2,401 photos, more than 4 times"
    )


def test_a_quantizer_of_an_older_format_is_made_anew_by_a_build_and_kept_by_a_backfill(
    storage: Storage, stored: Stored, head: Manifest
):
    old = msgspec.structs.replace(head.index, quantizer_format=1)

    assert reason_to_train(old, 600, DIM, CONFIG, extend=False) == "it is of format 1; this Folio's, 2, finds more"
    assert reason_to_train(old, 600, DIM, CONFIG, extend=True) is None


@pytest.mark.parametrize(("sample", "held"), [(256, 0), (263, 0), (264, 8), (320, 20), (1_600, 100), (65_536, 1_024)])
def test_photos_are_held_out_where_enough_are_left_to_train_on(sample: int, held: int):
    assert held_out(sample, CONFIG) == held


@pytest.mark.parametrize(
    ("before", "photos", "says"),
    [
        (None, 100, "none: fewer than 256 photos are searched exactly"),
        (None, 300, "will be trained: the map is new"),
        ("flat", 300, "will be trained: the map has 256 photos or more"),
        ("ivfpq", 200, "none: fewer than 256 photos are searched exactly"),
    ],
)
def test_a_plan_says_what_becomes_of_the_quantizer(head: Manifest, before: str | None, photos: int, says: str):
    entries = {"flat": manifest_of({}, {}).index, "ivfpq": head.index}

    assert outlook(entries[before] if before else None, photos, DIM, CONFIG, extend=False) == says


def test_a_map_that_wavers_about_a_size_is_not_coded_anew_each_night(head: Manifest):
    """Codes of 64 bytes need 2,048 photos; of fewer, as many bytes as there are photos for."""
    asked = IndexConfig(seed=1, code_bytes=64)
    short = msgspec.structs.replace(head.index, trained_for=2_040, parameters={**head.index.parameters, "code_bytes": 32})
    long = msgspec.structs.replace(head.index, trained_for=2_060, parameters={**head.index.parameters, "code_bytes": 64})

    assert reason_to_train(short, 2_040, 8_448, asked, extend=False) is None
    assert reason_to_train(short, 2_060, 8_448, asked, extend=False) == "codes of 64 bytes were asked for, it makes 32"
    assert reason_to_train(long, 2_040, 8_448, asked, extend=False) is None
