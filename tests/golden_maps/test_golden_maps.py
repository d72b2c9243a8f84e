"""Maps that users have, of every format that was ever published: they open, search and verify, and a rebuild encodes nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fol_model.inference import EncodedPhoto
from infra.commits import read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.maintain.verify import verify
from pipelines.query.opened_map import OpenedMap, StoredPhoto
from pipelines.query.worker import open_worker
from schemas.versions import FORMATS
from tests.golden_maps.make_golden_map import COUNT, HERE, SOURCE, golden_map, offer_photos

SETTINGS = Settings(threads=1)
VERSIONS = range(1, FORMATS["manifest"] + 1)


def stored_query(opened: OpenedMap, row: int) -> EncodedPhoto:
    """A photo of the map as a query: what was once stored of it."""
    [entry] = opened.manifest.segments
    photo = StoredPhoto(segment_id=entry.segment_id, row=row, image_id=opened.segment(entry.segment_id).image_id(row))
    [features] = opened.local_features_of([photo])
    [(_, descriptor)] = opened.descriptors_of([photo])
    return EncodedPhoto(
        descriptor=descriptor.astype(np.float32),
        features=features.features,
        patch=features.patch,
        reliability=features.reliability,
    )


def golden(version: int) -> Storage:
    return open_storage(str(golden_map(version)), SETTINGS)


def test_there_is_a_small_map_of_every_format():
    assert sorted(path.name for path in HERE.glob("format-*")) == [golden_map(version).name for version in VERSIONS]
    for version in VERSIONS:
        assert sum(path.stat().st_size for path in golden_map(version).rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_map_is_of_its_format_and_whole(version: int):
    assert read_head(golden(version)).format_version == version
    assert verify(golden(version)).problems == []
    assert verify(golden(version), version=1).problems == []


@pytest.mark.parametrize("version", VERSIONS)
def test_each_photo_of_a_golden_map_is_found_by_what_was_stored_of_it(version: int):
    """Under the network of today, which must be the one that the map was made with."""
    worker = open_worker(str(golden_map(version)), SETTINGS)

    for row in range(COUNT):
        query = stored_query(worker.map, row)
        answer = worker.answer_encoded(query)
        best = answer.candidates[0]
        assert len(answer.candidates) == COUNT
        assert best.photo.row == row
        assert best.cosine == pytest.approx(1, abs=1e-3)
        assert best.matches is not None
        assert best.matches <= len(query.features)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rebuild_on_top_of_a_golden_map_encodes_nothing(version: int, tmp_path: Path):
    place = tmp_path / "map"
    shutil.copytree(golden_map(version), place)
    offer_photos()

    built = run_build(BuildRequest(map_url=str(place), photos=(SOURCE,)), SETTINGS)

    assert (built.photos, built.known, built.encoded, built.dropped) == (COUNT, COUNT, 0, 0)
    assert verify(open_storage(str(place), SETTINGS)).problems == []
    assert open_worker(str(place), SETTINGS).map.manifest.statistics["photos"] == COUNT
