"""The DINOv2 vision transformer, written out, with the attention that its class token pays to each patch.

Source: facebookresearch/dinov2@b8931f7, without registers; and for the attention chenshunpeng/FoL@e930a76. The names of the
parameters are those of DINOv2's checkpoints.

Letters: B images, g patches along a side, N = g * g, T = N + 1 tokens (the class token first), C channels.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fol_model.config import BackboneConfig
from fol_model.reliability import tapped_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneFeatures:
    """What the backbone says of each image."""

    patches: Float[Tensor, "B C g g"]
    """Patch tokens after the final LayerNorm, F in the paper."""

    token: Float[Tensor, "B token"]
    """The class token after the final LayerNorm."""

    attention: Float[Tensor, "B N"]
    """The last block's attention from the class token to each patch, summed over the heads (the paper says averaged)."""

    taps: tuple[Float[Tensor, "B tap g g"], ...]
    """Raw patch tokens after a half, three quarters and all of the blocks, for the reliability branch."""

    strength: Float[Tensor, "B N"] | None = None
    """How much there is to see in each patch, 0 to 1, where the backbone measures it."""

    def as_float32(self) -> "BackboneFeatures":
        """The same in float32."""
        return BackboneFeatures(
            patches=self.patches.float(),
            token=self.token.float(),
            attention=self.attention.float(),
            taps=tuple(tap.float() for tap in self.taps),
            strength=None if self.strength is None else self.strength.float(),
        )


class Backbone(nn.Module):
    """Images to patch tokens, class token and class attention."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.position_grid**2, C))
        self.mask_token = nn.Parameter(torch.zeros(1, C))  # unused; checkpoints carry it, and loading is strict
        self.patch_embed = _PatchEmbedding(config)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(C, eps=1e-6)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> BackboneFeatures:
        """Run every block."""
        g = images.shape[-1] // self.config.patch
        tokens = self.embed(images)
        outputs = []
        for block in self.blocks:
            before, tokens = tokens, block(tokens)
            outputs.append(tokens)
        attention = cast(_Block, self.blocks[-1]).class_attention(before)
        normed = self.norm(tokens)
        taps = tuple(_as_grid(outputs[index], g) for index in tapped_blocks(len(outputs)))
        return BackboneFeatures(patches=_as_grid(normed, g), token=normed[:, 0], attention=attention, taps=taps)

    def embed(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B T C"]:
        """Make the tokens that enter the first block."""
        patches = self.patch_embed.proj(images)
        tokens = patches.flatten(2).transpose(1, 2)
        with_class = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        return with_class + self._positions(patches.shape[-1])

    def _positions(self, g: int) -> Float[Tensor, "1 T C"]:
        """Resample the position table as DINOv2 does: the step is grid / (g + 0.1), not grid / g."""
        grid = self.config.position_grid
        if g == grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, grid, grid)
        scale = (g + 0.1) / grid
        resized = functional.interpolate(table, scale_factor=(scale, scale), mode="bicubic")
        assert resized.shape[-1] == g
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def _as_grid(tokens: Float[Tensor, "B T C"], g: int) -> Float[Tensor, "B C g g"]:
    """Lay out the patch tokens as a picture, without the class token."""
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, g, g)


class _PatchEmbedding(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch, stride=config.patch)


class _Block(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = _Attention(config)
        self.ls1 = _LayerScale(config.embed_dim)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = _Mlp(config)
        self.ls2 = _LayerScale(config.embed_dim)

    def forward(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + cast(Tensor, self.ls2(self.mlp(self.norm2(tokens))))

    def class_attention(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B N"]:
        return self.attn.class_attention(self.norm1(tokens))


class _Attention(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        q, k, v = self._split(tokens)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(Tensor, self.proj(mixed))

    def class_attention(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B N"]:
        q, k, _ = self._split(tokens)
        scores: Tensor = q[:, :, :1] @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, heads, 1, T)
        return scores.softmax(dim=-1)[:, :, 0, 1:].sum(dim=1)

    def _split(self, tokens: Float[Tensor, "B T C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, T, C / heads)."""
        B, T, C = tokens.shape
        qkv = self.qkv(tokens).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class _LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.embed_dim
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return cast(Tensor, self.fc2(functional.gelu(self.fc1(x))))
