"""IVF-PQ with FAISS: derive parameters, train, make shards, search. The only file that imports faiss.

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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64

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
    """Photos the quantizer is trained on, at most. The sample is held as float32: 2.2 GB at 8,448 dimensions."""

    pca_photos: int = 4_096
    """Photos the PCA is fitted to, at most. The cost is cubic in this number: about 20 s at 4,096 on one core."""

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
    the square root of the photos, so that scanning one cell and choosing among the cells cost about the same.
    """
    if photos < config.flat_below:
        return None
    asked, most = SUBVECTOR_DIM * (config.code_bytes or CODE_BYTES), min(descriptor_dim, max(64, photos // 8))
    pca_dim = asked if asked <= most else 2 ** int(np.log2(most))
    nlist = 2 ** round(np.log2(np.sqrt(photos)))
    return IvfPqParameters(
        pca_dim=pca_dim,
        nlist=nlist,
        code_bytes=max(1, pca_dim // SUBVECTOR_DIM),
        nprobe=min(nlist, max(LEAST_PROBED, nlist // 4)),
    )


def train_quantizer(sample: Float32[np.ndarray, "n D"], parameters: IvfPqParameters, config: IndexConfig) -> bytes:
    """Train PCA, cells and codes on a sample of descriptors.

    Returns:
        A FAISS file: `IndexPreTransform(PCA, empty IndexIVFPQ)`. The same sample in the same order gives the same bytes.
    """
    projection = _fit_pca(sample[: config.pca_photos], parameters.pca_dim)
    coarse = faiss.IndexFlatIP(parameters.pca_dim)
    index = faiss.IndexIVFPQ(coarse, parameters.pca_dim, parameters.nlist, parameters.code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter = config.seed, 10
    index.cp.min_points_per_centroid = 1  # small maps train on few points; the refine makes up for it
    projected = _evened(projection.apply(sample))
    index.train_q1(len(projected), faiss.swig_ptr(projected), False, faiss.METRIC_INNER_PRODUCT)  # type: ignore[attr-defined]
    _, cells = coarse.search(projected, 1)
    codes = _learn_codes(projected - coarse.reconstruct_n(0, parameters.nlist)[cells[:, 0]], parameters.code_bytes, config.seed)
    faiss.copy_array_to_vector(codes.ravel(), index.pq.centroids)
    index.is_trained = True
    return _serialise(faiss.IndexPreTransform(projection, index))


def quantization_error(quantizer: bytes, descriptors: Float32[np.ndarray, "n D"]) -> float:
    """Measure what photos lose by being coded: the mean of 1 - cosine between a descriptor and what its code stands for.

    Photos unlike those the quantizer was trained on lose more: its PCA drops what tells them apart, its cells lie elsewhere.

    Args:
        quantizer: what `train_quantizer` returned.
        descriptors: L2-normalised, at least one.
    """
    trained = _Quantizer(quantizer)
    index = trained.empty_index
    restored = trained.restore(index.sa_decode(index.sa_encode(trained.to_be_coded(descriptors))))
    cosine = (descriptors * restored).sum(axis=1) / (np.linalg.norm(descriptors, axis=1) * np.linalg.norm(restored, axis=1))
    return float(1 - cosine.mean())


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
    """The opened shards of one map version. Safe to search from several threads.

    Args:
        quantizer: the quantizer's file; None for a flat map.
        nprobe: cells to look at in each shard; ignored by flat maps.
        shards: the shards' files, already checked against their sha256: FAISS trusts what it reads.
        live: for each shard which ids may be found, or None: all. Ids beyond the end may not. Photos that were taken down stay
            in the shard until a rebuild, and are passed over while it is searched, so that k others are still found.
    """

    def __init__(
        self,
        quantizer: bytes | None,
        nprobe: int,
        shards: Sequence[bytes],
        live: Sequence[Bool[np.ndarray, " ids"] | None] | None = None,
    ) -> None:
        self._quantizer = _Quantizer(quantizer) if quantizer is not None else None
        self._shards = [_deserialise(shard) for shard in shards]
        self._live = list(live) if live is not None else [None] * len(shards)
        self._parameters = [_search_parameters(nprobe if quantizer is not None else None, only) for only in self._live]

    def search(
        self,
        queries: Float32[np.ndarray, "q D"],
        k: int,
        only: Mapping[int, Bool[np.ndarray, " ids"]] | None = None,
    ) -> list[list[tuple[float, int, int]]]:
        """Find the nearest photos of each query over all shards.

        Args:
            queries: descriptors.
            k: how many.
            only: by shard, which ids may be found; other shards are left alone. Then every cell is looked at, so that what is
                found is what a search of everything would find among them.

        Returns:
            For each query (distance, shard number, id), nearest first, at most k from each shard. Distances only say who is
            nearer: minus the inner product with the compressed codes; squared distances in flat maps, exact, and in format 1.
        """
        projected = self._quantizer.project(queries) if self._quantizer else queries
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(len(queries))]
        for number, (shard, parameters) in enumerate(zip(self._shards, self._parameters, strict=True)):
            if only is not None:
                if number not in only:
                    continue
                parameters = self._restricted(number, only[number])
            distances, ids = shard.search(projected, min(k, shard.ntotal), params=parameters)
            if shard.metric_type == faiss.METRIC_INNER_PRODUCT:
                distances = -distances
            for hits, row_distances, row_ids in zip(found, distances.tolist(), ids.tolist(), strict=True):
                hits.extend((d, number, i) for d, i in zip(row_distances, row_ids, strict=True) if i >= 0)
        for hits in found:
            hits.sort()
        return found

    def _restricted(self, number: int, only: Bool[np.ndarray, " ids"]) -> Any:
        live = self._live[number]
        if live is not None:
            both = min(len(live), len(only))
            only = live[:both] & only[:both]
        return _search_parameters(self._shards[number].nlist if self._quantizer else None, only)


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

    def to_be_coded(self, descriptors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n d"]:
        """Project photos as they are coded."""
        projected = self.project(descriptors)
        return _evened(projected) if self.empty_index.metric_type == faiss.METRIC_INNER_PRODUCT else projected

    def restore(self, projected: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n D"]:
        """Go back to the space of descriptors; what the PCA dropped is lost."""
        linear: Any = faiss.downcast_VectorTransform(self._projection)
        rows = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
        offset = faiss.vector_to_array(linear.b) if linear.have_bias else 0  # format 1 has one
        return (projected - offset) @ rows  # type: ignore[no-any-return]


def _fit_pca(sample: Float32[np.ndarray, "n D"], dim: int) -> Any:
    """Fit a PCA through the Gram matrix of the sample, which is far smaller than D x D.

    NumPy's divide-and-conquer `eigh` takes a tenth of the time of FAISS's own `PCAMatrix` here, which also stores every
    eigenvector it finds. The axes are those of the sample about its mean, the last is given to what they miss of the mean, which
    all photos share; nothing is taken away, so that inner products stay what they are.
    """
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = sample - mean
    eigenvalues, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))  # ascending
    rows = (vectors[:, ::-1][:, :dim].T.astype(np.float32)) @ centred
    rows /= np.sqrt(np.maximum(eigenvalues[::-1][:dim], 1e-12))[:, None].astype(np.float32)
    missed = mean - rows[:-1].T @ (rows[:-1] @ mean)
    if (length := float(np.linalg.norm(missed))) > 1e-6:
        rows[-1] = missed / length
    projection = faiss.LinearTransform(sample.shape[1], dim, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rows).ravel(), projection.A)
    projection.is_trained = True
    return projection


def _learn_codes(residuals: Float32[np.ndarray, "n d"], code_bytes: int, seed: int) -> Float32[np.ndarray, "bytes 256 e"]:
    """Find the 256 codes of each byte by k-means, as FAISS does in training an index, but in time."""
    residuals = residuals[: 256 * CODE_POINTS]
    dim = residuals.shape[1] // code_bytes
    parts = np.zeros((code_bytes, len(residuals), max(PADDED_DIM, dim)), np.float32)
    parts[:, :, :dim] = residuals.reshape(len(residuals), code_bytes, dim).transpose(1, 0, 2)
    codes = np.empty((code_bytes, 256, dim), np.float32)
    for byte, part in enumerate(parts):
        means = faiss.Kmeans(part.shape[1], 256, niter=10, seed=seed, min_points_per_centroid=1)
        means.train(part)
        codes[byte] = np.asarray(means.centroids)[:, :dim]
    return codes


def _evened(projected: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Make projections nearly equally long."""
    lengths = np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
    return projected * lengths ** np.float32(LENGTH_POWER - 1)  # type: ignore[no-any-return]


def _search_parameters(nprobe: int | None, live: Bool[np.ndarray, " ids"] | None) -> Any:
    """Say how to search a shard: an IVF-PQ one in `nprobe` cells, or, None, a flat one."""
    parameters: Any = faiss.SearchParameters() if nprobe is None else faiss.SearchParametersIVF()
    if nprobe is not None:
        parameters.nprobe = nprobe
    if live is not None:
        bits = np.packbits(live, bitorder="little")
        parameters.sel = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # the wrapper takes and keeps an array
    return parameters


def _serialise(index: Any) -> bytes:
    return faiss.serialize_index(index).tobytes()


def _deserialise(data: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))
