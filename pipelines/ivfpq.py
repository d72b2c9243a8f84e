"""IVF-PQ with FAISS: derive parameters, train, make shards, search. With `short_codes.py` the only file that imports faiss.

A map has one trained quantizer: the first principal axes of its descriptors, a coarse quantizer of `nlist` cells and product
quantization to `code_bytes` bytes a photo. It is stored once, as an empty index behind its projection. A shard holds only the
inverted lists of its photos, so a query is projected once and searched in every shard. Maps too small to train on are stored
flat: exact and uncompressed. Everything goes in and out as bytes, because `write_index` leaves a torn file on a full disk.

What is looked for is a large cosine, and the projection keeps a part of each descriptor: most of one that it was fitted to, a
quarter of one from another street. So distances in its space say less about where a photo was taken than about whether it was
in the sample. Inner products do not have that fault: quantizers of format 2 search by them, with photos whose projections are
made nearly, not quite, equally long (`LENGTH_POWER`). Those of format 1, still read, search by distance.

Letters: n photos, D descriptor dimensions, q queries, k neighbours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, Final, TypeAlias

import faiss
import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64
from scipy.linalg import eigh

from pipelines.short_codes import GatheredPhotos, PackedShard, ShortCodes, give_back_memory
from schemas.errors import DamagedError

SUBVECTOR_DIM: Final = 4
"""Projected numbers behind one code byte."""

PADDED_DIM: Final = 8
"""What subvectors are filled up to with zeros while their codes are learned: FAISS 1.15 takes 25 times as long for 4 numbers as
for 8, and zeros change no distance."""

CODE_BYTES: Final = 128
"""Bytes of a photo's code where nothing else is asked for: a million photos take 136 MB with their ids."""

LEAST_PROBED: Final = 256
"""Cells that are looked at. Maps of up to 90,000 photos have no more, and theirs cost less than the refine: at 41,000 made-up
photos a quarter of the cells takes 5 ms and loses every fifth nearest that all of them find in 9 ms."""

CODE_POINTS: Final = 64
"""Photos for each of the 256 codes of a byte that they are learned from, at most."""

COPIED_SHARE: Final = 1 / 8
"""Of a shard's photos, up to which those that may be found are copied out of it, in maps that are searched in one pass. Where
every id is looked at, 1 % of a shard takes four times as long."""

LEAST_POOL: Final = 8_192
"""Photos that the short codes choose, at least. Maps of fewer than eight times as many are searched in one pass."""

POOL_SHARE: Final = 128
"""Of a larger map's photos the short codes choose one in so many: to rank them takes half as long as to scan all."""

POOL_TIMES: Final = 8
"""They choose so many times the photos that are wanted, at least."""

SCANNED_AT_ONCE: Final = 16
"""Queries scanned together, in two thirds of the time. From 20 on FAISS compares them with the cells in another way, which rounds
otherwise."""

SHARD_BIT: Final = 32
"""Where the number of its shard begins in the id of a copied photo."""

LENGTH_POWER: Final = 0.25
"""A photo's projection of length l is coded with length l ** LENGTH_POWER: 1 ranks by inner product, which is best for photos
that the projection was fitted to, 0 by angle. See `pipelines/README.md` for the recall of both and of what is between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How photos are packed into a searchable index."""

    flat_below: int = 256
    """Maps with fewer photos are stored flat: 256 is the least that an 8-bit product quantizer can be trained on."""

    code_bytes: int | None = None
    """Bytes kept a photo in memory; None: as the version before was asked for, else `CODE_BYTES`. Fewer bytes: less memory, a
    larger share of neighbours lost before the exact refine."""

    recall: float | None = None
    """Share of the exact neighbours that a search shall find, at whatever cost; None: as the version before, else as many as it
    finds at the usual cost. See `pipelines/build/tune.py`."""

    train_photos: int = 65_536
    """Photos the quantizer is trained on, at most. The sample is held as it is stored: 1.1 GB at 8,448 dimensions."""

    pca_photos: int = 4_096
    """Photos the PCA is fitted to, at most. The cost is cubic in this number: about 10 s at 4,096 on one core."""

    shard_photos: int = 262_144
    """Photos in one shard, at most. At 128 bytes: 34 MB of codes and 2 MB of ids."""

    retrain_growth: float = 4.0
    """Train again once a map has grown beyond this many times the photos it had when its quantizer was trained."""

    seed: int = 20_260
    """Of the k-means starts."""

    def __post_init__(self) -> None:
        if self.flat_below < 256:
            raise ValueError(f"flat_below must be at least 256, the points an 8-bit quantizer needs; got {self.flat_below}")
        if self.code_bytes is not None and self.code_bytes < 1:
            raise ValueError(f"code_bytes must be at least 1; got {self.code_bytes}")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise ValueError(f"recall must be more than 0 and at most 1; got {self.recall}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfPqParameters:
    """What was derived from the number of photos. Recorded in the manifest."""

    pca_dim: int
    nlist: int
    code_bytes: int
    nprobe: int

    def to_json(self) -> dict[str, Any]:
        """Give plain values for the manifest."""
        return asdict(self)


def derive_parameters(photos: int, descriptor_dim: int, config: IndexConfig) -> IvfPqParameters | None:
    """Choose the size of the index for a map; None means flat.

    PCA keeps few dimensions where there are few photos to fit it to, so that small maps are not coded by noise. Cells grow with
    the square root of the photos of a shard, so that scanning one cell and choosing among the cells cost about the same: they are
    chosen in each shard anew, so with more a photo would cost more, to code and to find, the larger the map.
    """
    if photos < config.flat_below:
        return None
    asked, most = SUBVECTOR_DIM * (config.code_bytes or CODE_BYTES), min(descriptor_dim, max(64, photos // 8))
    pca_dim = asked if asked <= most else 2 ** int(np.log2(most))
    nlist = 2 ** round(np.log2(np.sqrt(min(photos, config.shard_photos))))
    return IvfPqParameters(
        pca_dim=pca_dim,
        nlist=nlist,
        code_bytes=max(1, pca_dim // SUBVECTOR_DIM),
        nprobe=min(nlist, max(LEAST_PROBED, nlist // 4)),
    )


Descriptors: TypeAlias = Float16[np.ndarray, "n D"] | Float32[np.ndarray, "n D"]
"""As they are stored, or made ready to calculate with, which takes twice the memory."""

READ_AT_ONCE: Final = 1_024
"""Photos of a sample made ready at once: 35 MB at 8,448 numbers."""


def in_float32(descriptors: Descriptors) -> Iterator[Float32[np.ndarray, "n D"]]:
    """Make a sample ready to calculate with, some photos at a time."""
    for start in range(0, len(descriptors), READ_AT_ONCE):
        yield np.asarray(descriptors[start : start + READ_AT_ONCE], np.float32)


def train_quantizer(sample: Descriptors, parameters: IvfPqParameters, config: IndexConfig) -> bytes:
    """Train PCA, cells and codes on a sample of descriptors.

    Beside the sample it takes a part of it as float32, to which the axes are fitted, and the projections.

    Returns:
        A FAISS file: `IndexPreTransform(PCA, empty IndexIVFPQ)`. The same sample in the same order gives the same bytes.
    """
    projection = _fit_pca(np.asarray(sample[: config.pca_photos], np.float32), parameters.pca_dim, parameters.code_bytes)
    projected = np.empty((len(sample), parameters.pca_dim), np.float32)
    for number, block in enumerate(in_float32(sample)):
        start = number * READ_AT_ONCE
        projected[start : start + len(block)] = _evened(projection.apply(block))
    centroids = _k_means(projected, parameters.nlist, config.seed, spherical=True)
    coarse: Any = faiss.IndexFlatIP(parameters.pca_dim)
    coarse.add(centroids)
    coded = projected[: 256 * CODE_POINTS]
    _, cells = coarse.search(coded, 1)
    codes = _learn_codes(coded - centroids[cells[:, 0]], parameters.code_bytes, config.seed)
    index = faiss.IndexIVFPQ(coarse, parameters.pca_dim, parameters.nlist, parameters.code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codes.ravel(), index.pq.centroids)
    index.is_trained = True
    return _serialise(faiss.IndexPreTransform(projection, index))


def quantization_error(quantizer: bytes, descriptors: Descriptors) -> float:
    """Measure what photos lose by being coded: the mean of 1 - cosine between a descriptor and what its code stands for.

    Photos unlike those the quantizer was trained on lose more: its PCA drops what tells them apart, its cells lie elsewhere.

    Args:
        quantizer: what `train_quantizer` returned.
        descriptors: L2-normalised, at least one.
    """
    trained = _Quantizer(quantizer)
    index, cosines = trained.empty_index, []
    for block in in_float32(descriptors):
        restored = trained.restore(index.sa_decode(index.sa_encode(trained.to_be_coded(block))))
        lengths = np.linalg.norm(block, axis=1) * np.linalg.norm(restored, axis=1)
        cosines.append((block * restored).sum(axis=1) / lengths)
    return float(1 - np.concatenate(cosines).mean())


def make_shard(
    quantizer: bytes | None,
    descriptor_dim: int,
    blocks: Iterable[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]],
) -> bytes:
    """Code photos into one shard.

    Args:
        quantizer: what `train_quantizer` returned; None makes a flat shard.
        descriptor_dim: D.
        blocks: descriptors with their ids, a bounded number at a time.

    Returns:
        A FAISS file: an `IndexIVFPQ` in PCA space, or an `IndexIDMap` over exact descriptors.
    """
    if quantizer is None:
        flat = faiss.IndexIDMap(faiss.IndexFlatL2(descriptor_dim))
        for descriptors, ids in blocks:
            flat.add_with_ids(descriptors, ids)
        return _serialise(flat)
    trained = _Quantizer(quantizer)
    for descriptors, ids in blocks:
        trained.empty_index.add_with_ids(trained.to_be_coded(descriptors), ids)
    return _serialise(trained.empty_index)


class ShardSearcher:
    """The shards of one map version, each opened when it is first searched. Safe to search from several threads.

    A large map is searched in two passes: short codes, scanned in registers, say which photos are ranked by the stored codes. See
    `short_codes.py` and `pool_size`.

    Shards are read, not memory-mapped: as much would be resident after fifty queries, a query would take 13 to 29 % more CPU, and
    a file that somebody cuts while it is mapped ends the process.

    Args:
        quantizer: the quantizer's file; None for a flat map.
        nprobe: cells to look at in each shard; ignored by flat maps.
        shards: the shards' files, already checked against their sha256: FAISS trusts what it reads. Or what reads such a file.
        live: for each shard which ids may be found, or None: all. Ids beyond the end may not. Photos that were taken down stay
            in the shard until a rebuild, and are passed over while it is searched, so that k others are still found.
        names: of the quantizer and then of each shard, for messages.
        rows: photos that each shard must hold; None: not known, and searched in one pass.
        stands_for: photos of a larger map whose search is tried on these; None: it is these.

    Raises:
        DamagedError: the quantizer is not one that this Folio wrote. Whatever opens a shard raises it for that.
    """

    def __init__(
        self,
        quantizer: bytes | None,
        nprobe: int,
        shards: Sequence[bytes | Callable[[], bytes]],
        live: Sequence[Bool[np.ndarray, " ids"] | None] | None = None,
        names: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
        stands_for: int | None = None,
    ) -> None:
        self._rows = list(rows) if rows is not None else [None] * len(shards)
        self._names = names or ["quantizer", *(f"shard {number}" for number in range(len(shards)))]
        self._quantizer = _opened_quantizer(quantizer, self._names[0]) if quantizer is not None else None
        self._files = list(shards)
        self._opened: list[Any] = [None] * len(shards)
        self._opening = [Lock() for _ in shards]
        self._live = list(live) if live is not None else [None] * len(shards)
        self._nprobe = nprobe
        photos = sum(_count(only, there) for only, there in zip(self._live, self._rows, strict=True))
        self._scale = (stands_for or photos) / max(1, photos)
        self._short = None
        if self._quantizer and self._quantizer.by_inner_product and pool_size(round(photos * self._scale), 1) is not None:
            self._short = ShortCodes(self._quantizer.empty_index)
            self._cells = _cells(self._quantizer.empty_index)
        self._everything: Among | None = None

    def open(self, numbers: Iterable[int] | None = None) -> None:
        """Open shards now, one after the other; None: all.

        Raises:
            DamagedError: a file is not a shard for this quantizer.
        """
        for number in range(len(self._files)) if numbers is None else numbers:
            self._shard(number)

    def among(self, only: Mapping[int, Bool[np.ndarray, " ids"]]) -> "Among":
        """Make ready to search some photos, again and again.

        Where they are few, they are copied out of the shards: a search then costs what these cost, not a look at every id of the
        shards. Fewer than are searched in two passes are all compared, however large the map is.

        Args:
            only: by shard, which ids may be found; other shards are left alone, and are not opened.
        """
        opened = {number: self._shard(number) for number in only}
        if self._short is not None:
            allowed = {number: opened[number].allowed(ids) for number, ids in only.items()}
            photos = sum(int(np.count_nonzero(of_shard)) for of_shard in allowed.values())
            if pool_size(round(photos * self._scale), 1) is None:
                rows = {number: np.flatnonzero(of_shard) for number, of_shard in allowed.items()}
                return Among([], None, GatheredPhotos(rows, opened, self._short, self._cells))
            nprobe = self._short.trained.nlist
            parts = [Part(opened[number], nprobe, _selector(of_shard), number) for number, of_shard in allowed.items()]
            return Among(parts, photos)
        parts = []
        copied: Any = None
        for number, shard in opened.items():
            ids, live = only[number], self._live[number]
            if live is not None:
                both = min(len(live), len(ids))
                ids = live[:both] & ids[:both]
            if self._quantizer is None:
                parts.append(Part(shard, None, _selector(ids), number))
            elif not (
                self._quantizer.by_inner_product and np.count_nonzero(ids) <= COPIED_SHARE * shard.ntotal
            ):  # By distance (format 1) a copy, without FAISS's precomputed sums, would round otherwise.
                parts.append(Part(shard, shard.nlist, _selector(ids), number))
            else:
                copied = _without_photos(self._quantizer.empty_index) if copied is None else copied
                _copy(shard, ids, number, copied)
        if copied is not None:
            parts.append(Part(copied, copied.nlist, None, None))
        return Among(parts, None)

    def search(
        self,
        queries: Float32[np.ndarray, "q D"],
        k: int,
        only: "Mapping[int, Bool[np.ndarray, ' ids']] | Among | None" = None,
    ) -> list[list[tuple[float, int, int]]]:
        """Find the nearest photos of each query over all shards. What is found for one does not depend on the others, to the bit.

        Args:
            queries: descriptors.
            k: how many.
            only: the photos that may be found, as `among` takes or gives them. Then every cell is looked at, so that what is
                found is what a search of everything would find among them.

        Returns:
            For each query (distance, shard number, id), nearest first: the k nearest, and maybe more: those as near as the last,
            or up to k from each shard. Distances only say who is nearer: minus the inner product with the compressed codes;
            squared distances in flat maps, exact, and in format 1.

        Raises:
            DamagedError: a shard that is opened for this is not one for this quantizer.
        """
        projected = queries
        if self._quantizer:  # one by one: the last bits of a matrix product depend on which rows stand together
            projected = np.concatenate([self._quantizer.project(query[None]) for query in queries])
        if only is None:
            only = self._everything = self._everything or self._all()
        elif not isinstance(only, Among):
            only = self.among(only)
        if only.gathered is not None:
            return self._search_gathered(projected, k, only.gathered)
        if only.photos is not None:
            return self._search_twice(projected, k, only)
        return [sorted(hits) for hits in self._search_once(projected, k, only)]

    def _all(self) -> "Among":
        shards = [self._shard(number) for number in range(len(self._files))]
        nprobe = self._nprobe if self._quantizer else None
        if self._short is not None:
            return Among([Part(shard, nprobe, None, number) for number, shard in enumerate(shards)], sum(map(len, shards)))
        selectors = [None if live is None else _selector(live) for live in self._live]
        numbered = enumerate(zip(shards, selectors, strict=True))
        return Among([Part(shard, nprobe, selector, number) for number, (shard, selector) in numbered], None)

    def _search_once(self, projected: Float32[np.ndarray, "q d"], k: int, only: "Among") -> list[list[tuple[float, int, int]]]:
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(len(projected))]
        for part in only.parts:
            shard, number = part.shard, part.number
            parameters = _search_parameters(part.nprobe, part.selector)
            together = SCANNED_AT_ONCE if part.nprobe else 1  # so do those of exact distances
            blocks = [projected[start : start + together] for start in range(0, len(projected), together)]
            answers = [shard.search(block, max(1, min(k, shard.ntotal)), params=parameters) for block in blocks]
            distances, ids = (np.concatenate(several) for several in zip(*answers, strict=True))
            if shard.metric_type == faiss.METRIC_INNER_PRODUCT:
                distances = -distances
            numbers = np.full_like(ids, number) if number is not None else ids >> SHARD_BIT
            rows = zip(distances.tolist(), numbers.tolist(), ids.tolist(), strict=True)
            for hits, row in zip(found, rows, strict=True):
                hits.extend((d, n, i & (1 << SHARD_BIT) - 1) for d, n, i in zip(*row, strict=True) if i >= 0)
        return found

    def _search_twice(self, projected: Float32[np.ndarray, "q d"], k: int, only: "Among") -> list[list[tuple[float, int, int]]]:
        assert only.photos is not None
        pool = pool_size(round(only.photos * self._scale), round(k * self._scale)) or only.photos
        pool = min(only.photos, int(np.ceil(pool / self._scale)))
        found: list[list[tuple[float, int, int]]] = []
        for start in range(0, len(projected), SCANNED_AT_ONCE):
            several = projected[start : start + SCANNED_AT_ONCE]
            for query, chosen in zip(several, _first(several, pool, only.parts), strict=True):
                of_cells = self._cells @ query
                products = np.concatenate(
                    [part.shard.products(query, rows, of_cells) for part, rows in zip(only.parts, chosen, strict=True)]
                )
                numbers = np.repeat([part.number for part in only.parts], [len(rows) for rows in chosen])
                ids = np.concatenate([part.shard.ids[rows] for part, rows in zip(only.parts, chosen, strict=True)])
                found.append(_nearest(products, numbers, ids, k))
        return found

    def _search_gathered(
        self, projected: Float32[np.ndarray, "q d"], k: int, gathered: GatheredPhotos
    ) -> list[list[tuple[float, int, int]]]:
        found = []
        for query in projected:
            products, places = gathered.nearest(query, k, self._cells @ query)
            found.append(_nearest(products, gathered.numbers[places], gathered.ids[places], k))
        return found

    def _shard(self, number: int) -> Any:
        if self._opened[number] is None:
            with self._opening[number]:  # who else needs this shard waits, and does not hold it in memory twice
                if self._opened[number] is None:
                    file, name, rows = self._files[number], self._names[number + 1], self._rows[number]
                    shard = _opened_shard(file if isinstance(file, bytes) else file(), self._quantizer, name)
                    if rows is not None and shard.ntotal != rows:
                        raise _foreign(name, f"{shard.ntotal:,} photos", f"{rows:,}")
                    if self._short is not None:
                        shard = PackedShard(shard, self._live[number], self._short)
                        give_back_memory()
                    self._opened[number], self._files[number] = shard, b""
        return self._opened[number]


@dataclass(frozen=True, slots=True)
class Part:
    """A shard, or photos copied out of some, and how to search it."""

    shard: Any
    nprobe: int | None
    """Cells to look at; None: it has none."""
    selector: Any
    """FAISS's, of what may be found; None: all."""
    number: int | None
    """Of the shard; None: the ids say."""


@dataclass(frozen=True, slots=True)
class Among:
    """Photos of some shards, made ready by `ShardSearcher.among`."""

    parts: Sequence[Part]
    photos: int | None
    """How many, where they are searched in two passes."""
    gathered: GatheredPhotos | None = None
    """Few photos of a large map, in place of parts."""


CODED_AT_ONCE: Final = 512
"""Photos projected at once: 35 MB of float64 at 8,448 numbers."""


def pool_size(photos: int, k: int) -> int | None:
    """Say how many photos the short codes choose for a search of `photos` for k; None: too few photos for two passes."""
    pool = max(LEAST_POOL, photos // POOL_SHARE, POOL_TIMES * k)
    return pool if photos >= 8 * LEAST_POOL else None


def use_threads(count: int) -> None:
    """Let FAISS use this many threads in this process."""
    faiss.omp_set_num_threads(count)


class _Quantizer:
    """A trained quantizer, opened. Holds the whole FAISS chain: its parts are views that die with it."""

    def __init__(self, data: bytes) -> None:
        self._chain = _deserialise(data)
        self._projection = self._chain.chain.at(0)
        self.empty_index = faiss.downcast_index(self._chain.index)

    def project(self, descriptors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n d"]:
        return self._projection.apply(np.ascontiguousarray(descriptors))  # type: ignore[no-any-return]

    @property
    def by_inner_product(self) -> bool:
        return bool(self.empty_index.metric_type == faiss.METRIC_INNER_PRODUCT)  # format 2

    def to_be_coded(self, descriptors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n d"]:
        """Project photos as they are coded: equal ones to equal numbers, wherever they stand among others.

        A product in float32 may give a row other last bits in another place (FAISS's own does on AMD's processors, from one half
        dozen of rows to the next), and equal photos other codes. In float64, rounded, the last bits are the same.
        """
        if not self.by_inner_product:
            return self.project(descriptors)
        linear: Any = faiss.downcast_VectorTransform(self._projection)
        rows = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in).astype(np.float64)
        projected = np.empty((len(descriptors), linear.d_out), np.float32)
        for start in range(0, len(descriptors), CODED_AT_ONCE):
            projected[start : start + CODED_AT_ONCE] = descriptors[start : start + CODED_AT_ONCE].astype(np.float64) @ rows.T
        return _evened(projected)

    def restore(self, projected: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n D"]:
        """Go back to the space of descriptors; what the PCA dropped is lost."""
        linear: Any = faiss.downcast_VectorTransform(self._projection)
        rows = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
        offset = faiss.vector_to_array(linear.b) if linear.have_bias else 0  # format 1 has one
        return (projected - offset) @ rows  # type: ignore[no-any-return]


def _fit_pca(sample: Float32[np.ndarray, "n D"], dim: int, parts: int) -> Any:
    """Fit a PCA through the covariances of the sample, or, where it has more numbers than photos, through its Gram matrix.

    SciPy's `eigh` finds no more eigenvectors than are wanted, in two fifths of the time and a third of the memory of NumPy's,
    which takes a tenth of the time of FAISS's own `PCAMatrix`. The axes are those of the sample about its mean, the last is given
    to what they miss of the mean, which all photos share; nothing is taken away, so that inner products stay what they are. They
    come in the order of `_balanced`.
    """
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = sample - mean
    small = centred.T if sample.shape[1] < len(sample) else centred
    wanted = (max(0, len(small) - dim), len(small) - 1)
    eigenvalues, vectors = eigh((small @ small.T).astype(np.float64), subset_by_index=wanted, overwrite_a=True)  # ascending
    rows = vectors[:, ::-1].T.astype(np.float32)
    if small is centred:
        rows = rows @ centred / np.sqrt(np.maximum(eigenvalues[::-1], 1e-12))[:, None].astype(np.float32)
    missed = mean - rows[:-1].T @ (rows[:-1] @ mean)
    if (length := float(np.linalg.norm(missed))) > 1e-6:
        rows[-1] = missed / length
    rows = rows[_balanced((centred @ rows.T).var(axis=0), parts)]
    projection = faiss.LinearTransform(sample.shape[1], dim, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rows).ravel(), projection.A)
    projection.is_trained = True
    return projection


def _balanced(variances: Float32[np.ndarray, " d"], parts: int) -> Int64[np.ndarray, " d"]:
    """Order axes so that each part of the code has as much to tell as another: the product of their variances is about the same.

    In the order of their variances the first parts would be coded far too coarsely, the last too finely. Source: eigenvalue
    allocation of Ge, He, Ke and Sun, "Optimized Product Quantization", 2013, section 4.
    """
    size = len(variances) // parts
    logs = np.log(np.maximum(variances, 1e-12 * variances.max()) if variances.any() else np.ones(len(variances)))
    logs -= logs.min()  # so that a part with an axis more never has less
    chosen: list[list[int]] = [[] for _ in range(parts)]
    told = np.zeros(parts)
    for axis in np.argsort(-variances, kind="stable").tolist():
        part = int(np.argmin(told))
        chosen[part].append(axis)
        told[part] = told[part] + logs[axis] if len(chosen[part]) < size else np.inf
    return np.array(chosen).ravel()


def _learn_codes(residuals: Float32[np.ndarray, "n d"], code_bytes: int, seed: int) -> Float32[np.ndarray, "bytes 256 e"]:
    """Find the 256 codes of each byte by k-means, as FAISS does in training an index, but in time."""
    dim = residuals.shape[1] // code_bytes
    parts = np.zeros((code_bytes, len(residuals), max(PADDED_DIM, dim)), np.float32)
    parts[:, :, :dim] = residuals.reshape(len(residuals), code_bytes, dim).transpose(1, 0, 2)
    codes = np.empty((code_bytes, 256, dim), np.float32)
    for byte, part in enumerate(parts):
        codes[byte] = _k_means(part, 256, seed)[:, :dim]
    return codes


def _k_means(
    points: Float32[np.ndarray, "n d"], count: int, seed: int, *, spherical: bool = False
) -> Float32[np.ndarray, "count d"]:
    """Find `count` centroids, on a GPU where FAISS sees one.

    Nothing else of an index is made there, so code lengths are free: maps are searched on CPUs. It rounds otherwise,
    and its quantizers are others, as good.
    """
    means = faiss.Kmeans(
        points.shape[1],
        count,
        niter=10,
        seed=seed,
        min_points_per_centroid=1,  # small maps train on few points; the refine makes up for it
        spherical=spherical,
        gpu=min(1, faiss.get_num_gpus()),
    )
    means.train(points)
    return np.array(means.centroids, np.float32)


def _evened(projected: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Make projections nearly equally long."""
    lengths = np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
    return projected * lengths ** np.float32(LENGTH_POWER - 1)  # type: ignore[no-any-return]


def _first(queries: Float32[np.ndarray, "q d"], pool: int, parts: Sequence[Part]) -> Iterator[list[Int64[np.ndarray, " n"]]]:
    """Choose by short codes: for each query, of each part, the rows, ascending, that are among the `pool` nearest of all parts.

    And all that are as near as the last of these, so that it does not matter how photos are spread over parts: a short code's
    products have some hundred values.
    """
    asked = pool + pool // 8
    scanned = [part.shard.scan(queries, asked, part.nprobe, part.selector) for part in parts]
    for number in range(len(queries)):
        found = [(products[number], rows[number]) for products, rows in scanned]
        products = np.concatenate([products[rows >= 0] for products, rows in found])
        last = np.partition(products, len(products) - pool)[len(products) - pool] if len(products) > pool else -np.inf
        chosen = []
        for part, (products, rows) in zip(parts, found, strict=True):
            count = asked
            while len(rows) == count and rows[-1] >= 0 and products[-1] >= last:  # there may be more that are as near as the last
                count *= 4
                (products,), (rows,) = part.shard.scan(queries[number : number + 1], count, part.nprobe, part.selector)
            chosen.append(np.sort(rows[(rows >= 0) & (products >= last)]))
        yield chosen


def _nearest(
    products: Float32[np.ndarray, " n"], numbers: Int64[np.ndarray, " n"], ids: Any, k: int
) -> list[tuple[float, int, int]]:
    """Give the k hits with the largest products, and all that are as large as the last of these, nearest first."""
    if len(products) > k:
        nearest = np.flatnonzero(products >= np.partition(products, len(products) - k)[len(products) - k])
        products, numbers, ids = products[nearest], numbers[nearest], ids[nearest]
    order = np.lexsort((ids, numbers, -products))
    return list(zip((-products[order]).tolist(), numbers[order].tolist(), ids[order].tolist(), strict=True))


def _count(live: Bool[np.ndarray, " ids"] | None, rows: int | None) -> int:
    """Say how many photos of a shard may be found; none where that is not known."""
    if rows is None:
        return 0
    return rows if live is None else int(np.count_nonzero(live))


def _selector(marks: Bool[np.ndarray, " ids"]) -> Any:
    bits = np.packbits(marks, bitorder="little")
    return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # the wrapper takes and keeps an array


def _search_parameters(nprobe: int | None, selector: Any) -> Any:
    """Say how to search a shard: an IVF-PQ one in `nprobe` cells, or, None, a flat one."""
    parameters: Any = faiss.SearchParameters() if nprobe is None else faiss.SearchParametersIVF()
    if nprobe is not None:
        parameters.nprobe = nprobe
    if selector is not None:
        parameters.sel = selector
    return parameters


def _opened_quantizer(data: bytes, name: str) -> _Quantizer:
    """Open what `train_quantizer` wrote.

    Raises:
        DamagedError: it is something else.
    """
    chain = _deserialise_checked(data, name)
    if _kind(chain) != "IndexPreTransform" or _kind(faiss.downcast_index(chain.index)) != "IndexIVFPQ":
        raise _foreign(name, _kind(chain), "a projection in front of an empty IVF-PQ index")
    return _Quantizer(data)


def _opened_shard(data: bytes, quantizer: _Quantizer | None, name: str) -> Any:
    """Open a shard and make sure that its codes mean what the quantizer says: else it would find other photos, silently.

    Raises:
        DamagedError: it is not a shard, or one of another quantizer.
    """
    shard = _deserialise_checked(data, name)
    if quantizer is None:
        if _kind(shard) != "IndexIDMap":
            raise _foreign(name, _kind(shard), "a flat shard, as the map has no quantizer")
        return shard
    trained: Any = quantizer.empty_index
    if _kind(shard) != "IndexIVFPQ":
        raise _foreign(name, _kind(shard), "an IVF-PQ shard")
    sizes, needed = (_sizes(index) for index in (shard, trained))
    if sizes != needed:
        raise _foreign(name, f"a shard of another quantizer ({sizes})", f"one of {needed}")
    if not (
        np.array_equal(faiss.vector_to_array(shard.pq.centroids), faiss.vector_to_array(trained.pq.centroids))
        and np.array_equal(_cells(shard), _cells(trained))
    ):
        raise _foreign(name, "a shard of another quantizer, of the same size", "one of the map's quantizer")
    return shard


def _sizes(index: Any) -> str:
    metric = {faiss.METRIC_INNER_PRODUCT: "inner product", faiss.METRIC_L2: "distance"}.get(index.metric_type, "another metric")
    return f"{index.d} dimensions, {index.nlist} cells, {index.pq.M} code bytes of {index.pq.nbits} bits, by {metric}"


def _cells(index: Any) -> Float32[np.ndarray, "nlist d"]:
    coarse = faiss.downcast_index(index.quantizer)
    return coarse.reconstruct_n(0, coarse.ntotal)  # type: ignore[no-any-return]


def _kind(index: Any) -> str:
    return type(index).__name__


def _foreign(name: str, found: str, needed: str) -> DamagedError:
    return DamagedError(
        f"{name}: found {found}, needed {needed}. Nothing of it was used, and nothing was changed. Put the right file back, or "
        "see what else is damaged: folio verify"
    )


def _deserialise_checked(data: bytes, name: str) -> Any:
    try:
        return _deserialise(data)
    except RuntimeError as error:  # what the wrapper makes of any exception of FAISS
        raise _foreign(name, f"{len(data):,} bytes that FAISS cannot read ({str(error).splitlines()[0]})", "an index") from error


def _without_photos(trained: Any) -> Any:
    """Make an empty index with the cells and codes of a quantizer. It stands on the quantizer, and keeps it."""
    empty: Any = faiss.IndexIVFPQ(
        trained.quantizer, trained.d, trained.nlist, trained.pq.M, trained.pq.nbits, trained.metric_type
    )
    empty.pq, empty.by_residual, empty.is_trained = trained.pq, trained.by_residual, True
    empty.referenced_objects.append(trained)  # as the wrapper does with the cells, which are the quantizer's
    return empty


def _copy(shard: Any, ids: Bool[np.ndarray, " ids"], number: int, to: Any) -> None:
    """Copy photos of a shard into an index with the same cells and codes, the shard's number in front of their ids."""
    lists, allowed = shard.invlists, np.append(ids, False)
    for cell in range(shard.nlist):
        if not (size := lists.list_size(cell)):
            continue
        numbers = faiss.rev_swig_ptr(lists.get_ids(cell), size)
        kept = np.flatnonzero(allowed[np.minimum(numbers, len(ids))])
        if len(kept):
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * shard.code_size).reshape(size, -1)
            chosen, chosen_codes = numbers[kept] | number << SHARD_BIT, codes[kept]
            to.invlists.add_entries(cell, len(kept), faiss.swig_ptr(chosen), faiss.swig_ptr(chosen_codes))
            to.ntotal += len(kept)


def _serialise(index: Any) -> bytes:
    return faiss.serialize_index(index).tobytes()


def _deserialise(data: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))
