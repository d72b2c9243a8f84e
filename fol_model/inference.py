"""The door for pipelines, NumPy in and NumPy out: photos become descriptors and local features, candidates become an order.

Same photo, same network, same answer. On the CPU every photo goes through the network alone and on one thread, since PyTorch
adds up in another order with other neighbours or another number of threads (measured: the last bits differ); more threads take
more photos at a time. CUDA adds up in yet another order, which may change with the batch: there only the last bits differ.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float16, Float32, Float64, Int8, Int32, Int64, UInt8
from torch import Tensor

from fol_model.config import Precision, Recipe, RerankConfig
from fol_model.matching import LARGEST_CODE, blocks_of, from_stored, to_codes
from fol_model.network import Extraction
from fol_model.preprocessing import prepare
from fol_model.recipes import recipe_named
from fol_model.reranking import (
    Comparison,
    LocalSide,
    best_first,
    compare,
    distinct_weights,
    fused_scores,
    is_enough,
    matched_stages,
    ranking_scores,
)
from fol_model.scheduling import pool_size
from fol_model.weights import State, build, checked_state, fingerprint, load_safetensors, seeded_weights, shipped_weights

CUDA_BATCH: Final = 64
"""Most photos that go through the network together on a GPU: what fits is found at the first of them."""

MEMORY_SHARE: Final = 0.8
"""Of a GPU's free memory, what a batch may take."""

DRAWN_PAIRS: Final = 64
"""Most matched patches reported."""

Arithmetic: TypeAlias = Literal["auto", "float32", "bfloat16"]

PreparedPhoto: TypeAlias = Float32[Tensor, "3 S S"]
"""What the network takes; see `Encoder.prepare`."""

A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPhoto:
    """One photo as a map stores it."""

    descriptor: Float32[np.ndarray, " D"]
    """Global descriptor of unit length."""

    features: Int8[np.ndarray, "n d"] | Float16[np.ndarray, "n d"] | Float32[np.ndarray, "n d"]
    """Local features in raster order, as the recipe's `local_precision` says: codes (`matching.to_codes`), or L2-normalised."""

    patch: UInt8[np.ndarray, "n 2"]
    """Row and column of each feature's patch."""

    reliability: UInt8[np.ndarray, " n"]
    """Of each feature's patch, 0 to 255 for 0.0 to 1.0."""


class Encoder:
    """One loaded network. Several threads may call `encode` at once.

    Args:
        recipe: the network's settings.
        state: its weights by the reference's names. None: drawn from the recipe's seed, which has seen no photo.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        arithmetic: of a transformer backbone; all else is computed in float32. `auto` is bfloat16 where the processor has
            instructions for it (`arithmetic_named`).

    Raises:
        ValueError: the weights do not fit the recipe, or there are none and the recipe has no seed.
    """

    def __init__(
        self, recipe: Recipe, state: State | None = None, *, device: str = "auto", arithmetic: Arithmetic = "auto"
    ) -> None:
        self.trained: Final = state is not None
        """False for weights drawn from a seed."""
        self.recipe: Final = recipe if state is None else replace(recipe, seed=None)  # the seed made none of these weights
        weights = checked_state(recipe, seeded_weights(recipe) if state is None else state)
        self.fingerprint: Final = fingerprint(self.recipe, weights)
        """Photos can be compared only when they were encoded under the same one."""
        self._device: Final = device_named(device)
        self._network: Final = build(self.recipe, weights).to(self._device)
        self._network.backbone_dtype = arithmetic_named(arithmetic, self._device)
        self._batch: Final = BatchSize(1 if self._device.type == "cpu" else CUDA_BATCH)

    @property
    def grid_side(self) -> int:
        """Patches along one side of a photo."""
        return self.recipe.grid_side

    @property
    def descriptor_dim(self) -> int:
        """Numbers in a global descriptor."""
        return self.recipe.descriptor_dim

    @property
    def local_dim(self) -> int:
        """Numbers in a local feature."""
        return self.recipe.local_dim

    @property
    def local_precision(self) -> Precision:
        """How the numbers of local features are stored."""
        return self.recipe.local_precision

    @property
    def max_local_features(self) -> int:
        """Most local features of one photo; at `local_stride` 4 every photo has exactly this many."""
        return self.recipe.max_local_features

    @property
    def batch_size(self) -> int:
        """Photos that go through the network together: on a GPU as many as its memory has shown to hold."""
        return self._batch.now

    @property
    def is_on_cpu(self) -> bool:
        """Whether the network runs on the processor that decodes the photos too."""
        return self._device.type == "cpu"

    @property
    def prepared_bytes(self) -> int:
        """Memory of a photo between `prepare` and the network."""
        return 12 * self.recipe.input_size**2

    @property
    def prepares_whole(self) -> bool:
        """Whether `prepare` has all colours of a photo in memory as floats at once, 12 bytes a pixel; else one, 4 bytes."""
        return not self.recipe.antialias

    @property
    def decode_side(self) -> int | None:
        """A JPEG may be decoded smaller, with sides of at least this many pixels; None: the recipe asks for all of them."""
        return self.recipe.input_size if self.recipe.scaled_decoding else None

    @property
    def reranking(self) -> RerankConfig:
        """How candidates that this network described are put in order, unless the user says otherwise."""
        return RerankConfig(min_cosine=self.recipe.match_cosine)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return sum(parameter.nbytes for parameter in self._network.parameters())

    def settings(self) -> dict[str, Any]:
        """List the recipe's settings as plain JSON values, for a manifest."""
        return asdict(self.recipe)

    def encode(self, photos: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[EncodedPhoto]:
        """Describe photos, in their order.

        Args:
            photos: RGB, upright, of any shapes.

        Raises:
            ValueError: a photo is not (height, width, 3) of uint8 or has no pixels.
        """
        return self.encode_prepared([self.prepare(photo) for photo in photos])

    def prepare(self, photo: UInt8[np.ndarray, "_ _ 3"]) -> Float32[Tensor, "3 S S"]:
        """Do what comes before the network, in any thread: `encode_prepared` takes what this gives.

        Raises:
            ValueError: the photo is not (height, width, 3) of uint8 or has no pixels.
        """
        _require_photo(photo)
        return prepare(photo, self.recipe.input_size, antialias=self.recipe.antialias)

    def encode_prepared(self, photos: Sequence[Float32[Tensor, "3 S S"]]) -> list[EncodedPhoto]:
        """Describe prepared photos, in their order. On a GPU too small for them all at once, in smaller batches.

        Raises:
            DeviceLostError: the GPU is gone, fails, or cannot hold one photo.
        """
        if self.is_on_cpu:
            return _one_a_thread(lambda photo: self._encoded(self._network.extract(photo.unsqueeze(0)), 0), photos)
        if not photos:  # a chunk of which none decodes
            return []
        try:
            self._batch.fit(lambda: self._memory_for(photos[0]))
            return in_batches(photos, self._batch, self._encode_batch)
        except torch.OutOfMemoryError as error:
            needed = "needed room for the network and one photo. Free it of other work, or use a smaller recipe or --device cpu"
            raise DeviceLostError(f"{self._device}: found no memory left ({error}), {needed}.") from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(
                f"{self._device}: found a GPU that answers no more ({error}), needed one that works. What it was at work on "
                "is not done, all else is kept. Look at it with nvidia-smi, then run the same command again."
            ) from error

    def _encode_batch(self, photos: Sequence[Float32[Tensor, "3 S S"]]) -> list[EncodedPhoto]:
        images = torch.stack(list(photos)).pin_memory().to(self._device, non_blocking=True)
        # Without half precision, and without TF32, which PyTorch allows in convolutions and which keeps 10 bits of 23.
        with torch.autocast("cuda", enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            extraction = self._network.extract(images)
        return [self._encoded(extraction, index) for index in range(len(photos))]

    def _memory_for(self, photo: Float32[Tensor, "3 S S"]) -> tuple[int, int]:
        """Measure on a GPU: free bytes, and the bytes that one photo takes."""
        self._encode_batch([photo])  # what is made once is not counted
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._encode_batch([photo])
        needed = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0], needed

    def _encoded(self, extraction: Extraction, index: int) -> EncodedPhoto:
        features = extraction.local_features[index].cpu().numpy()
        reliability = extraction.reliability[index].mul(255).round()
        return EncodedPhoto(
            descriptor=extraction.descriptors[index].cpu().numpy(),
            features=as_stored(features, self.recipe.local_precision),
            patch=extraction.patches[index].cpu().numpy().astype(np.uint8),
            reliability=reliability.cpu().numpy().astype(np.uint8),
        )


class DeviceLostError(RuntimeError):
    """The GPU is gone, fails, or has no room for a single photo. What it was at work on is not done; all else is not affected."""


class BatchSize:
    """How many photos go through a network together: found when the first come, lowered whenever memory was too short."""

    def __init__(self, most: int) -> None:
        self.now = most
        self._fitted = most == 1

    def fit(self, measure: Callable[[], tuple[int, int]]) -> None:
        """Choose the size once, from free bytes and the bytes that one photo takes."""
        if not self._fitted:
            free, each = measure()
            fitting = int(free * MEMORY_SHARE) // max(1, each)
            self.now = max(1, min(self.now, 1 << max(0, fitting.bit_length() - 1)))
            self._fitted = True

    def lower(self) -> bool:
        """Halve it; False: it is one already."""
        if self.now == 1:
            return False
        self.now //= 2
        _log.warning("the GPU's memory was too short; %d photos at once from now on", self.now)
        return True


def in_batches(photos: Sequence[A], size: BatchSize, encode: Callable[[Sequence[A]], list[EncodedPhoto]]) -> list[EncodedPhoto]:
    """Encode photos in batches, in smaller ones after each that did not fit into memory.

    Raises:
        torch.OutOfMemoryError: not even one photo fits.
    """
    done: list[EncodedPhoto] = []
    while len(done) < len(photos):
        try:
            done += encode(photos[len(done) : len(done) + size.now])
        except torch.OutOfMemoryError:
            if not size.lower():
                raise
        else:
            continue
        torch.cuda.empty_cache()  # not while the error still holds what was half done
    return done


def as_stored(
    features: Int8[np.ndarray, "n D"] | Float16[np.ndarray, "n D"] | Float32[np.ndarray, "n D"], precision: Precision
) -> Int8[np.ndarray, "n D"] | Float16[np.ndarray, "n D"] | Float32[np.ndarray, "n D"]:
    """Give features the form in which they are stored and compared; also those of maps that stored them otherwise."""
    largest = LARGEST_CODE.get(precision)
    if largest is None:
        return features.astype(precision, copy=False)
    if features.dtype == np.int8 and np.abs(features).max(initial=0) <= largest:
        return features
    return to_codes(features, largest)


def open_encoder(name: str, *, weights: Path | None, device: str = "auto", arithmetic: Arithmetic = "auto") -> Encoder:
    """Load a named network.

    Args:
        name: of a recipe.
        weights: a safetensors file. None: the weights that come with Folio, or the recipe's seeded ones.
        device: as for `Encoder`.
        arithmetic: likewise.

    Raises:
        ValueError: no such recipe, no such file, weights that do not fit, or none where the recipe needs them.
    """
    recipe = recipe_named(name)
    weights = weights or shipped_weights(recipe)
    if weights is None and recipe.seed is None:
        raise ValueError(
            f"recipe {name} has no weights of its own: give them with --weights FILE.safetensors, keep them where `folio models` "
            "looks, or use recipe folio-small"
        )
    return Encoder(recipe, None if weights is None else load_safetensors(weights), device=device, arithmetic=arithmetic)


@runtime_checkable  # so that the tests can check it
class LocalFeaturesLike(Protocol):
    """The stored local features of one photo. `schemas.local_features.LocalFeatures` is one, and so is `EncodedPhoto`."""

    @property
    def features(self) -> Int8[np.ndarray, "n D"] | Float16[np.ndarray, "n D"] | Float32[np.ndarray, "n D"]:
        """Codes, or L2-normalised."""
        ...

    @property
    def patch(self) -> UInt8[np.ndarray, "n 2"]:
        """Row and column of each feature's patch."""
        ...

    @property
    def reliability(self) -> UInt8[np.ndarray, " n"]:
        """Of each feature's patch, 0 to 255."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reranked:
    """A pool put in order. Every array but `order` goes by place in the pool, which is the global order."""

    order: Int64[np.ndarray, " K"]
    """Places in the pool, best first."""

    matches: Int32[np.ndarray, " K"]
    """Mutual nearest neighbours above the least cosine. In mode `count` as FoL counts: `matching.count_mutual_matches`."""

    local_scores: Float32[np.ndarray, " K"]
    """By mode. `adaptive`: S'_l, from 0 to 1. `paper`: S_l. `count`: the matches."""

    ranking_scores: Float64[np.ndarray, " K"]
    """By what of that the order is made: D'_l in mode `adaptive`, from 0 to S'_l; in the others `local_scores`."""

    scores: Float32[np.ndarray, " K"]
    """What the order is made by; `scores[order]` falls. S_g above the background and weighted D'_l in mode `adaptive`, the number
    of matches in `count`, gamma S_g + S_l in `paper`."""

    matched_patches: UInt8[np.ndarray, "_ 4"]
    """Of the first in the order, of the pairs that count for it: query row, query column, its row, its column, those that count
    most first, none twice, at most `DRAWN_PAIRS`."""


class Reranker:
    """Matches a query with its best global candidates and puts them in order.

    Args:
        config: how many, and by what.
        device: where features are matched, in float32: `cpu`, `cuda` or `auto`.
    """

    def __init__(self, config: RerankConfig, device: str = "cpu") -> None:
        self.config: Final = config
        self._device: Final = device_named(device)

    def pool_size(self, cosines: Float64[np.ndarray, " all"]) -> int:
        """Say how many of the best candidates are matched at most; see `scheduling.pool_size`."""
        return pool_size(cosines, self.config.pool)

    def begin(self, query: LocalFeaturesLike, cosines: Float64[np.ndarray, " all"]) -> "Ranking":
        """Begin to match a query with its candidates, as many as it takes.

        Args:
            query: its local features.
            cosines: global cosines of all candidates, largest first.
        """
        return Ranking(self, query, cosines)

    def rerank(
        self,
        query: LocalFeaturesLike,
        candidates: Sequence[LocalFeaturesLike],
        cosines: Float64[np.ndarray, " all"],
    ) -> Reranked:
        """Put a pool in order, all of it. Each thread holds one block of cosines and the candidates in it as float32 at a time.

        Args:
            query: local features of the query.
            candidates: those of the pool, in global order.
            cosines: global cosines of all candidates, largest first; at least those of the pool.

        Raises:
            ValueError: there are more candidates than cosines.
        """
        ranking = self.begin(query, cosines)
        ranking.add(candidates)
        return ranking.result()

    def rerank_as_needed(
        self,
        query: LocalFeaturesLike,
        candidates: Sequence[LocalFeaturesLike],
        cosines: Float64[np.ndarray, " all"],
    ) -> Reranked:
        """Put the first of some candidates in order, as many as it takes; see `rerank`."""
        ranking = self.begin(query, cosines)
        while wanted := ranking.wanted:
            ranking.add(candidates[wanted.start : wanted.stop])
        return ranking.result()

    def compare(self, query: LocalFeaturesLike, candidates: Sequence[LocalFeaturesLike]) -> list[Comparison]:
        """Match a query with some candidates, blocks of them side by side."""
        here = self._side(query, as_codes=query.features.dtype == np.int8)
        blocks = [candidates[block] for block in blocks_of(here.features, [len(one.reliability) for one in candidates])]
        return _one_a_thread(lambda block: self._compare(here, block), blocks)

    def _compare(self, here: LocalSide, block: Sequence[LocalFeaturesLike]) -> Comparison:
        as_codes = here.features.inverse_lengths is not None
        return compare(here, [self._side(candidate, as_codes=as_codes) for candidate in block], self.config)

    def _side(self, stored: LocalFeaturesLike, *, as_codes: bool) -> LocalSide:
        features = from_stored(stored.features, as_codes=as_codes, device=self._device)
        return LocalSide(features=features, reliability=stored.reliability, patch=stored.patch)


class Ranking:
    """The candidates of one query while they are matched: add those that are `wanted` until none is.

    Args:
        reranker: matches them.
        query: local features of the query.
        cosines: global cosines of all candidates, largest first.
    """

    def __init__(self, reranker: Reranker, query: LocalFeaturesLike, cosines: Float64[np.ndarray, " all"]) -> None:
        self._reranker = reranker
        self._query = query
        self._cosines = cosines
        self._candidates: list[LocalFeaturesLike] = []
        self._compared: list[Comparison] = []
        self._ranking: Float64[np.ndarray, " K"] = np.empty(0)

    @property
    def wanted(self) -> range:
        """Which candidates to match next, by their place in global order; none when those matched are enough.

        Raises:
            ValueError: the cosines are not sorted or not finite.
        """
        done, config = len(self._candidates), self._reranker.config
        further = [end for end in matched_stages(self._cosines, config) if end > done]
        if not further or (done and is_enough(self._ranking, self._cosines, config)):
            return range(done, done)
        return range(done, further[0])

    def add(self, candidates: Sequence[LocalFeaturesLike]) -> None:
        """Match the next candidates.

        Raises:
            ValueError: there are more candidates than cosines.
        """
        if len(self._candidates) + len(candidates) > len(self._cosines):
            raise ValueError(f"got {len(self._candidates) + len(candidates)} candidates but only {len(self._cosines)} cosines")
        self._candidates += candidates
        self._compared += self._reranker.compare(self._query, candidates)
        self._ranking = ranking_scores(self._compared, self._reranker.config)

    def result(self) -> Reranked:
        """Put the candidates matched so far in order."""
        config = self._reranker.config
        scores = fused_scores(config, self._cosines, self._ranking)
        order = best_first(scores, config)
        return Reranked(
            order=order,
            matches=np.concatenate([np.empty(0, np.int32), *(one.matches for one in self._compared)]),
            local_scores=np.concatenate([np.empty(0), *(one.local_scores for one in self._compared)]).astype(np.float32),
            ranking_scores=self._ranking,
            scores=scores,
            matched_patches=self._drawn(int(order[0])) if len(order) else np.empty((0, 4), np.uint8),
        )

    def _drawn(self, place: int) -> UInt8[np.ndarray, "_ 4"]:
        """List the patches of the pairs that count for a candidate, two patches once however many features they share."""
        patch = self._candidates[place].patch
        block = 0
        while place >= len(self._compared[block].matches):
            place -= len(self._compared[block].matches)
            block += 1
        pairs, counted = self._compared[block].pairs, distinct_weights(self._compared, self._reranker.config)[block]
        mine = np.flatnonzero((pairs.place == place) & (counted > 0))
        mine = mine[np.argsort(-counted[mine], kind="stable")]
        both = np.concatenate([self._query.patch[pairs.query[mine]], patch[pairs.candidate[mine]]], axis=1)
        first_seen = np.sort(np.unique(both, axis=0, return_index=True)[1])
        return both[first_seen[:DRAWN_PAIRS]]


def use_threads(count: int) -> None:
    """Set how many photos or candidates are worked on at a time on the CPU. Changes how fast answers come, not the answers.

    For whoever owns the process, from the thread that will call `encode` and `rerank`: PyTorch's count, which this sets, is
    kept for each thread. Threads that share the work themselves want 1.
    """
    torch.set_num_threads(count)


def _one_a_thread(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Do the work for every item, several items at a time, each by one thread alone."""
    workers = max(1, min(len(items), torch.get_num_threads()))
    if workers == 1 and torch.get_num_threads() == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def _require_photo(photo: np.ndarray) -> None:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise ValueError(f"a photo must be (height, width, 3) of uint8, got {photo.shape} of {photo.dtype}")


def device_named(name: str) -> torch.device:
    """Find a device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        ValueError: a GPU was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but PyTorch sees no GPU. Use cpu or auto")
    return torch.device(name)


def arithmetic_named(name: Arithmetic, device: torch.device) -> torch.dtype:
    """Find the numbers that a backbone is computed in: `auto` is bfloat16 where the processor has instructions for it.

    Measured on photos (tests/fol_model/test_arithmetic.py): descriptors have a cosine of at least 0.9999 to those in float32, and
    the same photos are found.
    """
    if name == "auto":
        name = "bfloat16" if _computes_bfloat16(device) else "float32"
    return getattr(torch, name)  # type: ignore[no-any-return]


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster: tensor cores since Ampere, AMX or AVX-512 with bf16. Older processors only imitate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
