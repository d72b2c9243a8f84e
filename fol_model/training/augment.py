"""Views: what else a place might look like, made from one photo of it, with the truth about what is seen again or hidden.

A view is a part of the photo from a slightly different standpoint, perhaps with something pasted in front, in another light.
Since both are made here, it is known where each point of a view lies in another view of the same photo, and what hides it. A view
is a pure function of the photo and the generator. Used by `pipelines/train`.

Letters: S the view's side, g patches along a side, n views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image

from fol_model.training.config import AugmentConfig
from fol_model.training.light import relit
from fol_model.training.occluders import paste_occluders
from fol_model.training.viewpoints import moved, random_homography, warped

_PROBES: Final = 4
"""Points along each side of a patch at which another view is asked."""

_HIDDEN: Final = 0.5
"""A patch of which at least this share is covered shows no place."""

_CLEAR: Final = 0.1
"""A patch of which at most this share is covered shows the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A photo as it might have been taken another time."""

    image: UInt8[np.ndarray, "S S 3"]
    """RGB. `preprocessing.normalised` makes the network's input of it."""

    homography: Float64[np.ndarray, "3 3"]
    """From the photo's pixels to the view's; x to the right, y down, and pixel 0 reaches from 0 to 1."""

    occluded: Bool[np.ndarray, "S S"]
    """Pixels that show something pasted."""


def views(
    photo: UInt8[np.ndarray, "H W 3"],
    n: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    size_px: int,
    others: Sequence[UInt8[np.ndarray, "_ _ 3"]] = (),
) -> list[View]:
    """Make views of a photo. 12 to 20 ms each at 320 px on one core.

    Args:
        photo: RGB, of any shape; as inference does, its shape is not kept.
        n: how many.
        rng: decides everything.
        config: how far views may be from the photo.
        size_px: side S of the views.
        others: photos of other places, to paste parts of. None: mirrored parts of this one.
    """
    height, width = photo.shape[:2]
    homographies = [random_homography(width, height, size_px, rng, config) for _ in range(n)]
    textures = [Image.fromarray(other) for other in others] or [Image.fromarray(photo[:, ::-1].copy())]
    made = []
    for homography, seen in zip(homographies, warped(photo, homographies, size_px), strict=True):
        image = Image.fromarray(seen)
        occluded = np.zeros((size_px, size_px), dtype=bool)
        if rng.random() < config.occluder:
            occluded = paste_occluders(image, textures, config.max_occluders, rng)
        made.append(View(image=np.array(relit(image, rng, config)), homography=homography, occluded=occluded))
    return made


def known_reliability(view_a: View, view_b: View, g: int) -> Float32[np.ndarray, "g g"]:
    """Say what is known of the patches of `view_a` from another view of the same photo.

    Args:
        view_a: whose patches are judged.
        view_b: where they are looked for.
        g: patches along a side.

    Returns:
        1: the other view shows most of it and nothing hides it in either. 0: something pasted hides it in `view_a`. NaN: unknown,
        as it is outside the other view, hidden there, or covered in part. (A patch is not to blame for what hides it elsewhere:
        reliability is of one photo alone.)

    Raises:
        ValueError: the view's side is no multiple of g.
    """
    covered = _covered_share(view_a, g)
    side = g * _PROBES
    probe = (np.arange(side) + 0.5) / side * len(view_a.occluded)
    points = np.stack(np.meshgrid(probe, probe), axis=-1).reshape(-1, 2)
    seen = _shown(view_b, moved(view_b.homography @ np.linalg.inv(view_a.homography), points))
    seen_share = seen.reshape(g, _PROBES, g, _PROBES).mean(axis=(1, 3))
    known = np.where((covered <= _CLEAR) & (seen_share > 0.5), np.float32(1), np.float32(np.nan))
    return np.where(covered >= _HIDDEN, np.float32(0), known)


def reliability_targets(same_photo: Sequence[View], g: int) -> Float32[np.ndarray, "n g g"]:
    """Combine what views of one photo know of each other: 1 if any other shows a patch, 0 if it is hidden, else NaN.

    A single view is fine: what is pasted into it is known.

    Raises:
        ValueError: the views' side is no multiple of g.
    """
    targets = []
    for index, view in enumerate(same_photo):
        target = np.where(_covered_share(view, g) >= _HIDDEN, np.float32(0), np.float32(np.nan))
        for other in (*same_photo[:index], *same_photo[index + 1 :]):
            target = np.fmax(target, known_reliability(view, other, g))
        targets.append(target)
    return np.stack(targets)


def _covered_share(view: View, g: int) -> Float64[np.ndarray, "g g"]:
    size = len(view.occluded)
    if size % g:
        raise ValueError(f"the side of a view must be a multiple of its {g} patches, got {size} pixels")
    return np.asarray(view.occluded.reshape(g, size // g, g, size // g).mean(axis=(1, 3)))


def _shown(view: View, points: Float64[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
    """Say which points lie inside a view and are not hidden there."""
    size = len(view.occluded)
    inside = np.all((points >= 0) & (points < size), axis=1)
    column, row = np.where(inside[:, None], points, 0).astype(int).T
    return np.asarray(inside & ~view.occluded[row, column])
