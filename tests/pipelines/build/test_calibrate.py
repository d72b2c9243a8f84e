"""A map of streets driven three times, made without a network: what is fitted to it by holding back its own drives."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from fol_model.config import RerankConfig
from fol_model.inference import Reranker
from fol_model.matching import to_codes
from infra.arrays import LocalFeaturesWriter
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.calibrate import calibrate, still_calibrated
from pipelines.build.encode import finish_segment
from pipelines.build.membership import Selection, read_stored
from pipelines.engine.partition import segment_id
from schemas import layout
from schemas.calibration import Calibration, encode_calibration
from schemas.geoparquet import point_columns
from schemas.images import IMAGES, image_id
from schemas.local_features import LocalFeatures
from tests.schemas import samples

PLACES, DRIVES, DIM, LOCAL_DIM, FEATURES = 60, 3, 32, 16, 12
MODEL = "f00d"


def images(drives: int) -> pa.Table:
    """Each drive passes all places, 40 m apart, within 2 m."""
    random = np.random.default_rng(1)
    rows = [
        {
            "image_id": image_id(f"{drive}/{place}.jpg"),
            "photo_key": f"{drive} {place}",
            "uri": f"{drive}/{place}.jpg",
            "root": "/photos",
            "size_bytes": 1,
            "checksum": "sha256:00",
            "lat_deg": 55 + (40 * place + random.uniform(-2, 2)) / 111_195,
            "lon_deg": 13.0,
            "sequence_id": f"drive {drive}",
        }
        for drive in range(drives)
        for place in range(PLACES)
    ]
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in IMAGES if field.name not in ("geometry", "bbox")]))
    points = point_columns(plain["lon_deg"].to_numpy(), plain["lat_deg"].to_numpy())
    return pa.Table.from_arrays([*plain.columns, *points], schema=IMAGES)


def near(centre: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    point = centre + random.normal(scale=noise, size=centre.shape)
    return point / np.linalg.norm(point, axis=-1, keepdims=True)


def write(storage: Storage, drives: int = DRIVES) -> Selection:
    """Every tenth place looks like another one, to the descriptor; the local features tell them apart, but for a few photos."""
    random, table = np.random.default_rng(2), images(drives)
    look, detail = random.normal(size=(PLACES, DIM)), random.normal(size=(PLACES, FEATURES, LOCAL_DIM))
    look[::10] = look[5::10]
    segment = segment_id(table["photo_key"].to_pylist(), MODEL)
    folder = layout.segment_folder(segment, "a1")
    writer = LocalFeaturesWriter(
        storage, f"{folder}/{layout.LOCAL_FEATURES}", features_per_photo=FEATURES, dim=LOCAL_DIM, precision="int8"
    )
    descriptors = []
    for row in range(len(table)):
        place, dull = row % PLACES, random.random() < 0.25
        descriptors.append(near(look[place], 2.0 if dull else 0.25, random))
        features = near(detail[place], 5.0 if dull else 0.3, random).astype(np.float32)
        writer.append(
            LocalFeatures(
                features=to_codes(features),
                patch=np.zeros((FEATURES, 2), np.uint8),
                reliability=np.full(FEATURES, 200, np.uint8),
            )
        )
    finish_segment(
        storage,
        segment,
        folder,
        images=table,
        descriptors=np.array(descriptors, np.float16),
        rejects=[],
        local_features=writer.close(),
        model_fingerprint=MODEL,
    )
    return {segment: np.ones(len(table), bool)}


def fit(storage: Storage, selection: Selection) -> Calibration | None:
    return calibrate(storage, read_stored(storage, MODEL), selection, Reranker(RerankConfig()))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(str(tmp_path_factory.mktemp("map")), Settings(threads=1))


@pytest.fixture(scope="module")
def fitted(storage: Storage) -> Calibration:
    found = fit(storage, write(storage))
    assert found is not None
    return found


def test_whole_drives_are_held_back_and_at_most_half_of_the_photos_asked(fitted: Calibration):
    assert (fitted.photos, fitted.evidence.held_back) == (PLACES * DRIVES, "drives")
    assert fitted.evidence.queries == PLACES * DRIVES // 2


def test_pools_are_a_third_at_most_and_reranking_loses_nothing(fitted: Calibration):
    evidence = fitted.evidence
    assert evidence.mean_pool <= evidence.fixed_pool / 3
    assert evidence.first_reranked >= evidence.first_by_descriptor
    assert evidence.pool_recall >= evidence.first_reranked


def test_probabilities_are_fitted_with_their_evidence(fitted: Calibration):
    assert fitted.confidence is not None
    assert sum(photos for _, _, photos in fitted.evidence.reliability) == fitted.evidence.queries
    assert fitted.evidence.risk_coverage[-1][1] == 1
    assert fitted.evidence.calibration_error is not None
    assert 0 < fitted.evidence.right < fitted.evidence.queries


def test_it_comes_out_the_same_again(storage: Storage, fitted: Calibration):
    assert encode_calibration(fit(storage, write(storage))) == encode_calibration(fitted)


def test_masked_photos_take_no_part(storage: Storage, fitted: Calibration):
    """Without the second and third drive no place was seen twice."""
    selection = {name: np.arange(len(live)) < PLACES for name, live in write(storage).items()}

    assert fit(storage, selection) is None


def test_a_calibration_is_kept_until_the_map_has_grown_by_a_quarter():
    head = msgspec.structs.replace(samples.manifest(), calibration=encode_calibration(samples.calibration()))

    assert still_calibrated(head, 400, extend=False) == samples.calibration()
    assert still_calibrated(head, 500, extend=False) is None
    assert still_calibrated(head, 500, extend=True) == samples.calibration()
    assert still_calibrated(None, 360, extend=False) is None
    assert still_calibrated(msgspec.structs.replace(head, calibration=None), 360, extend=True) is None


def test_a_map_without_drives_is_left_alone(tmp_path: Path):
    place = open_storage(str(tmp_path), Settings(threads=1))

    assert fit(place, write(place, drives=1)) is None
