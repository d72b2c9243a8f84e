"""Does a trained quantizer still fit the photos of its map? Growth and a measured error decide, and the manifest says so. It is
also made anew when it learned from photos that were taken down since.

At training some photos are held out, and what they lose by being coded is the error that the quantizer is known by: photos it has
learned lose less than any it will ever meet. Each build and backfill measures the same on the photos it adds. A rebuild trains
again when theirs is too large; a backfill, which rewrites nothing, only keeps account.

Kept in `IndexEntry.parameters`, beside the sizes and what `tune` chose: `trained_because`, `error`, of the photos encoded since
training `new_photos` and `new_error`; how far it has learned in the order of image ids, `learned_to`, and how many tables of
tombstones there were, `tombstones`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from infra.storage import Storage
from pipelines.build.tombstones import read_tombstone_rows
from pipelines.ivfpq import IndexConfig, derive_parameters
from schemas.manifest import IndexEntry, ObjectRef
from schemas.versions import FORMATS

DRIFT: Final = 1.25
"""The most that the error of new photos may be, in errors at training. With the default network, photos of the same town come out
at 0.97 to 1.0, photos of other towns and cameras at 1.4 to 1.9."""

JUDGED_PHOTOS: Final = 64
"""Photos that are judged, at least: a few odd ones are no reason to code a whole map anew."""

JUDGED_SHARE: Final = 0.01
"""The same as a share of the photos that the quantizer was trained for."""

WILL_TRAIN: Final = "will be trained"

MEASURED_PHOTOS: Final = 1024
"""Photos that an error is measured on, at most: then it is good to about 1 %."""

HELD_OUT: Final = 1 / 16
"""Share of a training sample that is held out, where that many are left over."""

ID_DIGITS: Final = 8
"""Of an image id, that say how far a quantizer has learned."""

LEAST_HELD_OUT: Final = 8
"""Fewer tell nothing; the quantizer is then kept until the map has grown."""


def held_out(sample: int, config: IndexConfig) -> int:
    """Choose how many photos of a sample are held out of training."""
    photos = min(MEASURED_PHOTOS, int(sample * HELD_OUT), sample - config.flat_below)
    return photos if photos >= LEAST_HELD_OUT else 0


def with_new_photos(index: IndexEntry, photos: int, error: float) -> IndexEntry:
    """Account for photos that were coded with a quantizer it was not trained on."""
    before = index.parameters.get("new_photos", 0)
    mean = (before * index.parameters.get("new_error", 0.0) + photos * error) / (before + photos)
    return msgspec.structs.replace(
        index, parameters={**index.parameters, "new_photos": before + photos, "new_error": round(mean, 6)}
    )


def learned_to(image_id: str) -> str:
    """Note the largest image id that a quantizer learned from, not so that it tells which photo that was."""
    return image_id[:ID_DIGITS]


def learned_from(storage: Storage, index: IndexEntry | None, tombstones: Sequence[ObjectRef]) -> int:
    """Count the photos taken down since training that a quantizer may have learned from.

    It learned from all photos of then up to `learned_to`. Names that came later or never count as well, as a photo may have left
    the map before it was taken down: this may be too many, never too few. Indexes from before this was noted may have learned
    from any.

    Raises:
        DamagedError: a table of tombstones is not what was written.
    """
    if index is None or index.quantizer is None:
        return 0
    rows = read_tombstone_rows(storage, tombstones[index.parameters.get("tombstones", 0) :])
    last = index.parameters.get("learned_to", "f" * ID_DIGITS)
    return sum(name[:ID_DIGITS] <= last for name in rows["image_id"].to_pylist())


def reason_to_train(
    index: IndexEntry | None, photos: int, descriptor_dim: int, config: IndexConfig, *, taken_down: int = 0, extend: bool
) -> str | None:
    """Say why the quantizer of a map has to be made anew; None: it need not be.

    Args:
        index: of the version before; None: there is none with this network.
        photos: that the map is to have.
        descriptor_dim: D.
        config: sizes and limits.
        taken_down: photos that it learned from and is to forget.
        extend: True for a backfill, which leaves drift and forgetting to the next build.
    """
    trainable = derive_parameters(photos, descriptor_dim, config) is not None
    if index is None or (index.kind == "flat") == trainable:
        size = f"the map has {'' if trainable else 'fewer than '}{config.flat_below:,} photos{' or more' if trainable else ''}"
        return size if index else "the map is new"
    if index.kind == "flat":
        return None
    if photos > config.retrain_growth * index.trained_for:
        return f"the map has grown from {index.trained_for:,} to {photos:,} photos, more than {config.retrain_growth:g} times"
    if extend:
        return None
    if asked := _asked_for_something_else(index, photos, descriptor_dim, config):
        return asked
    if index.quantizer_format < FORMATS["quantizer"]:
        return f"it is of format {index.quantizer_format}; this Folio's, {FORMATS['quantizer']}, finds more"
    return f"it learned from {taken_down:,} photos that were taken down since" if taken_down else _drifted(index)


def outlook(
    index: IndexEntry | None, photos: int, descriptor_dim: int, config: IndexConfig, *, taken_down: int = 0, extend: bool
) -> str:
    """Say beforehand what a run will do to the quantizer; arguments as `reason_to_train`."""
    if derive_parameters(photos, descriptor_dim, config) is None:
        return f"none: fewer than {config.flat_below:,} photos are searched exactly"
    if why := reason_to_train(index, photos, descriptor_dim, config, taken_down=taken_down, extend=extend):
        return f"{WILL_TRAIN}: {why}"
    assert index is not None, "a new map is a reason to train"
    return f"kept: {state(index)}"


def outcome(index: IndexEntry, before: IndexEntry | None) -> str:
    """Say what became of the quantizer in a version that was made on top of another."""
    if index.kind == "flat":
        return f"none: {state(index)}"
    if before is not None and index.quantizer == before.quantizer:
        return f"kept: {state(index)}"
    return f"trained: {index.parameters['trained_because']}; {state(index)}"


def state(index: IndexEntry) -> str:
    """Say how well a quantizer fits, to a person."""
    if index.kind == "flat":
        return "so few photos are searched exactly"
    if "error" not in index.parameters:
        return f"trained for {index.trained_for:,} photos, its error was not measured"
    text = f"error {index.parameters['error']:.4f} at training"
    if photos := index.parameters.get("new_photos"):
        few = "" if photos >= _judged(index) else f" (judged from {_judged(index):,} on)"
        text += f", {index.parameters['new_error']:.4f} on the {photos:,} photos encoded since{few}, at most {_bound(index):.4f}"
    if recall := index.parameters.get("recall"):
        text += f"; finds {recall:.1%} of the exact neighbours, {index.parameters['refined']:,} photos compared exactly"
    return text


def _asked_for_something_else(index: IndexEntry, photos: int, descriptor_dim: int, config: IndexConfig) -> str | None:
    has = index.parameters["code_bytes"]
    then, now = (derive_parameters(size, descriptor_dim, config) for size in (index.trained_for, photos))
    # Small maps get shorter codes than asked for. A map whose size wavers about such a limit must not be coded anew each night.
    if config.code_bytes and then and now and (then.code_bytes != has or now.code_bytes == config.code_bytes != has):
        return f"codes of {config.code_bytes} bytes were asked for, it makes {has}"
    if config.recall and index.parameters.get("recall", 0.0) < config.recall:
        found = f"it finds {index.parameters['recall']:g}" if "recall" in index.parameters else "it was never measured"
        return f"a recall of {config.recall:g} was asked for, {found}"
    return None


def _drifted(index: IndexEntry) -> str | None:
    photos = index.parameters.get("new_photos", 0)
    if "error" not in index.parameters or photos < _judged(index) or index.parameters["new_error"] <= _bound(index):
        return None
    return (
        f"its error on the {photos:,} photos encoded since is {index.parameters['new_error']:.4f}, "
        f"more than the bound {_bound(index):.4f} ({DRIFT:g} times that at training)"
    )


def _bound(index: IndexEntry) -> float:
    return float(DRIFT * index.parameters["error"])


def _judged(index: IndexEntry) -> int:
    return max(JUDGED_PHOTOS, int(JUDGED_SHARE * index.trained_for))
