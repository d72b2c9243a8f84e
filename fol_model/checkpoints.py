"""Published `.pth` checkpoints become safetensors files with a card: what they are, where they come from, what they fit.

A `.pth` is a pickle, which may hold any program; it is read with PyTorch's `weights_only`, which runs none, and never again after
the conversion. Two kinds of checkpoint are known (section 8 of the specification): those of FoL, a whole network, and DINOv2's
`*_pretrain.pth`, a backbone to start training from. Memory stays below one copy of the weights: the file is mapped, not read, and
written tensor by tensor.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fol_model.config import BackboneConfig, Recipe
from fol_model.network import FoL
from fol_model.recipes import RECIPES, recipe_named
from fol_model.weights import (
    as_float32,
    digest,
    expected_shapes,
    fingerprint,
    fitting_tensors,
    network_names,
    require_finite,
)

BACKBONE: Final = "backbone.model."
"""What FoL puts in front of DINOv2's names."""

WRAPPINGS: Final = ("model_state_dict", "state_dict")
"""Under which key a training run keeps the weights among its other state: FoL's, and PyTorch Lightning's."""

_ZIP_MAGIC: Final = b"PK\x03\x04"
_OLD_TORCH_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of what PyTorch wrote before version 1.6."""

_DAMAGE: Final = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
"""What reading plain values and tensors raises where a byte is wrong: nearly anything."""

_FOREIGN: Final = (
    (b"", "is empty: the download did not begin"),
    (b"<", "is a web page, not a checkpoint: the link had expired, or wants a login"),
    (b"\x80", "is a Python pickle that torch.save did not write: it may hold any program, and Folio runs none"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`"),
)
"""Files that are often taken for a checkpoint, by their first bytes."""

_REBUILD_ARRAY: Final[Any] = np.zeros(1).__reduce__()[0]
_REBUILD_SCALAR: Final[Any] = np.float64(0).__reduce__()[0]
_NUMPY_REBUILDERS: Final[list[Callable[..., Any] | tuple[Callable[..., Any], str]]] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")),
    *(
        (rebuild, f"{package}.multiarray.{rebuild.__name__}")
        for rebuild in (_REBUILD_ARRAY, _REBUILD_SCALAR)
        for package in ("numpy.core", "numpy._core")  # before NumPy 2 and since
    ),
]
"""What a pickle of NumPy numbers calls. FoL's checkpoints keep their recalls as such, beside the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a weights file says of itself. Its fields are the metadata of the safetensors file, as text."""

    recipe: str
    """The network the weights fit."""

    kind: Literal["full", "backbone"]
    """`full`: the whole network, ready for photos. `backbone`: only what training starts from."""

    input_size: int
    """Side in pixels that the recipe resizes photos to."""

    parameters: int
    """Numbers in the file."""

    fingerprint: str
    """`full`: the one in the manifest of a map made with it. `backbone`: sha256 over the backbone's shape and tensors."""

    source: str
    """Where the weights come from: a file's name, or a repository with its commit."""

    source_sha256: str
    """Of that file; empty where there was none."""

    def metadata(self) -> dict[str, str]:
        """Give the card as safetensors stores it."""
        return {"format": "pt"} | {name: str(value) for name, value in asdict(self).items()}

    def markdown(self, file_name: str) -> str:
        """Write the card for a person."""
        purpose = {
            "full": f"A whole network, ready for photos: `folio build MAP PHOTOS --recipe {self.recipe} --weights {file_name}`.",
            "backbone": "A backbone to start training from. It has no heads: it cannot describe photos until it is trained.",
        }[self.kind]
        rows = {
            "recipe": self.recipe,
            "kind": self.kind,
            "input size": f"{self.input_size} x {self.input_size} pixels",
            "parameters": f"{self.parameters:,}, float32",
            "fingerprint": f"`{self.fingerprint}`",
            "source": self.source,
            "sha256 of the source": f"`{self.source_sha256}`" if self.source_sha256 else "none",
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        return (
            f"# {file_name}\n\n{purpose}\n\n| | |\n|---|---|\n{table}\n\n"
            "Converted by Folio, unchanged in value. The licence is that of the source: read it there.\n"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found right."""

    recipe: Recipe
    tensors: Mapping[str, Tensor]
    """By the reference's names, in order; still in the file where it can be mapped."""

    card: ModelCard


def read_checkpoint(path: Path, *, recipe: str | None = None, source: str | None = None) -> Checkpoint:
    """Read a `.pth` and check every name, shape and number in it. Writes nothing.

    Args:
        path: a checkpoint of FoL (its state dict alone, or among the state of a training run), or DINOv2's start weights.
        recipe: the network it must fit; None: the one whose names and shapes come nearest.
        source: for the card; None: the file's name.

    Raises:
        ValueError: the file is no such checkpoint, is damaged, or does not fit the recipe; the message names the file.
    """
    asked = None if recipe is None else recipe_named(recipe)
    try:
        state = _state_dict(_unpickled(path))
        kind: Literal["full", "backbone"] = "backbone" if "cls_token" in state else "full"
        if kind == "backbone":
            state = {f"{BACKBONE}{name}": tensor for name, tensor in state.items()}
        fits = asked or _nearest_recipe(state, kind)
        tensors = fitting_tensors(fits.name, _shapes(fits, kind), state)
        tensors = {name: as_float32(name, tensor) for name, tensor in tensors.items()}
        require_finite(tensors)
        source_sha256 = file_sha256(path)
    except (ValueError, OSError) as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return Checkpoint(
        recipe=fits,
        tensors=tensors,
        card=card_of(fits, tensors, kind=kind, source=source or path.name, source_sha256=source_sha256),
    )


def card_of(
    recipe: Recipe,
    tensors: Mapping[str, Tensor],
    *,
    kind: Literal["full", "backbone"] = "full",
    source: str,
    source_sha256: str = "",
) -> ModelCard:
    """Describe weights that fit a recipe.

    Raises:
        ValueError: they do not fit.
    """
    name = (
        fingerprint(replace(recipe, seed=None), tensors)  # the seed made none of them
        if kind == "full"
        else digest({"backbone": asdict(recipe.backbone)}, tensors)
    )
    return ModelCard(
        recipe=recipe.name,
        kind=kind,
        input_size=recipe.input_size,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        fingerprint=name,
        source=source,
        source_sha256=source_sha256,
    )


def write_weights(path: Path, tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a safetensors file that carries its card, and the card for a person beside it. Both whole or not at all.

    Args:
        path: ends in `.safetensors`; an older file there is replaced. Its folder is made if it is not there.
        tensors: by the reference's names; converted to float32 one by one.
        card: of these tensors.

    Raises:
        OSError: the disk is full or cannot be written. What was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _whole(path) as file:
        _write_safetensors(file, tensors, card.metadata())
    with _whole(path.with_suffix(".md")) as file:
        file.write(card.markdown(path.name).encode())


def read_card(path: Path) -> ModelCard | None:
    """Read the card of a safetensors file without its tensors; None: it carries none.

    Raises:
        ValueError: the file is not there or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file with weights, found: {error}") from error
    names = [field.name for field in fields(ModelCard)]
    if any(name not in found for name in names):
        return None
    numbers = {name: int(found[name]) for name in ("input_size", "parameters")}
    return ModelCard(**{name: found[name] for name in names} | numbers)


def start_weights(path: Path, recipe: Recipe, *, seed: int) -> dict[str, Tensor]:
    """Read what training begins from: everything the file has, and what it has not drawn as PyTorch draws new layers.

    A backbone lacks the heads; a network of mode `fol` lacks the reliability branch of mode `folpp`, which starts at 0.5.

    Args:
        path: a safetensors file that `write_weights` wrote, of either kind, for the recipe or one with the same backbone.
        recipe: the network to train.
        seed: of the draw.

    Raises:
        ValueError: no safetensors file, or its tensors do not fit the recipe.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file with weights, found: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = network_names(FoL(recipe).state_dict())
    groups = {_head_of(name) for name in found}
    lacking = {name: tensor for name, tensor in drawn.items() if _head_of(name) not in groups}
    try:
        tensors = fitting_tensors(recipe.name, expected_shapes(recipe), lacking | found)
        require_finite(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return tensors


def file_sha256(path: Path) -> str:
    """Compute sha256 over a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpickled(path: Path) -> object:
    """Read a checkpoint without running anything in it.

    Raises:
        ValueError: it is no checkpoint, a part of one, or holds more than weights and plain values.
    """
    mapped = _is_zip_checkpoint(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_REBUILDERS), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)  # an old file cannot be mapped
    except pickle.UnpicklingError as error:
        if names := _names_of_code(str(error)):
            raise ValueError(
                f"holds Python code ({names}), which Folio never runs. Ask for the state dict alone: torch.save(net.state_dict())"
            ) from error
        raise ValueError("is damaged: what it should hold cannot be made out. Download it again") from error
    except _DAMAGE as error:
        raise ValueError(f"is damaged or cut short: {_first_line(error)}. Download it again") from error


def _is_zip_checkpoint(path: Path) -> bool:
    """Tell the two formats of PyTorch apart from everything else, before any of it is unpickled.

    Raises:
        ValueError: the file has neither format, is cut short, or its checksums are wrong.
    """
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(_OLD_TORCH_MAGIC):
        return False
    for start, what in _FOREIGN:
        if head.startswith(start) if start else not head:
            raise ValueError(what)
    if head[8:9] == b"{":
        raise ValueError("is a safetensors file, whatever its name: use it as it is, with --weights")
    if not head.startswith(_ZIP_MAGIC):
        raise ValueError("is no PyTorch checkpoint: its first bytes are those of no format that torch.save writes")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError, zlib.error, *_DAMAGE) as error:
        raise ValueError(f"is cut short or damaged: {_first_line(error)}. Download it again") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise ValueError("is a zip archive, but no PyTorch checkpoint: there is no data.pkl in it")
    if damaged:
        raise ValueError(f"is damaged: the checksum of {damaged} in it is wrong. Download it again")
    return True


def _state_dict(document: object) -> dict[str, Tensor]:
    """Find the weights in a checkpoint.

    Raises:
        ValueError: there are none, or they are SALAD's.
    """
    if isinstance(document, Mapping):
        document = next((document[key] for key in WRAPPINGS if isinstance(document.get(key), Mapping)), document)
    if not isinstance(document, Mapping) or not document:
        raise ValueError(
            f"holds no weights: expected a state dict or one under {' or '.join(WRAPPINGS)}, found {_named(document)}"
        )
    for name, tensor in document.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"holds no state dict: {name!r} is {_named(tensor)}, not a tensor")
    state = {name.removeprefix("module."): tensor for name, tensor in document.items()}
    if len(state) < len(document):
        raise ValueError("names tensors twice, with and without `module.` in front: it is not clear which to take")
    if "aggregator.dust_bin" in state:
        raise ValueError(
            "is a SALAD checkpoint: its dustbin is one learnt number (aggregator.dust_bin) where FoL's comes from the attention, "
            "and it has no local features. Use FoL's own weights (FoL_large.pth, FoL_base.pth), or train from a DINOv2 backbone "
            "(dinov2_vitb14_pretrain.pth)"
        )
    return state


def _nearest_recipe(state: Mapping[str, Tensor], kind: Literal["full", "backbone"]) -> Recipe:
    """Choose the recipe that shares the most names and shapes with the weights; of equal ones that with the fewest others.

    Raises:
        ValueError: none shares even half of what it needs.
    """
    found = {(name, tuple(tensor.shape)) for name, tensor in state.items()}

    def likeness(recipe: Recipe) -> tuple[int, int]:
        expected = _shapes(recipe, kind).items()
        return len(found & expected), -len(expected)

    nearest = max((make() for make in RECIPES.values()), key=likeness)
    width = state.get(f"{BACKBONE}cls_token")
    if 2 * likeness(nearest)[0] <= len(_shapes(nearest, kind)):
        seen = "no class token" if width is None else f"tokens of {width.shape[-1]} channels"
        depth = len({name.split(".")[3] for name in state if name.startswith(f"{BACKBONE}blocks.")})
        known = ", ".join(
            f"{one.name} ({one.backbone.embed_dim} channels, {one.backbone.depth} blocks)"
            for one in (make() for make in RECIPES.values())
            if isinstance(one.backbone, BackboneConfig)  # what checkpoints are published of
        )
        raise ValueError(f"fits no recipe: it has {seen} and {depth} blocks; there are {known}. Its first name is {min(state)}")
    return nearest


def _shapes(recipe: Recipe, kind: Literal["full", "backbone"]) -> dict[str, tuple[int, ...]]:
    shapes = expected_shapes(recipe)
    return shapes if kind == "full" else {name: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}


def _head_of(name: str) -> str:
    """The part of the network a tensor belongs to: backbone, aggregator, upconv, upconv2 or reb."""
    return name.split(".")[0]


def _write_safetensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the format one tensor at a time; the library wants all of them in memory as float32 first.

    Layout: the length of the header in 8 bytes, the header as JSON padded to 8, then the tensors without gaps.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in sorted(tensors):
        size_bytes = 4 * tensors[name].numel()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in sorted(tensors):
        file.write(as_float32(name, tensors[name]).numpy().astype("<f4", copy=False).data)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name only when all of it is on disk."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        written = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            written.chmod(0o644)  # others may read it, as any file; a temporary one is private
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise


def _names_of_code(message: str) -> str:
    """Pick the functions out of what PyTorch says of a pickle that wants to call them; empty: it does not."""
    words = message.replace("`", " ").replace(",", " ").split()
    return next((after for word, after in itertools.pairwise(words) if word == "GLOBAL"), "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).split(". ")[0].rstrip(".")


def _named(value: object) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"
