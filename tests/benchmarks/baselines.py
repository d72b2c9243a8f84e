"""Hand-made descriptors that a trained network has to beat: HOG on a grid, and VLAD over RootSIFT, sparse or dense.

All see the photo in grey and give one row of unit length, so that the nearest by cosine is the nearest by L2.

Sources: HOG, Dalal and Triggs 2005; SIFT, Lowe 2004; RootSIFT, Arandjelovic and Zisserman 2012; VLAD, Jegou et al. 2010; dense
SIFT at several scales, Bosch et al. 2007, as in VLFeat's PHOW. Letters: n local features of 128 numbers, K words.
"""

from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

WORDS: Final = 64
WORD_FEATURES_A_PHOTO: Final = 700
"""Words are learnt from at most this many features of a photo, drawn at random."""

HOG_SIDE: Final = 128
SPARSE_SIDE: Final = 640
"""Photos are shrunk to this longest side before SIFT looks for corners, which its number and time depend on."""
SPARSE_FEATURES: Final = 2000
DENSE_SIDE: Final = 320
DENSE_STEP: Final = 8
DENSE_BINS: Final = (4, 6, 8, 10)
"""Side in pixels of one of a feature's 4 x 4 bins, for each of the four scales."""

Photo = UInt8[np.ndarray, "H W 3"]

_EPSILON: Final = np.float32(1e-12)


def hog(photo: Photo) -> Float32[np.ndarray, " 1764"]:
    """Describe a photo by the directions of its edges in 8 x 8 cells, 9 bins each, normalised in blocks of 2 x 2 cells."""
    square = cv2.resize(_grey(photo), (HOG_SIDE, HOG_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    down, across = np.gradient(square)
    strength = np.hypot(across, down)
    turn = np.arctan2(down, across) * (9 / np.pi)  # in ninths of half a turn: dark on light is as light on dark
    apart = np.abs(np.mod(turn - np.arange(9)[:, None, None] + 4.5, 9) - 4.5)
    cell = HOG_SIDE // 8
    cells = (strength * np.maximum(1 - apart, 0)).reshape(9, 8, cell, 8, cell).mean(axis=(2, 4))
    blocks = np.concatenate([cells[:, row : row + 7, column : column + 7] for row in (0, 1) for column in (0, 1)])  # (36, 7, 7)
    blocks /= np.linalg.norm(blocks, axis=0) + 1
    blocks = np.minimum(blocks, 0.2)
    blocks /= np.linalg.norm(blocks, axis=0) + np.float32(1e-3)
    return _unit(blocks.ravel())


def sparse_rootsift(photo: Photo) -> Float32[np.ndarray, "n 128"]:
    """Describe the corners that OpenCV's SIFT finds; a photo without any has no rows."""
    grey = _grey(photo)
    scale = SPARSE_SIDE / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, features = cv2.SIFT_create(nfeatures=SPARSE_FEATURES).detectAndCompute(grey, None)
    return np.zeros((0, 128), np.float32) if features is None else _root(features)


def dense_rootsift(photo: Photo) -> Float32[np.ndarray, "n 128"]:
    """Describe every 8th pixel of the photo, resized to a square, at four scales; features of flat patches are left out."""
    square = cv2.resize(_grey(photo), (DENSE_SIDE, DENSE_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    margin = 2 * max(DENSE_BINS)
    centres = np.arange(margin, DENSE_SIDE - margin + 1, DENSE_STEP)
    return np.concatenate([_dense_at(square, bin_px, centres) for bin_px in DENSE_BINS])


def _dense_at(
    square: Float32[np.ndarray, "S S"], bin_px: int, centres: np.ndarray, *, flat: float = 0.005
) -> Float32[np.ndarray, "n 128"]:
    smooth = cv2.GaussianBlur(square, (0, 0), bin_px / 6)  # as far as a SIFT keypoint with such bins would be smoothed
    across = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32)
    down = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
    strength = np.hypot(across, down)
    turn = np.arctan2(down, across) * (8 / (2 * np.pi))  # in eighths of a turn
    tent = 1 - np.abs(np.arange(1 - bin_px, bin_px, dtype=np.float32)) / bin_px  # shares a pixel out between the two nearest bins
    offsets = np.rint((np.arange(4) - 1.5) * bin_px).astype(int)
    at = (centres[:, None] + offsets).ravel()  # rows, and columns, of all bins
    planes = []
    for direction in range(8):
        apart = np.abs(np.mod(turn - direction + 4, 8) - 4)
        plane = cv2.sepFilter2D(strength * np.maximum(1 - apart, 0), cv2.CV_32F, tent, tent)
        planes.append(plane[np.ix_(at, at)])
    count = len(centres)
    bins = np.stack(planes).reshape(8, count, 4, count, 4)
    features = bins.transpose(1, 3, 2, 4, 0).reshape(count * count, 128)
    structured = np.linalg.norm(features, axis=1) / (bin_px * bin_px) > flat
    return _root(features[structured])


def _root(features: Float32[np.ndarray, "n 128"]) -> Float32[np.ndarray, "n 128"]:
    """SIFT's own normalisation, then the root of each share, so that cosine compares histograms as Hellinger's kernel does."""
    unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + _EPSILON)
    clipped = np.minimum(unit, np.float32(0.2))
    return np.sqrt(clipped / (clipped.sum(axis=1, keepdims=True) + _EPSILON)).astype(np.float32)


def learn_words(
    photos: Iterable[Float32[np.ndarray, "_ 128"]], *, count: int = WORDS, seed: int = 0
) -> Float32[np.ndarray, "K 128"]:
    """Learn visual words by k-means.

    Args:
        photos: the local features of each photo; no photo of the set under test should be among them.
        count: words K.
        seed: draws features and first words.

    Raises:
        ValueError: there are fewer features than words.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(features)[:WORD_FEATURES_A_PHOTO] for features in photos]
    features = np.concatenate([np.zeros((0, 128), np.float32), *drawn])
    if len(features) < count:
        raise ValueError(f"{count} words need at least as many local features, got {len(features)}")
    cv2.setRNGSeed(seed)
    stop = (cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    _, _, words = cv2.kmeans(features, count, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    return np.asarray(words, np.float32)


def vlad(features: Float32[np.ndarray, "n 128"], words: Float32[np.ndarray, "K 128"]) -> Float32[np.ndarray, " K*128"]:
    """Add up how features differ from their nearest word, word by word; signed root, then unit length.

    A photo without features is all zeros: as far from every photo as from any other.
    """
    nearest = (features @ words.T - (words * words).sum(axis=1) / 2).argmax(axis=1)
    sums = np.zeros_like(words)
    np.add.at(sums, nearest, features - words[nearest])
    return _unit((np.sign(sums) * np.sqrt(np.abs(sums))).ravel())


def _unit(row: Float32[np.ndarray, " D"]) -> Float32[np.ndarray, " D"]:
    return np.asarray(row / (np.linalg.norm(row) + _EPSILON), np.float32)


def _grey(photo: Photo) -> UInt8[np.ndarray, "H W"]:
    return np.asarray(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
