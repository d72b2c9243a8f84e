"""Descriptors of a made-up city of any size: by segment, each from its number alone, so that none has to be kept.

A photo is what its street has, what its place has (which fades along the street), and what only this photo has, all with the same
falling spectrum; the last is heavy-tailed. A query is another photo of a place of the map. The few numbers of `Fit` were fitted
to the photos of ie_tower as `folio-small` sees them; `python -m tests.benchmarks.made_up_descriptors` puts both side by side.

Full descriptors of millions of photos fit on no disk here. `REDUCED` is fitted to what a city's index holds of them: descriptors
on 512 principal axes of photos of *other* places, made unit length again. `COMPRESSIBLE` is not fitted to anything: it assumes a
network whose reduced descriptors say more about the place.

Everything is made in the basis of the spectrum's own axes. That changes no cosine, and an index that learns its axes cannot know.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from fol_model.inference import open_encoder
from fol_model.recipes import folio_small
from tests.benchmarks.recall import Cache, network
from tests.benchmarks.recall_sets import WORK, load_set

SEGMENT_PHOTOS: Final = 2048
STREET_PHOTOS: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a network's descriptors of a city are like."""

    dim: int = 8448
    mean: float = 0.085
    """Squared length of what all photos share: the mean cosine of two of them."""
    exponent: float = 0.72
    """Axis j has a variance of j ** -exponent."""
    street: float = 0.06
    """Of the rest, the share that photos of a street have in common,"""
    place: float = 0.15
    """and that which two photos of a place have in common beside it."""
    fades_after: float = 2.2
    """Photos along the street until the latter has fallen to 1 / e."""
    freedom: float = 10.0
    """Degrees of freedom of Student's t of what only a photo has, which is a good or a bad one as a whole."""


REDUCED: Final = Fit(dim=512, mean=0.27, exponent=0.71, street=0.22, place=0.28, fades_after=4.2, freedom=16.0)
"""Of folio-small on 512 axes from other places. They keep less of what only a photo has, so places stand out more."""

COMPRESSIBLE: Final = Fit(dim=512, mean=0.27, exponent=0.71, street=0.15, place=0.5, fades_after=4.2, freedom=16.0)
"""An assumption: a network for which half of what photos do not all share is that of the place."""


class MadeUpDescriptors:
    """Photos of a city and queries for them.

    Args:
        fit: what they are like.
        seed: of the city.
    """

    def __init__(self, fit: Fit, *, seed: int) -> None:
        self.fit: Final = fit
        self._seed = seed
        variance = np.arange(1, fit.dim) ** -fit.exponent
        self._deviation = np.sqrt((1 - fit.mean) * variance / variance.sum()).astype(np.float32)

    def segment(self, number: int) -> Float32[np.ndarray, "2048 D"]:
        """Make the photos of a segment, of unit length, in the order of their streets."""
        return self._seen(self._places(number), np.random.default_rng([self._seed, 1, number]))

    def queries(self, number: int, rows: Int64[np.ndarray, " q"]) -> Float32[np.ndarray, "q D"]:
        """Make other photos of places of a segment."""
        return self._seen(self._places(number)[rows], np.random.default_rng([self._seed, 2, number]))

    def _places(self, number: int) -> Float32[np.ndarray, "2048 E"]:
        """Make what photos have of their streets and places, before the spectrum."""
        rng = np.random.default_rng([self._seed, 0, number])
        axes, streets = len(self._deviation), SEGMENT_PHOTOS // STREET_PHOTOS
        kept = np.float32(np.exp(-1 / self.fit.fades_after))
        places = np.empty((streets, STREET_PHOTOS, axes), np.float32)
        fresh = np.float32(np.sqrt((1 - kept**2) * self.fit.place))
        places[:, 0] = np.float32(np.sqrt(self.fit.place)) * rng.standard_normal((streets, axes), np.float32)
        for photo in range(1, STREET_PHOTOS):
            places[:, photo] = kept * places[:, photo - 1] + fresh * rng.standard_normal((streets, axes), np.float32)
        places += np.float32(np.sqrt(self.fit.street)) * rng.standard_normal((streets, 1, axes), np.float32)
        return places.reshape(SEGMENT_PHOTOS, axes)

    def _seen(self, places: Float32[np.ndarray, "n E"], rng: np.random.Generator) -> Float32[np.ndarray, "n D"]:
        """Make photos of places: the mean on the last axis, the spectrum on the others."""
        nu = self.fit.freedom
        scale = np.sqrt((1 - self.fit.street - self.fit.place) * (nu - 2) / rng.chisquare(nu, (len(places), 1)))
        photos = np.empty((len(places), self.fit.dim), np.float32)
        photos[:, :-1] = rng.standard_normal(places.shape, np.float32)
        photos[:, :-1] *= scale.astype(np.float32)
        photos[:, :-1] += places
        photos[:, :-1] *= self._deviation
        photos[:, -1] = np.sqrt(self.fit.mean)
        photos /= np.linalg.norm(photos, axis=1, keepdims=True)
        return photos


def facts_of(photos: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"], axes: int = 512) -> dict[str, float]:
    """Say what photos of unit length are like, for comparison.

    Args:
        photos: of a map, some thousand.
        queries: other photos of its places.
        axes: how many principal ones; fitted to every second photo.
    """
    cosines = (photos @ photos.T)[np.triu_indices(len(photos), 1)]
    best = -np.sort(-(queries @ photos.T), axis=1)
    sample = photos[::2] - photos[::2].mean(axis=0)
    values, vectors = np.linalg.eigh((sample @ sample.T).astype(np.float64))
    kept = (vectors[:, -axes:] / np.sqrt(values[-axes:])).T.astype(np.float32) @ sample
    variances = values[::-1] / len(sample)
    return {
        "cosine of two photos, mean": float(cosines.mean()),
        "standard deviation": float(cosines.std()),
        "of a thousand the largest": float(np.quantile(cosines, 0.999)),
        "of a query, the 1st": float(best[:, 0].mean()),
        "the 10th": float(best[:, 9].mean()),
        "the 100th": float(best[:, 99].mean()),
        "variance along axis 1": float(variances[0]),
        "10": float(variances[9]),
        "100": float(variances[99]),
        f"energy in {axes} axes, photos not fitted to": float(((photos[1::2] @ kept.T) ** 2).sum(axis=1).mean()),
        "queries": float(((queries @ kept.T) ** 2).sum(axis=1).mean()),
    }


def reduced(
    photos: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"], axes: int = 512
) -> tuple[Float32[np.ndarray, "m d"], Float32[np.ndarray, "q d"]]:
    """Project the second half of the photos, and queries, on principal axes of the first half, and make them unit length.

    As in an index, the last axis is the mean, and nothing is taken away.
    """
    sample = photos[: len(photos) // 2]
    mean = sample.mean(axis=0)
    values, vectors = np.linalg.eigh(((sample - mean) @ (sample - mean).T).astype(np.float64))
    rows = (vectors[:, -axes + 1 :] / np.sqrt(values[-axes + 1 :])).T.astype(np.float32) @ (sample - mean)
    missed = mean - rows.T @ (rows @ mean)
    rows = np.concatenate([rows, missed[None] / np.linalg.norm(missed)])
    here, there = photos[len(photos) // 2 :] @ rows.T, queries @ rows.T
    return here / np.linalg.norm(here, axis=1, keepdims=True), there / np.linalg.norm(there, axis=1, keepdims=True)


def main() -> None:
    """Print made-up photos beside real ones."""
    found = load_set("ie-tower")
    method, cache = network(open_encoder(folio_small().name, weights=None, device="cpu")), Cache(WORK / "cache")
    photos, queries = (
        np.stack([one.arrays["descriptor"] for one in cache.describe(method, paths, of=found.name)]).astype(np.float32)
        for paths in (found.database, found.queries)
    )
    _print_facts(photos, queries, Fit(), axes=512)
    second = found.positives[:, len(photos) // 2 :].any(axis=1)  # queries of places in the half that is compared
    _print_facts(*reduced(photos, queries[second]), REDUCED, axes=128)


def _print_facts(photos: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"], fit: Fit, *, axes: int) -> None:
    city = MadeUpDescriptors(fit, seed=1)
    segments = np.concatenate([city.segment(number) for number in range(len(photos) // SEGMENT_PHOTOS + 1)])
    rows = np.random.default_rng(1).choice(min(len(photos), SEGMENT_PHOTOS), 128, replace=False)
    made_up = facts_of(segments[: len(photos)], city.queries(0, rows), axes)
    print(f"| {len(photos):,} photos, {fit.dim:,} numbers | ie_tower | made up |\n|---|---|---|")
    for name, value in facts_of(photos, queries, axes).items():
        print(f"| {name} | {value:.4f} | {made_up[name]:.4f} |")
    print()


if __name__ == "__main__":
    main()
