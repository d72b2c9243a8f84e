"""A network small enough to train in a test, and batches of made-up places that it can tell apart."""

import torch
from torch.nn import functional

from fol_model.config import BackboneConfig, Recipe
from fol_model.network import FoL
from fol_model.training.config import TrainingConfig
from fol_model.training.learner import Batch
from fol_model.weights import network_names


def small_recipe(**changed: object) -> Recipe:
    """Three blocks, 25 patches, 6 clusters."""
    settings = {
        "name": "small",
        "backbone": BackboneConfig(embed_dim=32, depth=3, heads=2, position_grid=5),
        "clusters": 6,
        "cluster_dim": 8,
        "token_dim": 8,
        "hidden": 16,
        "decoder_hidden": 16,
        "input_size": 70,
        "antialias": True,
        "scaled_decoding": True,
        "mask_fraction": 0.4,
        "local_stride": 4,
        "seed": 0,
    }
    return Recipe(**(settings | changed))  # type: ignore[arg-type]


def small_config(**changed: object) -> TrainingConfig:
    """Four places of two photos, exact numbers, and steps large enough to see."""
    settings = {
        "places_per_batch": 4,
        "photos_per_place": 2,
        "precision": "float32",
        "learning_rate": 1e-3,
        "linear_steps": 100,
        "ema_decay": 0.9,
    }
    return TrainingConfig(**(settings | changed))  # type: ignore[arg-type]


def untrained(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Weights as PyTorch draws them: seeded ones are only for recipes without a reliability branch."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return network_names(FoL(recipe).state_dict())


def batch_of(number: int, *, places: int = 4, photos: int = 2, size_px: int = 70) -> Batch:
    """The `number`-th batch: each place has a pattern of its own, each photo of it its own noise."""
    draw = torch.Generator().manual_seed(number)
    pattern = functional.interpolate(torch.randn(places, 3, 5, 5, generator=draw), size=size_px)
    images = pattern.repeat_interleave(photos, dim=0)
    return Batch(
        images=images + 0.5 * torch.randn(images.shape, generator=draw),
        places=torch.arange(places).repeat_interleave(photos),
        photos=[f"place {place} photo {photo}" for place in range(places) for photo in range(photos)],
    )
