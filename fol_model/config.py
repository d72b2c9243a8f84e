"""Settings of the network and of re-ranking: frozen, and every field says what it costs.

`recipes` fills them in for the named networks; `inference` takes them; their plain values go into the manifest of a map.
Section numbers are those of the method's specification (FoL, arXiv:2504.09881, and its released code).
"""

from dataclasses import dataclass, field
from math import ceil, isqrt
from typing import Literal

Precision = Literal["int4", "int8", "float16", "float32"]
"""How the numbers of a local feature are stored: whole numbers up to 7 or 127, or floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """The shape of a DINOv2 vision transformer."""

    embed_dim: int
    """Channels C of a token. Work grows with its square."""

    depth: int
    """Transformer blocks. Work grows in proportion."""

    heads: int
    """Attention heads; `embed_dim` is shared out among them."""

    patch: int = 14
    """Side of a patch in pixels."""

    position_grid: int = 37
    """Side of the learned position table, in patches. Other image sizes resample it."""

    mlp_ratio: int = 4
    """Hidden width of a block's MLP, in multiples of `embed_dim`."""

    @property
    def token_dim(self) -> int:
        """Channels of the class token."""
        return self.embed_dim

    @property
    def tap_dim(self) -> int:
        """Channels that the reliability branch takes at each depth."""
        return self.embed_dim

    def __post_init__(self) -> None:
        if self.embed_dim % self.heads:
            raise ValueError(f"embed_dim must be a multiple of heads={self.heads}, got {self.embed_dim}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientConfig:
    """Dense histograms of gradients in place of a transformer: nothing to learn, for networks that were trained on little."""

    patch: int = 8
    """Side of a patch in pixels. Work grows with the number of patches."""

    scales: tuple[tuple[int, int], ...] = ((4, 1), (6, 1), (4, 2), (6, 2))
    """For each scale the side of a histogram cell in pixels, and how many times the image is shrunk first. A patch is described
    by 4 x 4 cells around it; each scale adds 128 channels."""

    @property
    def embed_dim(self) -> int:
        """Channels C of a patch."""
        return 128 * len(self.scales)

    @property
    def token_dim(self) -> int:
        """Numbers of the layout, which stands for the class token."""
        return 512

    @property
    def tap_dim(self) -> int:
        """Channels that the reliability branch takes of each of three scales."""
        return 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named network: its shape, what it does to a photo first, and what it keeps of it."""

    name: str
    """As the command line spells it."""

    mode: Literal["fol", "folpp"] = "fol"
    """`fol`: patches are chosen by their share in the clusters. `folpp`: a branch learns how reliable each patch is, and patches
    are chosen by both (section 10.2)."""

    dustbin: Literal["attention", "reliability"] = "attention"
    """Where the dustbin's scores come from: 1 - G, G the attention of the class token, as FoL; or 1 - R, R of the branch, only
    in mode `folpp`."""

    backbone: BackboneConfig | GradientConfig
    """The vision transformer, or what stands in for one."""

    aggregation: Literal["salad", "vlad"] = "salad"
    """How patches become a global descriptor. `salad`: optimal transport shares them out among clusters and a dustbin, as FoL.
    `vlad`: each patch shares itself out, and a cluster sums what differs from its centre."""

    clusters: int = 64
    """Columns of the global descriptor. An image must have more patches than this."""

    cluster_dim: int = 128
    """Channels of each cluster's column."""

    token_dim: int = 256
    """Numbers the class token adds to the global descriptor."""

    hidden: int = 512
    """Width of the aggregator's hidden layers."""

    decoder_hidden: int = 256
    """Channels between the two up-convolutions of the local decoder."""

    local_dim: int = 128
    """Channels of a local feature; `local_precision` says in how many bytes each is stored."""

    local_precision: Precision = "int8"
    """How local features are stored and compared. `int4`, `int8`: half a byte or a byte a number, and the same matches on every
    machine. `float32`: nothing is rounded, at four bytes a number. Maps may mix them, so it is not part of a fingerprint."""

    input_size: int
    """Side S in pixels that photos are resized to, whatever their shape. Work grows a little faster than its square."""

    antialias: bool
    """Smooth while shrinking. Off where published numbers must be met: torchvision 0.15 did not smooth tensors."""

    scaled_decoding: bool
    """A JPEG may be decoded at a reduced size, several times faster. Off where results must be exact."""

    attention_floor: float = 0.01
    """Class attention (summed over heads) below this counts as none. Its scale is heads / patches."""

    mask_patches: int | None = None
    """Keep the local features of this many patches; or give `mask_fraction`."""

    mask_fraction: float | None = None
    """Keep the local features of this share of the patches, rounded up; or give `mask_patches`."""

    local_stride: int = 1
    """Keep every 1st, 2nd or 4th row and column of the decoder's map. 1: all, about 15 features a patch, as FoL does;
    4: exactly one a patch, 15 times smaller on disk and 200 times less work to match."""

    local_patch_step: int = 1
    """Choose among every n-th row and column of patches only. More: fewer local features, `mask_fraction` of the rest."""

    match_cosine: float = 0.7
    """Local features of two photos match above this cosine. FoL's, whose features are trained for it."""

    seed: int | None = None
    """Weights are drawn from this seed unless others are given. None: weights must be given."""

    def __post_init__(self) -> None:
        if (self.mask_patches is None) == (self.mask_fraction is None):
            raise ValueError("give exactly one of mask_patches and mask_fraction")
        if self.mode == "fol" and self.dustbin == "reliability":
            raise ValueError("dustbin reliability needs mode folpp: mode fol has no branch that learns it")
        if self.local_stride not in (1, 2, 4):
            raise ValueError(f"local_stride must be 1, 2 or 4, got {self.local_stride}")
        self.grid_side_at(self.input_size)

    @property
    def descriptor_dim(self) -> int:
        """Numbers in a global descriptor."""
        return self.token_dim + self.cluster_dim * self.clusters

    @property
    def grid_side(self) -> int:
        """Patches along one side of a photo at `input_size`."""
        return self.grid_side_at(self.input_size)

    def grid_side_at(self, size_px: int) -> int:
        """Count the patches along one side of a square image.

        Raises:
            ValueError: the side is no multiple of the patch, or gives too few patches for the clusters or the mask.
        """
        side, rest = divmod(size_px, self.backbone.patch)
        if rest:
            raise ValueError(f"the side of an image must be a multiple of {self.backbone.patch} pixels, got {size_px}")
        needed = max(self.clusters + 1, self.mask_patches or 0)
        if side**2 < needed:
            raise ValueError(
                f"an image of {size_px} pixels has {side**2} patches, but recipe {self.name} needs at least {needed}"
            )
        return side

    def kept_patches(self, patches: int) -> int:
        """Say how many of an image's `patches` keep their local features."""
        if self.mask_patches is not None:
            return self.mask_patches
        assert self.mask_fraction is not None
        eligible = ceil(isqrt(patches) / self.local_patch_step) ** 2
        return ceil(self.mask_fraction * eligible)

    @property
    def max_local_features(self) -> int:
        """Most local features a photo at `input_size` can have: each patch covers at most 4 x 4 of the decoder's map.

        At `local_stride` 4 every photo has exactly this many.
        """
        return self.kept_patches(self.grid_side**2) * (4 // self.local_stride) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """How many of the best global candidates are worth matching locally (section 10.4).

    Letters: s_1 >= s_2 >= ... global cosines of one query, mu and sigma mean and deviation of the lower half of them.
    """

    max_size: int = 100
    """K_max: never look further. Matching work is at most this many candidates a query."""

    min_size: int = 5
    """K_min: look at this many unless the first is beyond doubt."""

    delta: float = 0.15
    """Look at candidates whose cosine is at most this below the best. More: larger pools."""

    sigmas: float = 2.0
    """lambda: look at candidates at least this many sigma above mu. More: smaller pools."""

    sure_gap: float = 0.15
    """delta_c: the best alone is enough if the second is this far below ..."""

    sure_sigmas: float = 6.0
    """z_c: ... and the best stands this many sigma above mu."""

    fixed_size: int | None = None
    """Always this many candidates instead. 100 is what FoL does."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"min_size must be from 1 to max_size={self.max_size}, got {self.min_size}")
        if self.delta < 0 or self.sure_gap <= 0:
            raise ValueError(f"delta must not be negative nor sure_gap zero, got {self.delta} and {self.sure_gap}")
        if self.fixed_size is not None and self.fixed_size < 1:
            raise ValueError(f"fixed_size must be at least 1, got {self.fixed_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankConfig:
    """How the candidates of a pool are put in order (section 10.5).

    Letters: S_g global cosine, S_l local similarity, D'_l what of it sets a candidate apart from the others, 0..1.
    """

    mode: Literal["adaptive", "count", "paper"] = "adaptive"
    """`count`: the number of matches, as FoL. `paper`: gamma S_g + S_l, as FoL++. `adaptive`: S_g above the background, and
    `local_weight` D'_l: where the globally best are level the local features decide, where one leads they rarely can."""

    min_cosine: float = 0.7
    """Features match above this cosine. Higher: fewer, surer matches."""

    pool: PoolConfig = field(default_factory=lambda: PoolConfig(min_size=100))
    """Which candidates may be matched at all: the first 100, or the first alone where it is beyond doubt. `PoolConfig()` is the
    scheduler of the specification, which goes by cosines alone."""

    enough: float | None = 3.5
    """Mode `adaptive` matches 20 candidates of the pool, 40, then all, and stops before the next stage where the best so far
    would lead even a candidate whose D'_l lay this many deviations above that of the others (`reranking.is_enough`). Lower:
    smaller pools. None: all of the pool."""

    cosine_weight: bool = True
    """A match adds its cosine times its reliability to S_l; off: its reliability only."""

    gamma: float = 1000.0
    """Weight of the global cosine in mode `paper`. S_l grows with the number of features, so fit gamma on validation photos."""

    geometry: Literal["none", "affine"] = "none"
    """`affine`: only pairs count that one affine map explains (`geometry.consistent`): an eighth more work a candidate, better on
    some photos and worse on others; see README.md. Needs the extra `geometry`."""

    local_weight: float = 4.0
    """Weight of D'_l (`reranking.ranking_scores`) in mode `adaptive`; see README.md."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_cosine <= 1:
            raise ValueError(f"min_cosine must be between -1 and 1, got {self.min_cosine}")
        if self.enough is not None and not self.enough >= 0:
            raise ValueError(f"enough must not be negative, got {self.enough}")
        if not 0 <= self.local_weight <= 100:
            raise ValueError(f"local_weight must be between 0 and 100, got {self.local_weight}")
