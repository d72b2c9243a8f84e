"""A training run in one file: everything that the next step depends on, so that a resumed run goes on bit for bit.

A safetensors file, readable by any such reader: tensors, and in its metadata the kind and version of the format, the recipe,
the settings, the number of steps, and a sha256 over all of it. Written under another name and renamed when it is whole. Used by
`learner`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fol_model.config import Recipe
from fol_model.training.config import TrainingConfig

KIND: Final = "folio-training-checkpoint"

VERSION: Final = 1
"""Of the format. Raise it when a file of the old one cannot be resumed from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a run is between two steps."""

    steps_done: int
    """Optimiser steps. The learning rate, dropout and, by way of the sampler, the next batch follow from it and the seed."""

    tensors: Mapping[str, Tensor]
    """Weights, running mean and AdamW's moments, by the learner's names."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, recipe: Recipe, config: TrainingConfig) -> None:
    """Write a checkpoint, whole or not at all: until the last instant the file of that name stays as it was."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in checkpoint.tensors.items()}
    said = {
        "kind": KIND,
        "version": str(VERSION),
        "recipe": json.dumps(asdict(recipe), sort_keys=True),
        "config": json.dumps(asdict(config), sort_keys=True),
        "steps_done": str(checkpoint.steps_done),
    }
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata=said | {"sha256": _digest(tensors, said)})
    _flush(partial)
    os.replace(partial, path)  # noqa: PTH105  the one instant; tests stop the process right before it
    _flush(path.parent)  # the rename, too, must outlive a power cut


def read_checkpoint(path: Path, recipe: Recipe, config: TrainingConfig) -> Checkpoint:
    """Read a checkpoint of this recipe and these settings.

    Raises:
        ValueError: the file is not there, truncated, damaged, no checkpoint, of another version, or of another recipe or other
            settings; the message names it and what differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            _require_kind(path, said)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of a training, found a file that is truncated or none: {error}. "
            "Resume from an earlier checkpoint"
        ) from error
    if _digest(tensors, {name: value for name, value in said.items() if name != "sha256"}) != said.get("sha256"):
        raise ValueError(f"{path}: the checksum does not match, so the file is damaged. Resume from an earlier checkpoint")
    _require_same(path, "recipe", json.loads(said["recipe"]), asdict(recipe))
    _require_same(path, "training setting", json.loads(said["config"]), asdict(config))
    return Checkpoint(steps_done=int(said["steps_done"]), tensors=tensors)


def _require_kind(path: Path, said: Mapping[str, str]) -> None:
    if said.get("kind") != KIND:
        found = said.get("kind", "weights or other tensors")
        raise ValueError(f"{path}: expected a checkpoint of a training, found {found}. Weights alone start a new run")
    if said.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: a checkpoint of format version {said.get('version')}, this Folio reads version {VERSION}. "
            "Resume with the Folio that wrote it"
        )


def _require_same(path: Path, what: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Compare plain settings; JSON has no tuples, so what is asked for takes the same way first."""
    old, new = _flat(stored), _flat(json.loads(json.dumps(asked)))
    differing = [
        f"{name} is {json.dumps(old.get(name))} in the file and {json.dumps(new.get(name))} now"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]
    if differing:
        raise ValueError(
            f"{path}: a checkpoint of another {what}: {'; '.join(differing)}. Resume with the old value, or start a new run"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
