"""GeoJSON as RFC 7946 has it: longitude first, null for no position, and any file name."""

import json
from typing import Any

import pytest

from pipelines.geotag.geojson import to_geojson
from tests.schemas.samples import FACTS, TAKEN_AT, geotags


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture
def collection() -> dict[str, Any]:
    return json.loads(to_geojson(geotags(), FACTS).decode(), parse_constant=refuse)


def test_it_is_one_feature_collection_with_the_facts_beside_the_features(collection: dict[str, Any]):
    assert set(collection) == {"type", "folio", "features"}  # no crs: RFC 7946 has only WGS 84
    assert collection["type"] == "FeatureCollection"
    assert collection["folio"] == FACTS
    assert [feature["type"] for feature in collection["features"]] == ["Feature", "Feature"]


def test_an_answer_is_a_point_of_longitude_and_latitude(collection: dict[str, Any]):
    assert collection["features"][0]["geometry"] == {"type": "Point", "coordinates": [13.1902, 55.7001]}


def test_a_dont_know_has_a_null_geometry_and_says_why(collection: dict[str, Any]):
    unknown = collection["features"][1]

    assert "geometry" in unknown
    assert unknown["geometry"] is None
    assert unknown["properties"]["status"] == "unknown"
    assert unknown["properties"]["reason"] == "candidates disagree"
    assert unknown["properties"]["matched_uri"] is None


def test_properties_are_plain_and_complete_but_for_what_stands_elsewhere(collection: dict[str, Any]):
    answer = collection["features"][0]

    assert answer["id"] == answer["properties"]["query_id"] == geotags()["query_id"][0].as_py()
    left_out = {"geometry", "bbox", "lat_deg", "lon_deg", "root"}  # the root is a path of this machine
    assert set(answer["properties"]) == set(geotags().column_names) - left_out
    assert answer["properties"]["taken_at"] == TAKEN_AT.isoformat() == "2026-05-17T08:30:15.250000+00:00"
    assert answer["properties"]["expected_error_m"] == 12.5


def test_names_beyond_ascii_are_written_as_they_are():
    data = to_geojson(geotags(), FACTS)

    assert "lund/ö 2.jpg".encode() in data
    assert json.loads(data)["features"][1]["properties"]["uri"] == "lund/ö 2.jpg"


def test_no_photos_are_an_empty_collection():
    assert json.loads(to_geojson(geotags().slice(0, 0), {}))["features"] == []
