"""A calibration survives its way through a manifest."""

import msgspec

from schemas.calibration import decode_calibration, encode_calibration
from schemas.manifest import decode_manifest, encode_json
from tests.schemas import samples


def test_a_calibration_comes_back_from_a_manifest():
    fitted = samples.calibration()
    manifest = msgspec.structs.replace(samples.manifest(), calibration=encode_calibration(fitted))

    stored = decode_manifest(encode_json(manifest), where="here").calibration

    assert decode_calibration(stored) == fitted
    assert decode_calibration(None) is None
    assert encode_calibration(None) is None
