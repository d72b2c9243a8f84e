"""Named networks, each a function that returns its settings. The command line and `inference.open_encoder` look names up here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from fol_model.config import BackboneConfig, GradientConfig, Recipe


def fol_vits14() -> Recipe:
    """FoL on ViT-S/14: 24 million parameters. The smallest one; no trained weights were published for it."""
    return _fol("fol_vits14", BackboneConfig(embed_dim=384, depth=12, heads=6))


def fol_vitb14() -> Recipe:
    """FoL on ViT-B/14: 90 million parameters, weights published as FoL_base.pth."""
    return _fol("fol_vitb14", BackboneConfig(embed_dim=768, depth=12, heads=12))


def fol_vitl14() -> Recipe:
    """FoL on ViT-L/14: 309 million parameters, weights published as FoL_large.pth. The published recalls are of this one."""
    return _fol("fol_vitl14", BackboneConfig(embed_dim=1024, depth=24, heads=16))


def folpp_vits14() -> Recipe:
    """FoL++ on ViT-S/14, to be trained; start from DINOv2's weights. One local feature for each of the best 40 % of patches."""
    return _folpp("folpp_vits14", fol_vits14())


def folpp_vitb14() -> Recipe:
    """FoL++ on ViT-B/14, to be trained; start from DINOv2's or FoL's weights."""
    return _folpp("folpp_vitb14", fol_vitb14())


def folpp_vitl14() -> Recipe:
    """FoL++ on ViT-L/14, to be trained; start from DINOv2's or FoL's weights."""
    return _folpp("folpp_vitl14", fol_vitl14())


def folio_small() -> Recipe:
    """The default: gradient histograms instead of a transformer, FoL++'s branch, heads trained on the photos at hand.

    Its weights come with Folio. It runs on a CPU, and keeps 640 local features of 52 bytes, one for each chosen patch.
    """
    return Recipe(
        name="folio-small",
        mode="folpp",
        dustbin="reliability",
        backbone=GradientConfig(),
        aggregation="vlad",
        clusters=512,
        cluster_dim=16,
        hidden=256,
        decoder_hidden=96,
        local_dim=48,
        input_size=320,
        antialias=True,
        scaled_decoding=True,
        mask_fraction=0.4,
        local_stride=4,
    )


def tiny() -> Recipe:
    """A network for demos and tests: runs on one core as fast as photos decode, with weights drawn from a seed.

    It has the same parts and the same descriptor as the others, but 40 % of the patches and one local feature for each.
    """
    return Recipe(
        name="tiny",
        backbone=BackboneConfig(embed_dim=96, depth=2, heads=2, position_grid=16),
        hidden=256,
        input_size=224,
        antialias=True,
        scaled_decoding=True,
        mask_fraction=0.4,
        local_stride=4,
        seed=0,
    )


def _fol(name: str, backbone: BackboneConfig) -> Recipe:
    """As FoL was evaluated: 504 x 504 without antialiasing, the 225 most confident patches, every local feature."""
    return Recipe(
        name=name,
        backbone=backbone,
        input_size=504,
        antialias=False,
        scaled_decoding=False,
        mask_patches=225,
        local_precision="float32",
    )


def _folpp(name: str, fol: Recipe) -> Recipe:
    """Add the reliability branch, which replaces the attention in the dustbin's scores, and keep the best 40 % of the patches."""
    return replace(
        fol,
        name=name,
        mode="folpp",
        dustbin="reliability",
        mask_patches=None,
        mask_fraction=0.4,
        local_stride=4,
        local_precision="int4",
        antialias=True,
    )


RECIPES: Final[Mapping[str, Callable[[], Recipe]]] = MappingProxyType(
    {
        recipe().name: recipe
        for recipe in (folio_small, fol_vits14, fol_vitb14, fol_vitl14, folpp_vits14, folpp_vitb14, folpp_vitl14, tiny)
    }
)
"""Every named network."""


def recipe_named(name: str) -> Recipe:
    """Look up a recipe; `fol-vitl14` is `fol_vitl14`.

    Raises:
        ValueError: no recipe has this name.
    """
    spelled = {known.replace("-", "_"): recipe for known, recipe in RECIPES.items()}
    found = spelled.get(name.replace("-", "_"))
    if found is None:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return found()
