"""The reliability estimation branch of FoL++: how likely each patch is to be seen again when the place is, from 0 to 1.

It replaces the attention of FoL's class token. Known of the paper (arXiv:2604.22390): it is light, merges features of several
scales, and speaks of one image alone. Its layers are our design (section 10.1): a vision transformer has one spatial scale, so
"several scales" are several depths, seen through several receptive fields. Used by `network`.

Letters: B images, h and w patches along the sides, C channels of the backbone.
"""

from collections.abc import Sequence
from typing import Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

TAPS: Final = 3
"""Depths that the branch listens to: the outputs of the blocks at a half, three quarters and all of the backbone."""

WIDTH: Final = 64
"""Channels inside the branch. 90,561 parameters on ViT-S, 0.4 % of the network."""


def tapped_blocks(depth: int) -> tuple[int, int, int]:
    """Name the blocks whose outputs the branch takes: 5, 8, 11 of 12; 11, 17, 23 of 24. Of few blocks one may come twice."""
    return max(depth // 2, 1) - 1, max(3 * depth // 4, 1) - 1, max(depth, 1) - 1


class ReliabilityBranch(nn.Module):
    """Raw outputs of three blocks to one number a patch. Untrained it says 0.5 everywhere, which orders patches as FoL does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(channels, eps=1e-6) for _ in range(TAPS))
        self.proj = nn.ModuleList(nn.Linear(channels, WIDTH) for _ in range(TAPS))
        self.mix = nn.Conv2d(TAPS * WIDTH, WIDTH, 1)
        self.dw = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH) for dilation in (1, 2, 4)
        )
        self.out = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, taps: Sequence[Float[Tensor, "B C h w"]]) -> Float[Tensor, "B h w"]:
        """Estimate R. No gradient flows back into the backbone, so that learning R does not disturb its features.

        Always in float32: near 0.5, where R starts, bfloat16 has steps of 1/256, more than a step of training.
        """
        with torch.autocast(taps[0].device.type, enabled=False):
            seen = [
                proj(norm(tap.detach().float().movedim(1, 3))).movedim(3, 1)  # (B, WIDTH, h, w)
                for norm, proj, tap in zip(self.norm, self.proj, taps, strict=True)
            ]
            mixed = functional.gelu(self.mix(torch.cat(seen, dim=1)))
            wide = mixed + sum(conv(mixed) for conv in self.dw)
            return torch.sigmoid(self.out(functional.gelu(wide))).squeeze(1)
