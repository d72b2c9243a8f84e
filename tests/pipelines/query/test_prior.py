"""A search in a part of a map finds what a search of everything would find there, and opens nothing else."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st

from fol_model.config import RerankConfig
from infra.commits import publish, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.masking import checked_receipt
from pipelines.catalog.boxes import inside, meet
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.query.opened_map import OpenedMap
from pipelines.query.prior import Prior, prior_of
from pipelines.query.worker import QueryWorker
from schemas.errors import DamagedError
from tests.pipelines.maintain.photo_maps import descriptor, images, name, publish_map, write_segment, write_shard
from tests.pipelines.query.test_worker import KnowsItsModel, photo

NOTHING = {"near": None, "within": None, "bbox": (), "area": None, "taken_from": None, "taken_until": None}
SQUARE = {"type": "Polygon", "coordinates": [[[13.005, 54], [13.012, 54], [13.012, 56], [13.005, 56], [13.005, 54]]]}
PHOTOS = 20
PRIORS = [
    Prior(near=(55.0, 13.01), within_m=200.0),
    Prior(boxes=((13.0045, 54, 13.0095, 56), (13.0175, 54, 13.0185, 56))),
    Prior(area=bytes(shapely.to_wkb(shapely.from_geojson(json.dumps(SQUARE))))),
    Prior(taken_from=datetime(2026, 6, 5, tzinfo=UTC), taken_until=datetime(2026, 6, 9, tzinfo=UTC)),
    Prior(near=(55.0, 13.01), within_m=500.0, taken_until=datetime(2026, 6, 9, tzinfo=UTC)),
]

longitudes = st.floats(-180, 180) | st.sampled_from([-180.0, 179.9999, 180.0])
latitudes = st.floats(-90, 90) | st.sampled_from([-90.0, 89.9999, 90.0])


def table(lat: list[float], lon: list[float], taken: list[datetime | None] | None = None) -> pa.Table:
    times = pa.array(taken or [None] * len(lat), pa.timestamp("us", tz="UTC"))
    return pa.table({"lat_deg": np.array(lat, np.float64), "lon_deg": np.array(lon, np.float64), "taken_at": times})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Twenty photos 64 m apart in segments of four, taken on the first twenty days of June; of the last nobody knows when."""
    opened = open_storage(str(tmp_path / "map"), Settings(threads=1))
    receipts = []
    for start in range(0, PHOTOS, 4):
        photos = images(range(start, start + 4))
        days = [datetime(2026, 6, 1 + number, 12, tzinfo=UTC) if number < 19 else None for number in range(start, start + 4)]
        column = photos.schema.get_field_index("taken_at")
        receipts.append(
            write_segment(opened, photos.set_column(column, photos.field(column), pa.array(days, photos.field(column).type)))
        )
    publish_map(opened, receipts)
    return opened


def open_map(storage: Storage) -> OpenedMap:
    return OpenedMap(storage, read_head(storage))


@given(
    near=st.tuples(latitudes, longitudes),
    within_m=st.floats(1, 2e7),
    point=st.tuples(latitudes, longitudes),
    size=st.floats(0, 5),
)
def test_no_segment_that_holds_a_match_is_passed_over_for_its_distance(
    near: tuple[float, float], within_m: float, point: tuple[float, float], size: float
):
    prior = Prior(near=near, within_m=within_m)
    lat, lon = point
    bbox = (max(-180.0, lon - size), max(-90.0, lat - size), min(180.0, lon + size), min(90.0, lat + size))

    if prior.matches(table([lat], [lon]))[0]:
        assert prior.touches(bbox)


@given(
    box=st.tuples(longitudes, latitudes, longitudes, latitudes),
    other=st.tuples(longitudes, latitudes, longitudes, latitudes),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@example(box=(1.0, 0.0, 0.0, 0.0), other=(1e-163, 0.0, 0.5, 0.0), share=(0.0, 0.0))
def test_boxes_with_a_point_in_common_meet(
    box: tuple[float, float, float, float], other: tuple[float, float, float, float], share: tuple[float, float]
):
    (west, south, east, north), (west_2, south_2, east_2, north_2) = box, other
    box, other = (
        (west, min(south, north), east, max(south, north)),
        (west_2, min(south_2, north_2), east_2, max(south_2, north_2)),
    )
    width = (east - west) % 360
    lon = (west + share[0] * width + 180) % 360 - 180
    lat = box[1] + share[1] * (box[3] - box[1])
    point = (np.array([lon]), np.array([lat]))

    assert meet(box, other) == meet(other, box)
    if inside(*point, box)[0] and inside(*point, other)[0]:
        assert meet(box, other)


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_found_is_what_a_search_of_everything_finds_there(storage: Storage, prior: Prior):
    opened = open_map(storage)
    allowed = {
        one
        for segment in opened.manifest.segments
        for one in opened.segment(segment.segment_id)
        .images.filter(pa.array(prior.matches(opened.segment(segment.segment_id).images)))["image_id"]
        .to_pylist()
    }
    assert 0 < len(allowed) < PHOTOS

    for number in range(PHOTOS):
        everything = [one.image_id for one in opened.nearest(descriptor(number), PHOTOS)]
        found = [one.image_id for one in opened.nearest(descriptor(number), 3, prior)]
        assert found == [one for one in everything if one in allowed][:3]


def test_segments_elsewhere_are_not_opened(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    read: set[str] = set()
    get = storage.get
    monkeypatch.setattr(
        storage, "get", lambda path, **where: read.add(path.split("/")[1].removesuffix(".json")) or get(path, **where)
    )
    opened = open_map(storage)

    found = opened.nearest(descriptor(3), 10, Prior(boxes=((13.0039, 54, 13.0071, 56),)))

    assert {one.image_id for one in found} == {name(number) for number in range(4, 8)}
    assert len(read & {entry.segment_id for entry in opened.manifest.segments}) == 1


WEST = Prior(boxes=((13.0, 54, 13.0071, 56),))
"""Photos 0 to 7: of the first of two shards."""


def publish_two_shards(storage: Storage) -> list[str]:
    """Publish the photos in two shards, cut between 11 and 12. Gives their paths."""
    first = read_head(storage)
    receipts = [checked_receipt(storage, entry) for entry in first.segments]
    receipts.sort(key=lambda receipt: receipt.bbox)
    shards = [write_shard(storage, receipts[:3]), write_shard(storage, receipts[3:])]
    index = msgspec.structs.replace(first.index, shards=shards)
    publish(storage, lambda head: msgspec.structs.replace(first, index=index, content_id="two shards"))
    return [shard.file.path for shard in shards]


def test_only_shards_that_a_prior_touches_are_read_and_the_others_once_they_are_searched(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    paths, read, get = publish_two_shards(storage), [], storage.get
    monkeypatch.setattr(storage, "get", lambda path, **where: read.append(path) or get(path, **where))

    opened = OpenedMap(storage, read_head(storage), WEST)
    assert [path for path in read if path in paths] == paths[:1]
    assert [one.image_id for one in opened.nearest(descriptor(3), 1, WEST)] == [name(3)]
    assert [path for path in read if path in paths] == paths[:1]
    assert [one.image_id for one in opened.nearest(descriptor(15), 1)] == [name(15)]
    assert [path for path in read if path in paths] == paths


def test_any_place_and_time_finds_what_a_search_of_everything_finds_there_in_one_shard_or_two(storage: Storage):
    whole = open_map(storage)
    publish_two_shards(storage)
    cut = open_map(storage)
    segments = [whole.segment(entry.segment_id).images for entry in whole.manifest.segments]
    everything = {n: [one.image_id for one in whole.nearest(descriptor(n), PHOTOS)] for n in range(PHOTOS)}
    days = st.none() | st.integers(1, 20).map(lambda day: datetime(2026, 6, day, tzinfo=UTC))

    @given(
        near=st.none() | st.integers(-2, 22).map(lambda place: (55.0, 13 + place / 1000)),
        within_m=st.floats(30, 800),
        edges=st.none() | st.lists(st.floats(13, 13.02), min_size=2, max_size=2).map(sorted),
        taken=st.tuples(days, days),
        photo=st.integers(0, PHOTOS - 1),
        count=st.integers(1, PHOTOS),
    )
    def holds(
        near: tuple[float, float] | None,
        within_m: float,
        edges: list[float] | None,
        taken: tuple[datetime | None, datetime | None],
        photo: int,
        count: int,
    ) -> None:
        first, last = taken if None in taken else sorted(taken)  # type: ignore[type-var]
        boxes = ((edges[0], 54, edges[1], 56),) if edges else ()
        prior = Prior(near=near, within_m=within_m, boxes=boxes, taken_from=first, taken_until=last)
        allowed = {one for images in segments for one in images.filter(pa.array(prior.matches(images)))["image_id"].to_pylist()}

        expected = [one for one in everything[photo] if one in allowed][:count]

        for opened in (whole, cut):
            assert [one.image_id for one in opened.nearest(descriptor(photo), count, prior)] == expected

    holds()


def test_a_damaged_shard_is_found_when_the_map_is_opened_unless_a_prior_leaves_it_alone(storage: Storage):
    _, path = publish_two_shards(storage)
    storage.put(path, storage.get(path)[:-1])

    with pytest.raises(DamagedError, match=path):
        open_map(storage)
    opened = OpenedMap(storage, read_head(storage), WEST)
    assert [one.image_id for one in opened.nearest(descriptor(3), 1, WEST)] == [name(3)]
    with pytest.raises(DamagedError, match=path):
        opened.nearest(descriptor(3), 1)


def test_photos_taken_down_stay_away(storage: Storage):
    takedown(storage, TakedownRequest(image_ids=frozenset([name(5)])))

    found = open_map(storage).nearest(descriptor(5), 10, Prior(boxes=((13.0039, 54, 13.0071, 56),)))

    assert {one.image_id for one in found} == {name(number) for number in (4, 6, 7)}


def test_a_worker_looks_only_there(storage: Storage):
    opened = open_map(storage)
    worker = QueryWorker(storage, opened, KnowsItsModel(), RerankConfig(), prior=PRIORS[0])  # type: ignore[arg-type]

    answer = worker.answer_encoded(photo(2))

    assert {one.photo.image_id for one in answer.candidates} == {name(number) for number in (7, 8, 9, 10, 11, 12, 13)}


def test_a_day_is_meant_to_its_end_and_an_unknown_time_is_in_no_range():
    prior = prior_of(**{**NOTHING, "taken_until": "2026-06-09"})
    times = [datetime(2026, 6, 9, 23, 30, tzinfo=UTC), datetime(2026, 6, 10, tzinfo=UTC), None]

    assert prior is not None
    assert prior.matches(table([0.0] * 3, [0.0] * 3, times)).tolist() == [True, False, False]


def test_what_a_command_line_says_is_read(tmp_path: Path):
    area = tmp_path / "area.geojson"
    area.write_text(
        json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": SQUARE}]})
    )

    read = prior_of(
        near="55.7,13.19", within="2km", bbox=("1,2,3,4",), area=str(area), taken_from="2026-06-01T10:00+02:00", taken_until=None
    )

    assert read is not None
    assert (read.near, read.within_m, read.boxes) == ((55.7, 13.19), 2000.0, ((1, 2, 3, 4),))
    assert read.taken_from == datetime(2026, 6, 1, 8, tzinfo=UTC)
    assert read.matches(table([55.0] * 2, [13.006, 13.004])).tolist() == [False, False]  # not near
    assert prior_of(**NOTHING) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"near": "55.7"}, "latitude,longitude"),
        ({"near": "95,13"}, "latitude,longitude"),
        ({"near": "55,13", "within": "2 miles"}, "with m or km"),
        ({"near": "55,13", "within": "0m"}, "positive"),
        ({"within": "200m"}, "--near LAT,LON"),
        ({"bbox": ("1,2,3",)}, "west,south,east,north"),
        ({"bbox": ("1,5,3,4",)}, "south up to north"),
        ({"taken_from": "June"}, "2026-06-01"),
        ({"taken_from": "2026-06-02", "taken_until": "2026-06-01"}, "nothing lies between"),
        ({"area": "nowhere.geojson"}, "nowhere.geojson: needed GeoJSON"),
    ],
)
def test_what_cannot_be_read_is_refused(given: dict[str, str], says: str):
    with pytest.raises(ValueError, match=says):
        prior_of(**{**NOTHING, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "needed GeoJSON with polygons"),
        ('{"type": "Point", "coordinates": [1, 2]}', "found a Point without any"),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [500000, 0], [500000, 6000000], [0, 0]]]}',
            "longitude and latitude in degrees",
        ),
    ],
)
def test_a_file_without_polygons_in_degrees_is_refused(tmp_path: Path, content: str, says: str):
    file = tmp_path / "area.geojson"
    file.write_text(content)

    with pytest.raises(ValueError, match=says):
        prior_of(**{**NOTHING, "area": str(file)})  # type: ignore[arg-type]
