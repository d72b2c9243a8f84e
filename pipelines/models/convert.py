"""checkpoint.pth ▶ weights as safetensors, with a card, in the models folder or where it was asked for."""

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from fol_model.checkpoints import Checkpoint, read_card, read_checkpoint, write_weights
from schemas.errors import ModelError


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a checkpoint. `folio models convert --json` and `folio models fetch --json` print it."""

    file: str
    recipe: str
    kind: Literal["full", "backbone"]
    """`backbone`: start weights for training, without heads."""
    input_size: int
    parameters: int
    fingerprint: str
    source: str
    source_sha256: str
    written: bool
    """False: the file was there already, with these weights."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        state = "" if self.written else "already there: "
        what = "network" if self.kind == "full" else "backbone to start training from"
        return [
            f"{state}{self.file}",
            f"{self.recipe}, {what}, {self.parameters / 1e6:.1f} M parameters, {self.input_size} px, from {self.source}",
            f"fingerprint {self.fingerprint[:12]}, sha256 of the source {self.source_sha256[:12]}",
        ]


def convert(path: Path, folder: Path, *, recipe: str | None = None, source: str | None = None) -> Converted:
    """Convert a `.pth` checkpoint of FoL, or DINOv2's start weights.

    Args:
        path: the checkpoint.
        folder: gets `RECIPE.safetensors`, or `RECIPE-backbone.safetensors`, and the card `.md` beside it.
        recipe: None: told from the shapes of the tensors.
        source: for the card; None: the file's name.

    Raises:
        ModelError: it is no such checkpoint, does not fit, cannot be written, or other weights stand in its place.
    """
    try:
        checkpoint = read_checkpoint(path, recipe=recipe, source=source)
    except ValueError as error:
        raise ModelError(f"{str(error).rstrip('.')}. Nothing was written.") from error
    try:
        return _kept(checkpoint, folder)
    except OSError as error:
        raise ModelError(f"{folder}: {error}, while writing the weights of {path}. What was there before still is.") from error


def converted(file: Path, *, written: bool) -> Converted | None:
    """Say what a weights file holds by its card; None: it has none."""
    card = read_card(file)
    if card is None:
        return None
    return Converted(file=str(file), written=written, **{name: getattr(card, name) for name in card.__slots__})


def _kept(checkpoint: Checkpoint, folder: Path) -> Converted:
    """Write a checkpoint under its recipe's name, unless it is there already.

    Raises:
        ModelError: other weights are there.
    """
    card = checkpoint.card
    file = folder / (f"{card.recipe}.safetensors" if card.kind == "full" else f"{card.recipe}-backbone.safetensors")
    before = None
    with contextlib.suppress(ValueError):  # not there, or damaged: then it is written anew
        before = converted(file, written=False)
        if before is None or before.fingerprint != card.fingerprint:
            raise ModelError(
                f"{file}: holds other weights ({before.source if before else 'without a card'}). Nothing was written. "
                "Move that file away, or convert to another folder with --out"
            )
    if before is None:
        write_weights(file, checkpoint.tensors, card)
    done = before or converted(file, written=True)
    assert done is not None
    return done
