"""The query worker: opens a published version of a map and says which of its photos show the same place as another photo.

    photo ▶ descriptor, local features ▶ nearest compressed descriptors ▶ exact cosines ▶ adaptive pool ▶ local matching ▶ order

It needs neither Ray nor Prefect, and the same photo gives the same answer however the map was cut (SPEC 10.4, 10.5).

Each answer comes from one version of the map. A worker that follows the map moves on when told to (`refresh`), and by itself when
an object is gone and there is a newer version: gc and purges may remove what it stands on, and no request is dropped for it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int8, UInt8

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto, Encoder, Reranker
from infra.commits import read_head, read_version
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.masking import without
from pipelines.engine.model import load_encoder, require_same_model, weights_file
from pipelines.engine.threads import use_threads
from pipelines.locate.decide import fitted_reranking
from pipelines.query.opened_map import OpenedMap, Place, StoredPhoto
from pipelines.query.prior import Prior
from schemas.calibration import Calibration
from schemas.errors import DamagedError, MapError, ObjectMissing
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest

REFINED: Final = 2
"""Compressed candidates that are compared exactly, for each candidate that is kept. More: what compression misordered is found
again, at one row of descriptor codes read each."""

NO_FEATURES: Final = LocalFeatures(
    features=np.empty((0, 1), np.int8), patch=np.empty((0, 2), np.uint8), reliability=np.empty(0, np.uint8)
)
"""What stands for local features that cannot be used."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A photo of the map that may show the same place."""

    photo: StoredPhoto
    global_rank: int
    """1 is the best by descriptor alone."""
    cosine: float
    matches: int | None
    """Mutual nearest neighbours; None: not re-ranked, as are the two below."""
    local_score: float | None
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Candidates, best first: the re-ranked pool, then the rest in global order."""

    candidates: list[Candidate]
    pool_size: int
    matched_patches: UInt8[np.ndarray, "m 4"]
    """Of the first candidate: query row, query column, its row, its column, strongest first."""
    map: OpenedMap
    """The version that all of it comes from."""
    without_features: list[str] = field(default_factory=list)
    """Candidates of the pool, by image id, that are ranked by their cosine alone: their local features are missing, damaged,
    none, or of another size than the query's. `folio verify` says which objects are damaged."""


class QueryWorker:
    """Answers queries from a map, each from one version of it. For any number of threads.

    Args:
        storage: of the map.
        opened: the version to begin with.
        encoder: the network it was made with.
        config: re-ranking.
        follows: whether to move on to newer versions.
        prior: which photos of the map can match; None: all.
    """

    def __init__(
        self,
        storage: Storage,
        opened: OpenedMap,
        encoder: Encoder,
        config: RerankConfig,
        *,
        follows: bool = True,
        prior: Prior | None = None,
    ) -> None:
        self.map = opened
        """The version that the next answer comes from; replaced as a whole."""
        self.encoder: Final = encoder
        self._storage = storage
        self.config: Final = config
        self.prior: Final = prior
        self._follows = follows
        self._moving = Lock()

    @property
    def calibration(self) -> Calibration | None:
        """What was fitted to the version in use."""
        return self.map.calibration

    @property
    def pool_bytes(self) -> int:
        """Memory of the local features that a query may be compared with, at most."""
        number = {"float16": 2, "float32": 4}.get(self.encoder.local_precision, 1)
        of_photo = self.encoder.max_local_features * (self.encoder.local_dim * number + 3)
        return self.config.pool.max_size * of_photo

    def refresh(self) -> bool:
        """Move on to the newest version: open it beside the one in use, then swap. Answers under way end where they began.

        Returns:
            Whether there was a newer one. One made with another network is left alone, and a warning logged.

        Raises:
            DamagedError: the newest version is damaged; the one in use stays.
        """
        with self._moving:
            return self._follows and self._advance()

    def read(self, use: Callable[[OpenedMap], T]) -> T:
        """Do something with one version; once more with a newer one, when objects are gone meanwhile and there is a newer one.

        Raises:
            MapError: objects are missing or damaged, and there is no newer version to take them from.
        """
        opened = self.map
        while True:
            try:
                return use(opened)
            except (ObjectMissing, DamagedError):
                if not self._is_behind(opened):
                    raise
            opened = self.map

    def answer(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Answer:
        """Find the photos of the map that show the same place as an upright RGB photo."""
        return self.answer_encoded(self.encoder.encode([pixels])[0])

    def answer_encoded(self, query: EncodedPhoto) -> Answer:
        """The same for a photo that is encoded already.

        Local features that are damaged in the newest version cost their photo its place among the re-ranked, not the answer.

        Raises:
            MapError: something else is missing or damaged.
        """
        (answer,) = self.answer_all([query])
        return answer

    def answer_all(self, queries: Sequence[EncodedPhoto], *, threads: int = 1) -> list[Answer]:
        """Answer several photos from one version, each as `answer_encoded` would, to the bit.

        The index is searched for all of them at once, and what they compare is read once, neighbours together.

        Args:
            queries: at least one. All the local features of their pools are in memory at once.
            threads: how many queries are re-ranked side by side, each by one thread; of a single query, its candidates are.

        Raises:
            MapError: something else than local features is missing or damaged.
        """
        try:
            return self.read(lambda opened: self._answers_from(opened, queries, OpenedMap.local_features_of, threads))
        except DamagedError:
            return self.read(lambda opened: self._answers_from(opened, queries, OpenedMap.local_features_where_whole, threads))

    def _answers_from(
        self,
        opened: OpenedMap,
        queries: Sequence[EncodedPhoto],
        read_features: Callable[[OpenedMap, list[StoredPhoto]], Sequence[LocalFeatures | None]],
        threads: int,
    ) -> list[Answer]:
        reranker = Reranker(self._fitted(opened))
        found = self._best_by_descriptor(opened, [query.descriptor for query in queries])
        pools = [_Pool(reranker, query, *best) for query, best in zip(queries, found, strict=True)]
        features: dict[StoredPhoto, LocalFeatures | None] = {}
        while open_pools := [pool for pool in pools if pool.wanted]:
            wanted = dict.fromkeys(chain.from_iterable(pool.wanted for pool in open_pools))
            unread = [photo for photo in wanted if photo not in features]
            features.update(zip(unread, read_features(opened, unread), strict=True))
            _side_by_side(lambda pool: pool.match(features), open_pools, threads)
        return [pool.answer(opened) for pool in pools]

    def _fitted(self, opened: OpenedMap) -> RerankConfig:
        """What was fitted to the map, unless the caller asked for something else than the network's defaults."""
        if opened.calibration is None or self.config != self.encoder.reranking:
            return self.config
        return fitted_reranking(self.config, opened.calibration)

    def _best_by_descriptor(
        self, opened: OpenedMap, descriptors: Sequence[Float32[np.ndarray, " D"]]
    ) -> list[tuple[list[StoredPhoto], Float64[np.ndarray, " K"]]]:
        """The first stage: compressed search, then exact cosines; ties go to the smaller image id."""
        keep = self.config.pool.max_size
        places = opened.candidates(descriptors, max(REFINED * keep, opened.refined(keep)), self.prior)
        costs = [(-cosines).tolist() for cosines in _cosines(opened, places, descriptors)]
        return [(photos, -np.array(cost, np.float64)) for photos, cost in opened.best(places, costs, keep)]

    def _is_behind(self, opened: OpenedMap) -> bool:
        """Tell whether there is a newer version than one that failed, and make sure that it is the one in use."""
        with self._moving:
            if not self._follows:
                read_version(self._storage, opened.manifest.version)  # raises, and says it better, if it was retired
                return False
            return self.map is not opened or self._advance()

    def _advance(self) -> bool:
        head = read_head(self._storage)
        if head.version <= self.map.manifest.version:
            return False
        if head.model.fingerprint != self.encoder.fingerprint:
            _log.warning("%s: version %d is made with another network; staying behind", self._storage.url, head.version)
            return False
        self.map = _open_newest(self._storage, head, self.prior)
        return True


def _open_newest(storage: Storage, head: Manifest, prior: Prior | None) -> OpenedMap:
    """Open the newest version; another one, if it is replaced and purged in this moment."""
    while True:
        try:
            return OpenedMap(storage, head, prior)
        except (ObjectMissing, DamagedError):
            tried, head = head, read_head(storage)
            if head.version == tried.version:
                raise


class _Pool:
    """The second stage of one query: the first of its candidates are put in order by their local features too, the others stay.

    Args:
        reranker: as fitted to the map.
        query: encoded.
        photos: candidates, best first; none if all were taken down, or none can match.
        cosines: of these.
    """

    def __init__(
        self, reranker: Reranker, query: EncodedPhoto, photos: Sequence[StoredPhoto], cosines: Float64[np.ndarray, " K"]
    ) -> None:
        self._dim: Final = query.features.shape[1]
        self._photos: Final = photos
        self._cosines: Final = cosines
        self._ranking: Final = reranker.begin(query, cosines)
        self._without_features: list[str] = []
        self._matched = 0
        self.wanted: Sequence[StoredPhoto] = self._next()
        """Whose local features to match next; nobody's when those matched are enough."""

    def match(self, features: Mapping[StoredPhoto, LocalFeatures | None]) -> None:
        """Match those that are wanted."""
        whole = [
            NO_FEATURES if found is None or not len(found) or found.features.shape[1] != self._dim else found
            for found in (features[photo] for photo in self.wanted)
        ]
        self._without_features += [
            photo.image_id for photo, found in zip(self.wanted, whole, strict=True) if found is NO_FEATURES
        ]
        self._ranking.add(whole)
        self._matched += len(whole)
        self.wanted = self._next()

    def answer(self, opened: OpenedMap) -> Answer:
        """Give the candidates in their order."""
        ranked = self._ranking.result()
        reranked = [
            Candidate(
                photo=self._photos[place],
                global_rank=place + 1,
                cosine=float(self._cosines[place]),
                matches=int(ranked.matches[place]),
                local_score=float(ranked.local_scores[place]),
                score=float(ranked.scores[place]),
            )
            for place in ranked.order.tolist()
        ]
        rest = [
            Candidate(
                photo=self._photos[place],
                global_rank=place + 1,
                cosine=float(self._cosines[place]),
                matches=None,
                local_score=None,
                score=None,
            )
            for place in range(self._matched, len(self._photos))
        ]
        return Answer(
            candidates=reranked + rest,
            pool_size=self._matched,
            matched_patches=ranked.matched_patches,
            map=opened,
            without_features=self._without_features,
        )

    def _next(self) -> Sequence[StoredPhoto]:
        places = self._ranking.wanted if self._photos else range(0)
        return self._photos[places.start : places.stop]


def _side_by_side(work: Callable[[_Pool], None], pools: Sequence[_Pool], threads: int) -> None:
    """Work on several pools at a time, each by one thread; a single one has the threads to itself."""
    if len(pools) == 1 or threads == 1:
        for pool in pools:
            work(pool)
        return
    with ThreadPoolExecutor(threads, initializer=use_threads, initargs=(1,)) as workers:
        list(workers.map(work, pools))


def _cosines(
    opened: OpenedMap, places: Sequence[Sequence[Place]], descriptors: Sequence[Float32[np.ndarray, " D"]]
) -> list[Float64[np.ndarray, " n"]]:
    """Compare each query with some photos of the map. A photo is read once for all of them, and none is kept."""
    asking: dict[Place, list[tuple[int, int]]] = {}
    for query, there in enumerate(places):
        for number, place in enumerate(there):
            asking.setdefault(place, []).append((query, number))
    askers = list(asking.values())
    cosines = [np.empty(len(there)) for there in places]
    for photo, stored in opened.descriptors_of(list(asking)):
        found = cosines_with(stored, [descriptors[query] for query, _ in askers[photo]])
        for (query, number), cosine in zip(askers[photo], found, strict=True):
            cosines[query][number] = cosine
    return cosines


def cosines_with(
    stored: Int8[np.ndarray, " D"] | Float16[np.ndarray, " D"], queries: Sequence[Float32[np.ndarray, " D"]]
) -> list[np.float32]:
    """Compare queries with a stored descriptor, whose length does not matter: codes have none, halved ones not exactly one.

    Pair by pair, because the last bits of a matrix product depend on which rows stand together. In float32, which is three times
    as fast as float64 and good to 1e-7: the bytes of a code are good to 1e-4.
    """
    numbers = stored.astype(np.float32)
    length = np.sqrt(numbers @ numbers)
    return [(numbers @ query) / length for query in queries]


def open_worker(
    map_url: str,
    settings: Settings,
    *,
    version: int | str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    config: RerankConfig | None = None,
    prior: Prior | None = None,
) -> QueryWorker:
    """Open a version of a map for queries.

    Args:
        map_url: folder or fsspec URL.
        settings: of this process.
        version: number or tag, to stay with, without the photos taken down since. None follows the newest.
        weights: a safetensors file; None: the recipe's own, or those in the models folder.
        device: where the network runs.
        config: re-ranking; None: the defaults.
        prior: which photos of the map can match; None: all.

    Raises:
        MapMissing: no map there, or no such version.
        MapError: the version is retired.
        ModelError: the weights are missing or are not those the map was made with.
        MapError: no photo can match.
        DamagedError: the index is not what the manifest says.
    """
    use_threads(settings.threads)
    storage = open_storage(map_url, settings)
    head = read_head(storage)
    manifest = head if version is None else without(storage, read_version(storage, version), head.tombstones)
    recipe = manifest.model.recipe
    encoder = load_encoder(recipe, weights=weights_file(recipe, weights, settings), device=device, arithmetic=settings.arithmetic)
    remedy = "Give the weights the map was made with: --weights FILE.safetensors"
    require_same_model(encoder, manifest.model, map_url=storage.url, remedy=remedy)
    opened = _open_newest(storage, manifest, prior) if version is None else OpenedMap(storage, manifest, prior)
    if prior is not None and not opened.matching(prior):
        raise MapError(
            f"{storage.url}: found no photo of version {opened.manifest.version} where and when the search was to look. "
            "Nothing was changed. Look in a larger area, or everywhere."
        )
    return QueryWorker(storage, opened, encoder, config or encoder.reranking, follows=version is None, prior=prior)
