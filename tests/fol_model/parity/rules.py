"""The made-up weights and images that the reference was run on: rules 1 to 3 of the README beside the parity files."""

import zlib
from collections.abc import Mapping
from math import prod, sqrt

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from fol_model.preprocessing import normalised


def draw(name: str, shape: tuple[int, ...]) -> Float64[np.ndarray, "..."]:
    """Rule 1: one stream per name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def synthetic_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32[np.ndarray, "..."]]:
    """Rule 2, for every tensor."""
    return {name: _weight(name, shape).astype(np.float32) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> Float64[np.ndarray, "..."]:
    z = draw(name, shape)
    if name.endswith(".gamma"):
        return 0.3 * (1 + 0.1 * z)
    if name.split(".")[-2] in ("norm1", "norm2", "norm"):
        return 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    for ending, gain in (("pos_embed", 0.2), ("cls_token", 0.5), ("mask_token", 0.5), ("bias", 0.05)):
        if name.endswith(ending):
            return gain * z
    if name in ("upconv.weight", "upconv2.weight"):
        return z / sqrt(shape[0] * 9 / 4)
    if name.endswith("attn.qkv.weight"):
        return 1.5 * z / sqrt(shape[1])
    if name == "aggregator.score.3.weight":
        return 3 * z / sqrt(512)
    return z / sqrt(prod(shape[1:]))


def chained_crc32(weights: Mapping[str, Float32[np.ndarray, "..."]]) -> int:
    """The check value over all tensors in order of their names."""
    value = 0
    for name in sorted(weights):
        value = zlib.crc32(weights[name].tobytes(), value)
    return value


def network_input(images: UInt8[np.ndarray, "N S S 3"]) -> Float32[Tensor, "N 3 S S"]:
    return torch.stack([normalised(image) for image in images])
