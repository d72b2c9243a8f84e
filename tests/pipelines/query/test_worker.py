"""A query worker stands on one version per answer and moves on without dropping a request."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fol_model.config import PoolConfig, RerankConfig
from fol_model.inference import EncodedPhoto
from infra.commits import publish, read_head, receipt_path, retire
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import Answer, QueryWorker
from schemas import layout
from schemas.calibration import Calibration, PoolFit, encode_calibration
from schemas.errors import DamagedError, MapError, ObjectMissing
from schemas.manifest import Manifest
from tests.pipelines.maintain.photo_maps import LOCAL_DIM, MODEL, descriptor, images, publish_map, write_segment
from tests.schemas import samples


class KnowsItsModel:
    """All that a worker asks of an encoder when photos are encoded already."""

    fingerprint = MODEL.fingerprint
    reranking = RerankConfig()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "map"), Settings(threads=1))


BOTH = RerankConfig(pool=PoolConfig(fixed_size=2))


def worker_on(
    storage: Storage, manifest: Manifest, *, follows: bool = True, config: RerankConfig = KnowsItsModel.reranking
) -> QueryWorker:
    encoder: Any = KnowsItsModel()
    return QueryWorker(storage, OpenedMap(storage, manifest), encoder, config, follows=follows)


def photo(number: int) -> EncodedPhoto:
    """The photo of the map with this number, as a query."""
    return EncodedPhoto(
        descriptor=descriptor(number),
        features=np.full((1, LOCAL_DIM), number / 1000, np.float16),
        patch=np.zeros((1, 2), np.uint8),
        reliability=np.ones(1, np.uint8),
    )


def publish_photos(storage: Storage, *numbers: int) -> Manifest:
    """A version of exactly these photos, in segments of two that no other version has."""
    pairs = [numbers[start : start + 2] for start in range(0, len(numbers), 2)]
    return publish_map(storage, [write_segment(storage, images(pair)) for pair in pairs])


def purge(storage: Storage, manifest: Manifest) -> None:
    """Remove all that a version consists of, as soon as a newer one is published."""
    retire(storage, [manifest.version], reason="purge")
    for entry in manifest.segments:
        storage.delete(receipt_path(entry.segment_id))
        for info in list(storage.list(layout.segment_folder(entry.segment_id, entry.attempt))):
            storage.delete(info.path)
    for shard in manifest.index.shards:
        storage.delete(shard.file.path)


def said(answer: Answer) -> list[tuple[str, float, int | None]]:
    return [(candidate.photo.image_id, candidate.cosine, candidate.matches) for candidate in answer.candidates]


def test_a_worker_stays_with_its_version_until_it_is_told(storage: Storage):
    worker = worker_on(storage, publish_photos(storage, 1, 2))
    publish_photos(storage, 3, 4)

    assert worker.answer_encoded(photo(1)).map.manifest.version == 1
    assert worker.refresh()
    assert worker.answer_encoded(photo(1)).map.manifest.version == 2
    assert not worker.refresh()


def test_an_answer_keeps_the_version_it_came_from(storage: Storage):
    worker = worker_on(storage, publish_photos(storage, 1, 2))
    answer = worker.answer_encoded(photo(1))
    publish_photos(storage, 3, 4)
    worker.refresh()

    best = answer.candidates[0].photo
    assert answer.map.segment(best.segment_id).images["uri"][best.row].as_py() == "lund/1.jpg"


def test_when_objects_are_gone_the_answer_comes_from_the_newest_version(storage: Storage):
    first = publish_photos(storage, 1, 2)
    worker = worker_on(storage, first)
    publish_photos(storage, 1, 3)
    purge(storage, first)

    answer = worker.answer_encoded(photo(1))

    assert answer.map.manifest.version == 2
    assert said(answer) == said(worker_on(storage, read_head(storage)).answer_encoded(photo(1)))


def test_objects_that_are_gone_without_a_newer_version_are_an_error(storage: Storage):
    first = publish_photos(storage, 1, 2)
    worker = worker_on(storage, first)
    purge(storage, first)

    with pytest.raises((ObjectMissing, DamagedError)):
        worker.answer_encoded(photo(1))


def test_a_worker_that_was_given_a_version_never_leaves_it(storage: Storage):
    first = publish_photos(storage, 1, 2)
    worker = worker_on(storage, first, follows=False)
    publish_photos(storage, 3, 4)

    assert not worker.refresh()
    assert worker.answer_encoded(photo(1)).map.manifest.version == 1
    worker = worker_on(storage, first, follows=False)
    purge(storage, first)
    with pytest.raises(MapError, match="version 1 is retired"):
        worker.answer_encoded(photo(1))


def test_a_worker_does_not_move_to_another_network(storage: Storage, caplog: pytest.LogCaptureFixture):
    first = publish_photos(storage, 1, 2)
    worker = worker_on(storage, first)
    model = msgspec.structs.replace(MODEL, fingerprint="other")
    publish(storage, lambda head: msgspec.structs.replace(first, model=model, content_id="other"))

    assert not worker.refresh()
    assert "version 2 is made with another network; staying behind" in caplog.text
    assert worker.answer_encoded(photo(1)).map.manifest.version == 1


def test_a_damaged_newest_version_leaves_the_worker_where_it_is(storage: Storage):
    worker = worker_on(storage, publish_photos(storage, 1, 2))
    second = publish_photos(storage, 3, 4)
    storage.delete(second.index.shards[0].file.path)

    with pytest.raises((ObjectMissing, DamagedError)):
        worker.refresh()

    assert worker.answer_encoded(photo(1)).map.manifest.version == 1


# ------------------------------------------------------------------------------- local features that cannot be used


def spoil_features(storage: Storage, manifest: Manifest) -> None:
    """Flip a bit in the first chunk of the first segment: of one photo."""
    folder = layout.segment_folder(manifest.segments[0].segment_id, manifest.segments[0].attempt)
    path = f"{folder}/{layout.LOCAL_FEATURES}/c/0/0/0"
    flipped = bytearray(storage.get(path))
    flipped[5] ^= 1
    storage.put(path, bytes(flipped))


def test_a_candidate_with_damaged_features_keeps_its_global_place_and_the_answer_says_so(
    storage: Storage, caplog: pytest.LogCaptureFixture
):
    first = publish_photos(storage, 1, 2)
    whole = worker_on(storage, first).answer_encoded(photo(1))
    spoil_features(storage, first)

    answer = worker_on(storage, first).answer_encoded(photo(1))

    (lacking,) = answer.without_features
    assert whole.without_features == []
    assert {one.photo.image_id for one in answer.candidates} == {one.photo.image_id for one in whole.candidates}
    assert [one.cosine for one in answer.candidates] == [one.cosine for one in whole.candidates]
    assert [one.matches for one in answer.candidates if one.photo.image_id == lacking] == [0]
    assert "is ranked by its descriptor alone" in caplog.text
    assert "wrong crc32c" in caplog.text


def test_features_of_a_whole_segment_are_not_done_without_in_silence(storage: Storage):
    """What is damaged is what says how to read them: of all photos there, not of one."""
    first = publish_photos(storage, 1, 2)
    folder = layout.segment_folder(first.segments[0].segment_id, first.segments[0].attempt)
    path = f"{folder}/{layout.LOCAL_FEATURES}/zarr.json"
    storage.put(path, storage.get(path)[:-1])

    with pytest.raises(DamagedError, match=path):
        worker_on(storage, first).answer_encoded(photo(1))


def test_damaged_features_of_an_old_version_are_left_for_the_newest(storage: Storage):
    first = publish_photos(storage, 1, 2)
    worker = worker_on(storage, first)
    spoil_features(storage, first)
    publish_photos(storage, 1, 3)

    answer = worker.answer_encoded(photo(1))

    assert (answer.map.manifest.version, answer.without_features) == (2, [])


@pytest.mark.parametrize("features", [np.zeros((0, LOCAL_DIM), np.float16), np.ones((1, 7), np.float16)], ids=["none", "size"])
def test_candidates_and_queries_whose_features_do_not_fit_are_ranked_by_descriptor(storage: Storage, features: np.ndarray):
    """No features at all, as of a photo that is all padding; or as of a map that another recipe wrote."""
    worker = worker_on(storage, publish_photos(storage, 1, 2), config=BOTH)
    n = len(features)
    query = replace(photo(1), features=features, patch=np.zeros((n, 2), np.uint8), reliability=np.ones(n, np.uint8))

    answer = worker.answer_encoded(query)

    assert [(one.global_rank, one.matches) for one in answer.candidates] == [(1, 0), (2, 0)]
    assert len(answer.without_features) == 2 * n


# ------------------------------------------------------------------------------------------- what was fitted to the map


def test_a_worker_uses_what_was_fitted_to_its_map_unless_it_was_told_otherwise(storage: Storage):
    fitted = Calibration(
        photos=6,
        pool=PoolFit(sure_gap=10.0, sure_sigmas=6.0, enough=4.0),
        distinct_weight=0.0,
        confidence=None,
        evidence=samples.calibration().evidence,
    )
    first = publish_photos(storage, 1, 2, 3, 4, 5, 6)
    second = msgspec.structs.replace(first, calibration=encode_calibration(fitted), content_id="fitted")
    publish(storage, lambda head: second)
    plain, with_fit = worker_on(storage, first), worker_on(storage, read_head(storage))
    told = QueryWorker(storage, with_fit.map, with_fit.encoder, RerankConfig(mode="count"))

    assert plain.answer_encoded(photo(1)).pool_size == told.answer_encoded(photo(1)).pool_size == 1  # it is beyond doubt
    assert with_fit.answer_encoded(photo(1)).pool_size == 6
