"""Indexing stored segments: what still holds is used again byte for byte, and only what changed is made anew.

A store in memory, segments of a hundred photos with 32 numbers each; 256 photos are the least that a quantizer is trained on.
"""

from collections.abc import Callable, Iterable
from uuid import uuid4

import numpy as np
import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import get_object
from pipelines import ivfpq
from pipelines.build.index import build_index
from pipelines.build.membership import Selection, StoredSegment
from pipelines.ivfpq import IndexConfig, ShardSearcher
from schemas.errors import DamagedError
from schemas.manifest import IndexEntry, Manifest, ShardEntry
from tests.pipelines.build.stored_segments import DESCRIPTORS, DIM, all_of, image_name, manifest_of, stored_of, write_segment

ONE_SHARD = IndexConfig(seed=1)
SHARD_A_SEGMENT = IndexConfig(seed=1, shard_photos=100)

Stored = dict[str, StoredSegment]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture
def stored(storage: Storage) -> Stored:
    """Three segments, west to east: photos 0 to 99 in s2, 100 to 199 in s0, 200 to 299 in s1."""
    places = {"s2": (range(100), 13.0), "s0": (range(100, 200), 13.1), "s1": (range(200, 300), 13.2)}
    return stored_of(*(write_segment(storage, name, photos, lon_deg=lon) for name, (photos, lon) in places.items()))


def with_one_more(storage: Storage, stored: Stored) -> Stored:
    """The same and, further east, photos 300 to 399."""
    return stored_of(*stored.values(), write_segment(storage, "s3", range(300, 400), lon_deg=13.3))


def index(
    storage: Storage,
    stored: Stored,
    selection: Selection,
    head: Manifest | None = None,
    *,
    config: IndexConfig = ONE_SHARD,
    extend: bool = False,
) -> IndexEntry:
    return build_index(storage, stored, selection, head, descriptor_dim=DIM, config=config, extend=extend)


def head_of(storage: Storage, stored: Stored, config: IndexConfig = ONE_SHARD) -> Manifest:
    """Publish all photos."""
    return manifest_of(stored, all_of(stored), index(storage, stored, all_of(stored), config=config))


def paths(storage: Storage) -> set[str]:
    return {info.path for info in storage.list()}


def segments_of(shards: Iterable[ShardEntry]) -> list[list[str]]:
    return [[member.segment_id for member in shard.segments] for shard in shards]


def nearest(storage: Storage, entry: IndexEntry, stored: Stored, photo: int) -> tuple[str, int]:
    """Which photo an opened index says is the nearest to a photo: segment and row."""
    searcher = ShardSearcher(
        get_object(storage, entry.quantizer) if entry.quantizer else None,
        entry.parameters.get("nprobe", 1),
        [get_object(storage, shard.file) for shard in entry.shards],
    )
    _, shard, number = searcher.search(DESCRIPTORS[[photo]].astype(np.float32), 1)[0][0]
    owners = [
        (member.segment_id, number - member.first_id)
        for member in entry.shards[shard].segments
        if 0 <= number - member.first_id < stored[member.segment_id].receipt.rows
    ]
    assert len(owners) == 1
    return owners[0]


def test_segments_beside_each_other_share_a_shard_and_ids_lead_back_to_their_rows(storage: Storage, stored: Stored):
    entry = index(storage, stored, all_of(stored))

    assert (entry.kind, entry.trained_on, len(entry.shards)) == ("ivfpq", 282, 1)  # 18 are held out
    (shard,) = entry.shards
    assert [(member.segment_id, member.first_id) for member in shard.segments] == [("s2", 0), ("s0", 100), ("s1", 200)]
    assert (shard.rows, shard.bbox) == (300, (13.0, 55.0, 13.2, 55.001))
    found = [nearest(storage, entry, stored, photo) for photo in (0, 99, 100, 142, 299)]
    assert found == [("s2", 0), ("s2", 99), ("s0", 0), ("s0", 42), ("s1", 99)]


def test_too_few_photos_are_stored_flat(storage: Storage, stored: Stored):
    two = {name: stored[name] for name in ("s0", "s1")}

    entry = index(storage, two, all_of(two))

    assert (entry.kind, entry.quantizer, entry.trained_on, entry.parameters) == ("flat", None, 0, {})
    assert nearest(storage, entry, two, 250) == ("s1", 50)


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("config", [ONE_SHARD, SHARD_A_SEGMENT])
def test_the_same_photos_again_write_nothing(storage: Storage, stored: Stored, config: IndexConfig, extend: bool):
    head = head_of(storage, stored, config)
    before = paths(storage)

    again = index(storage, stored, all_of(stored), head, config=config, extend=extend)

    assert again == head.index
    assert paths(storage) == before


def test_a_map_larger_than_its_training_sample_is_not_trained_again_for_nothing(storage: Storage, stored: Stored):
    """The sample of a huge map is capped, so the map is always many times larger than it, also right after training."""
    config = IndexConfig(seed=1, train_photos=256, retrain_growth=1.1)
    head = head_of(storage, stored, config)
    before = paths(storage)
    assert head.index.trained_on == 256

    again = index(storage, stored, all_of(stored), head, config=config)

    assert paths(storage) == before
    assert again == head.index


def test_a_backfill_keeps_every_shard_and_the_quantizer_and_adds_one(storage: Storage, stored: Stored):
    head = head_of(storage, stored)
    before = paths(storage)
    more = with_one_more(storage, stored)

    entry = index(storage, more, all_of(more), head, extend=True)

    assert entry.quantizer == head.index.quantizer
    assert head.index.shards[0] in entry.shards
    assert sorted(segments_of(entry.shards)) == [["s2", "s0", "s1"], ["s3"]]
    assert len(paths(storage) - before) == 2  # the shard and the segment's descriptors
    assert nearest(storage, entry, more, 333) == ("s3", 33)
    assert nearest(storage, entry, more, 33) == ("s2", 33)


def test_a_build_merges_small_shards_under_the_same_quantizer_and_deletes_nothing(storage: Storage, stored: Stored):
    head = head_of(storage, stored)
    before = paths(storage)
    more = with_one_more(storage, stored)

    entry = index(storage, more, all_of(more), head)

    assert entry.quantizer == head.index.quantizer
    assert segments_of(entry.shards) == [["s2", "s0", "s1", "s3"]]
    assert entry.shards[0].rows == 400
    assert before < paths(storage)


def test_a_build_keeps_the_shards_that_come_out_the_same(storage: Storage, stored: Stored):
    head = head_of(storage, stored, SHARD_A_SEGMENT)
    more = with_one_more(storage, stored)

    entry = index(storage, more, all_of(more), head, config=SHARD_A_SEGMENT)

    assert segments_of(entry.shards) == [["s0"], ["s1"], ["s2"], ["s3"]]
    assert entry.shards[:3] == head.index.shards


@pytest.mark.parametrize("extend", [False, True])
def test_a_photo_that_leaves_costs_no_shard_because_readers_pass_over_it(storage: Storage, stored: Stored, extend: bool):
    head = head_of(storage, stored, SHARD_A_SEGMENT)
    before = paths(storage)
    selection = all_of(stored)
    selection["s0"][42] = False

    entry = index(storage, stored, selection, head, config=SHARD_A_SEGMENT, extend=extend)

    assert entry == head.index
    assert paths(storage) == before


@pytest.mark.parametrize("extend", [False, True])
def test_a_shard_of_which_many_photos_left_is_made_anew_without_them(storage: Storage, stored: Stored, extend: bool):
    head = head_of(storage, stored, SHARD_A_SEGMENT)
    selection = all_of(stored)
    selection["s0"][20:46] = False

    entry = index(storage, stored, selection, head, config=SHARD_A_SEGMENT, extend=extend)

    assert [shard.rows for shard in entry.shards] == [74, 100, 100]
    assert entry.shards[1:] == head.index.shards[1:]
    assert nearest(storage, head.index, stored, 142) == ("s0", 42)
    assert nearest(storage, entry, stored, 142) != ("s0", 42)


def test_a_photo_that_comes_back_is_found_again(storage: Storage, stored: Stored):
    """The shard may have been made while it was away."""
    selection = all_of(stored)
    selection["s0"][42] = False
    head = manifest_of(stored, selection, index(storage, stored, selection, config=SHARD_A_SEGMENT))

    entry = index(storage, stored, all_of(stored), head, config=SHARD_A_SEGMENT)

    assert [shard.rows for shard in entry.shards] == [100, 100, 100]
    assert nearest(storage, entry, stored, 142) == ("s0", 42)


def test_small_shards_between_large_ones_are_merged_at_once_and_not_by_the_build_after(storage: Storage, stored: Stored):
    """20, 90 and 20 photos with room for 100: packed in the order of the curve, the first and the last are left alone."""
    sizes = {"t0": (range(300, 320), 14.0), "t1": (range(320, 410), 14.1), "t2": (range(410, 430), 14.2)}
    three = stored_of(*(write_segment(storage, name, photos, lon_deg=lon) for name, (photos, lon) in sizes.items()))

    first = index(storage, three, all_of(three), config=SHARD_A_SEGMENT)
    again = index(storage, three, all_of(three), manifest_of(three, all_of(three), first), config=SHARD_A_SEGMENT)

    assert segments_of(first.shards) == [["t0", "t2"], ["t1"]]
    assert again == first


def test_a_build_adds_photos_to_the_small_shards_alone(storage: Storage, stored: Stored):
    """What is large enough is neither read nor written again when photos come: that would cost as much as the whole map."""
    head = head_of(storage, stored, SHARD_A_SEGMENT)
    more = stored_of(
        *stored.values(), *(write_segment(storage, f"t{n}", range(300 + n, 301 + n), lon_deg=13.15) for n in range(2))
    )

    first = index(
        storage, more, {name: live for name, live in all_of(more).items() if name != "t1"}, head, config=SHARD_A_SEGMENT
    )
    second = index(storage, more, all_of(more), manifest_of(more, all_of(more), first), config=SHARD_A_SEGMENT)

    assert segments_of(first.shards) == [["s0"], ["s1"], ["s2"], ["t0"]]
    assert segments_of(second.shards) == [["s0"], ["s1"], ["s2"], ["t0", "t1"]]
    assert second.shards[:3] == head.index.shards


def test_a_segment_that_leaves_takes_its_shard_with_it(storage: Storage, stored: Stored):
    head = head_of(storage, stored := with_one_more(storage, stored), SHARD_A_SEGMENT)
    before = paths(storage)
    three = {name: rows for name, rows in all_of(stored).items() if name != "s1"}

    entry = index(storage, stored, three, head, config=SHARD_A_SEGMENT)

    assert entry.shards == [shard for shard in head.index.shards if segments_of([shard]) != [["s1"]]]
    assert paths(storage) == before


@pytest.mark.parametrize(("growth", "trained_again"), [(1.3, True), (4 / 3, False), (4.0, False)])
def test_a_map_is_trained_again_once_it_has_grown_beyond_the_limit(
    storage: Storage, stored: Stored, growth: float, trained_again: bool
):
    """From 300 photos to 400: a growth of 4/3, and that much is still allowed when it is the limit."""
    config = IndexConfig(seed=1, retrain_growth=growth)
    head = head_of(storage, stored, config)
    more = with_one_more(storage, stored)

    entry = index(storage, more, all_of(more), head, config=config, extend=True)

    assert (entry.quantizer != head.index.quantizer) == trained_again
    assert (entry.index_id != head.index.index_id) == trained_again
    assert entry.trained_on == (375 if trained_again else 282)
    assert (head.index.shards[0] in entry.shards) != trained_again  # codes of one quantizer mean nothing to another
    assert nearest(storage, entry, more, 333) == ("s3", 33)


def test_a_map_that_grows_beyond_the_flat_limit_gets_a_quantizer_and_loses_it_again_when_it_shrinks(
    storage: Storage, stored: Stored
):
    two = {name: stored[name] for name in ("s0", "s1")}
    small = head_of(storage, two)

    grown = index(storage, stored, all_of(stored), small, extend=True)
    shrunk = index(storage, stored, all_of(two), manifest_of(stored, all_of(stored), grown))

    assert (small.index.kind, grown.kind, shrunk.kind) == ("flat", "ivfpq", "flat")
    assert grown.trained_on == 282
    assert segments_of(shrunk.shards) == [["s0", "s1"]]


def test_the_quantizer_does_not_depend_on_how_photos_were_cut_into_segments(storage: Storage, stored: Stored):
    cut_otherwise = stored_of(
        *(write_segment(storage, f"other-{first}", range(first, first + 30)) for first in range(0, 300, 30))
    )

    one, two = (index(storage, each, all_of(each)) for each in (stored, cut_otherwise))

    assert one.quantizer
    assert two.quantizer
    assert one.quantizer.sha256 == two.quantizer.sha256
    assert one.index_id == two.index_id


def test_the_photos_with_the_smallest_ids_are_trained_on_and_no_masked_ones(
    storage: Storage, stored: Stored, monkeypatch: pytest.MonkeyPatch
):
    samples: list[np.ndarray] = []
    train: Callable[..., bytes] = ivfpq.train_quantizer
    monkeypatch.setattr(ivfpq, "train_quantizer", lambda sample, *rest: samples.append(sample) or train(sample, *rest))
    by_name = sorted(range(300), key=image_name)
    selection = all_of(stored)
    selection["s2"][[photo for photo in by_name[:5] if photo < 100]] = False
    allowed = [photo for photo in by_name if photo >= 100 or photo not in by_name[:5]]

    index(storage, stored, selection, config=IndexConfig(seed=1, train_photos=256))

    assert np.array_equal(samples[0], DESCRIPTORS[allowed[:256]].astype(np.float32))


def test_a_damaged_quantizer_is_not_used_for_new_shards(storage: Storage, stored: Stored):
    """FAISS loads a flipped bit without a word, and the new codes would mean something else than the old ones."""
    head = head_of(storage, stored)
    assert head.index.quantizer
    data = bytearray(storage.get(head.index.quantizer.path))
    data[len(data) // 2] ^= 1
    storage.put(head.index.quantizer.path, bytes(data))
    more = with_one_more(storage, stored)

    with pytest.raises(DamagedError, match=r"quantizer\.faiss: found sha256"):
        index(storage, more, all_of(more), head, extend=True)


def test_damaged_descriptors_are_not_indexed(storage: Storage, stored: Stored):
    (ref,) = stored["s0"].receipt.objects
    storage.put(ref.path, storage.get(ref.path)[:-1])

    with pytest.raises(DamagedError, match=r"s0/a/descriptors\.parquet: found \d+ bytes"):
        index(storage, stored, all_of(stored))
