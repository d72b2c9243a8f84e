"""Where training starts when there are no weights to start from: the heads are fitted to photos, so that untrained they already
compute a descriptor made by hand.

For recipes with `aggregation="vlad"`: principal components of the patch features (scaled half-way to white), k-means centres, and
principal components of the layout. Every linear map goes through a hidden ReLU layer as pairs of opposite units, whose difference
is the map itself; training may bend it.

Letters: n samples, C channels of a patch, K channels of a cluster, m clusters, T numbers of a layout.
"""

from collections.abc import Iterable
from typing import Final

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from fol_model.config import Recipe
from fol_model.network import FoL
from fol_model.vlad import VladAggregator
from fol_model.weights import network_names

PATCHES_PER_PHOTO: Final = 64
"""Sampled for principal components and k-means; the stronger a patch, the likelier."""

SHARPNESS: Final = 40.0
"""How much a patch prefers the nearest centre at first: nats for each unit of half a squared distance."""

ASSIGNMENT_DIM: Final = 64
"""Principal components that say which centres a patch is near, however few of them its residuals keep. At most half as many as
there are hidden units."""

LAYOUT_WEIGHT: Final = 0.1
"""Length of the layout's part of a descriptor relative to that of the clusters."""

K_MEANS_ROUNDS: Final = 15


@torch.no_grad()
def fitted_start(
    recipe: Recipe, photos: Iterable[Float32[Tensor, "B 3 S S"]], *, seed: int = 0
) -> dict[str, Float32[Tensor, "..."]]:
    """Fit the heads of a `vlad` recipe to photos.

    Args:
        recipe: with `aggregation="vlad"`.
        photos: normalised, in batches; some hundred that show what the map will show.
        seed: of sampling, of k-means, and of the layers that are not fitted.

    Returns:
        Weights under the reference's names, for `weights.build` or `Learner`.

    Raises:
        ValueError: another aggregation, or too few photos.
    """
    if recipe.aggregation != "vlad":
        raise ValueError(f"recipe {recipe.name}: only aggregation vlad can be fitted to photos, not {recipe.aggregation}")
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FoL(recipe).eval()
    _fit(network, photos, random)
    return network_names({name: tensor.clone() for name, tensor in network.state_dict().items()})


def principal_components(
    samples: Float[Tensor, "n C"], kept: int, *, whiteness: float
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C kept"]]:
    """Find the mean and the directions of most variance, strongest first.

    Args:
        samples: more of them than directions kept.
        kept: how many directions.
        whiteness: 0: unit directions; 1: all get the variance of the strongest; between: part of the way.
    """
    mean = samples.mean(dim=0)
    centred = samples - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(samples))
    variance, directions = variance.flip(0)[:kept], directions.flip(1)[:, :kept]
    relative = (variance / variance[0]).clamp(min=1e-6)
    return mean, directions * relative ** (-whiteness / 2)


def k_means(samples: Float[Tensor, "n K"], clusters: int, random: torch.Generator) -> Float[Tensor, "m K"]:
    """Find cluster centres; one that loses all its samples starts again at a random one."""
    centres = samples[torch.randperm(len(samples), generator=random)[:clusters]].clone()
    for _ in range(K_MEANS_ROUNDS):
        nearest = (samples @ centres.T - centres.square().sum(dim=1) / 2).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, samples)
        counts = torch.bincount(nearest, minlength=clusters).unsqueeze(1)
        fresh = samples[torch.randint(len(samples), (clusters,), generator=random)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), fresh)
    return centres


def _fit(network: FoL, photos: Iterable[Float32[Tensor, "B 3 S S"]], random: torch.Generator) -> None:
    recipe, aggregator = network.recipe, network.aggregator
    assert isinstance(aggregator, VladAggregator)
    patches, layouts = _samples(network, photos, random)
    if len(layouts) <= recipe.token_dim:
        raise ValueError(
            f"the heads of recipe {recipe.name} need more than {recipe.token_dim} photos to be fitted, got {len(layouts)}"
        )
    assignment_dim = max(recipe.cluster_dim, min(ASSIGNMENT_DIM, recipe.hidden // 2))
    mean, components = principal_components(patches, max(assignment_dim, recipe.local_dim), whiteness=0.5)
    near, kept = components[:, :assignment_dim], components[:, : recipe.cluster_dim]
    centres = k_means((patches - mean) @ near, recipe.clusters, random)
    identity = torch.eye(recipe.cluster_dim)
    _pair_up(aggregator.cluster_features, kept.T, -(mean @ kept), identity, torch.zeros(recipe.cluster_dim))
    half_length = centres.square().sum(dim=1) / 2
    _pair_up(aggregator.score, near.T, -(mean @ near), SHARPNESS * centres, -SHARPNESS * half_length)
    aggregator.centres.copy_(centres[:, : recipe.cluster_dim])
    layout_mean, layout_kept = principal_components(layouts, recipe.token_dim, whiteness=0.0)
    identity = torch.eye(recipe.token_dim)
    _pair_up(aggregator.token_features, layout_kept.T, -(layout_mean @ layout_kept), identity, torch.zeros(recipe.token_dim))
    aggregator.token_weight.fill_(LAYOUT_WEIGHT)
    local = components[:, : recipe.local_dim]
    _interpolate(network.decoder.upconv, torch.cat([local, -local], dim=1), torch.cat([-(mean @ local), mean @ local]))
    identity = torch.eye(recipe.local_dim)
    _interpolate(network.decoder.upconv2, torch.cat([identity, -identity]), torch.zeros(recipe.local_dim))


def _samples(
    network: FoL, photos: Iterable[Float32[Tensor, "B 3 S S"]], random: torch.Generator
) -> tuple[Float[Tensor, "n C"], Float[Tensor, "photos T"]]:
    """Collect patches of every photo, the stronger the likelier, and the layouts of all."""
    patches, layouts = [], []
    for images in photos:
        features = network.backbone(images)
        by_patch = features.patches.flatten(2).transpose(1, 2)  # (B, N, C)
        strength = torch.ones(by_patch.shape[:2]) if features.strength is None else features.strength
        chosen = torch.multinomial(strength + 1e-6, PATCHES_PER_PHOTO, generator=random)
        patches.append(by_patch.gather(1, chosen.unsqueeze(2).expand(-1, -1, by_patch.shape[2])).flatten(0, 1))
        layouts.append(features.token)
    if not patches:
        raise ValueError("no photos to fit the heads to")
    return torch.cat(patches), torch.cat(layouts)


def _pair_up(
    layers: nn.Sequential,
    first: Float[Tensor, "k C"],
    first_bias: Float[Tensor, " k"],
    second: Float[Tensor, "out k"],
    second_bias: Float[Tensor, " out"],
) -> None:
    """Make two layers with a ReLU between them compute second (first x + first_bias) + second_bias; other hidden units say 0."""
    (into, into_bias), (out, out_bias) = _parameters(layers[0]), _parameters(layers[-1])
    k = len(first)
    if 2 * k > len(into):
        raise ValueError(f"{len(into)} hidden units hold pairs for {len(into) // 2} directions, not {k}")
    into[: 2 * k] = torch.cat([first, -first]).view(2 * k, *into.shape[1:])
    into_bias[: 2 * k] = torch.cat([first_bias, -first_bias])
    out.zero_()
    out[:, : 2 * k] = torch.cat([second, -second], dim=1).view(len(second), 2 * k, *out.shape[2:])
    out_bias.copy_(second_bias)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Give weight and bias, to be written to."""
    weight, bias = layer.parameters()
    return weight, bias


def _interpolate(conv: nn.ConvTranspose2d, across: Float[Tensor, "C out"], bias: Float[Tensor, " out"]) -> None:
    """Make an up-convolution map channels and interpolate linearly between pixels."""
    weight, own_bias = _parameters(conv)
    tent = torch.tensor([0.5, 1.0, 0.5])
    weight.zero_()
    weight[: len(across), : across.shape[1]] = across[:, :, None, None] * tent.outer(tent)
    own_bias.zero_()
    own_bias[: len(bias)] = bias
