"""Networks that several test files share; made once, because drawing 24 million weights takes a second."""

import numpy as np
import pytest
from jaxtyping import Float32

from fol_model import from_reference
from fol_model.inference import Encoder
from fol_model.network import FoL
from fol_model.recipes import recipe_named, tiny
from fol_model.weights import expected_shapes
from tests.fol_model.parity.rules import synthetic_weights


@pytest.fixture(scope="session")
def vits14_weights() -> dict[str, Float32[np.ndarray, "..."]]:
    """Weights of the parity files, under the reference's names."""
    return synthetic_weights(expected_shapes(recipe_named("fol_vits14")))


@pytest.fixture(scope="session")
def vits14(vits14_weights: dict[str, Float32[np.ndarray, "..."]]) -> FoL:
    return from_reference(vits14_weights, recipe="fol_vits14")


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    return Encoder(tiny(), device="cpu")
