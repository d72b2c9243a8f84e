"""The photos of a large map in memory: by shard, with short codes that are scanned in registers, and few of them as halves.

Scanning is most of what a search costs: a nanosecond for every stored byte of every photo, 130 ms for a million. So each byte,
which stands for one of 256 points, is also given the nearest of 16 points in half a byte. FAISS scans those 12 times as fast
(fast-scan; André, Kermarrec and Le Scouarnec, "Quicker ADC", 2018), and what it puts in front is ranked by the stored codes.
Nothing of this is stored, and it changes no format.

Few photos are searched again and again where it is known where a photo was taken. None of them shall be lost to a first pass, and
the stored codes of 10,000 take 0.7 ms to look up. So they are decoded once, to halves, which are multiplied in half the time; how
far these are from what was decoded says which photos can be among the nearest at all, and the stored codes rank those.

Letters: n photos, M code bytes, d projected dimensions, q queries.
"""

import ctypes
from collections.abc import Mapping
from typing import Any, Final

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt32

SHORT_CODES: Final = 16
"""Points that half a byte can name."""

ITERATIONS: Final = 20
"""Of the k-means that finds them."""

ROWS_AT_ONCE: Final = 8_192
"""Photos whose short codes are looked up at a time."""

DECODED_AT_ONCE: Final = 512
"""Photos decoded at a time: so few that memory stays in use and in the cache. 8,192 take twice as long."""


class ShortCodes:
    """How the stored codes of a quantizer are shortened.

    Args:
        trained: the quantizer's empty `IndexIVFPQ`: 8-bit codes of residuals, by inner product.
    """

    def __init__(self, trained: Any) -> None:
        self.trained = trained
        points = faiss.vector_to_array(trained.pq.centroids).reshape(trained.pq.M, trained.pq.ksub, trained.pq.dsub)
        self._points, nearest = _shortened(points)
        even = np.concatenate([nearest, np.zeros((trained.pq.M % 2, 256), np.uint8)])
        # Two bytes are looked up at once, and give the byte that FAISS expects: the first in its lower half.
        self._pairs = (even[0::2, None, :] | even[1::2, :, None] << 4).reshape(-1)

    def empty(self) -> Any:
        """Make an index of short codes, in the quantizer's cells, without photos."""
        of = self.trained
        index = faiss.IndexIVFPQ(of.quantizer, of.d, of.nlist, of.pq.M, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(self._points.ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def in_registers(self, index: Any) -> Any:
        """Make an index of short codes into one that FAISS scans in registers."""
        fast: Any = faiss.IndexIVFPQFastScan(index)
        fast.referenced_objects = [self.trained]  # whose cells it uses; not what it was made of, which would stay in memory
        return fast

    def of(self, codes: UInt8[np.ndarray, "n M"]) -> UInt8[np.ndarray, "n halved"]:
        """Shorten stored codes."""
        if codes.shape[1] % 2:
            codes = np.pad(codes, ((0, 0), (0, 1)))
        short = np.empty((len(codes), codes.shape[1] // 2), np.uint8)
        firsts = np.arange(short.shape[1], dtype=np.int32) << 16
        for start in range(0, len(codes), ROWS_AT_ONCE):
            pairs = np.ascontiguousarray(codes[start : start + ROWS_AT_ONCE]).view("<u2")
            np.take(self._pairs, pairs + firsts, out=short[start : start + ROWS_AT_ONCE], mode="clip")
        return short


class PackedShard:
    """The photos of a shard that may be found, with stored and short codes, by cell. For any number of threads.

    Args:
        shard: an `IndexIVFPQ` of the quantizer; let go of afterwards.
        live: which ids may be found; None: all.
        short: of the quantizer.
    """

    def __init__(self, shard: Any, live: Bool[np.ndarray, " ids"] | None, short: ShortCodes) -> None:
        lists, code_bytes, scanned = shard.invlists, shard.code_size, short.empty()
        ids, codes = np.empty(shard.ntotal, np.uint32), np.empty((shard.ntotal, code_bytes), np.uint8)
        starts = [0]
        for cell in range(shard.nlist):
            start = end = starts[-1]
            if size := lists.list_size(cell):
                here = faiss.rev_swig_ptr(lists.get_ids(cell), size)
                kept = np.arange(size) if live is None else np.flatnonzero(_marked(live, here))
                end = start + len(kept)
                ids[start:end] = here[kept]
                stored = faiss.rev_swig_ptr(lists.get_codes(cell), size * code_bytes).reshape(size, code_bytes)
                np.take(stored, kept, axis=0, out=codes[start:end], mode="clip")
                rows, shortened = np.arange(start, end), short.of(codes[start:end])
                scanned.invlists.add_entries(cell, end - start, faiss.swig_ptr(rows), faiss.swig_ptr(shortened))
            starts.append(end)
        scanned.ntotal = starts[-1]
        self.ids: UInt32[np.ndarray, " n"] = ids if starts[-1] == len(ids) else ids[: starts[-1]].copy()
        """Of each row."""
        self._codes = codes if starts[-1] == len(codes) else codes[: starts[-1]].copy()
        self._starts = np.array(starts)
        self._short = short
        self._scanned = short.in_registers(scanned)

    def __len__(self) -> int:
        return len(self.ids)

    def scan(
        self, queries: Float32[np.ndarray, "q d"], count: int, nprobe: int, allowed: Any
    ) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Find the rows whose short codes are nearest.

        Args:
            queries: projected; so few that FAISS compares each with the cells by itself.
            count: k.
            nprobe: cells to look at.
            allowed: FAISS's selector of rows; None: all.

        Returns:
            Inner products, largest first, in steps that depend on the query alone, and rows; -1 where there are fewer.
        """
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = nprobe
        if allowed is not None:
            parameters.sel = allowed
        return self._scanned.search(queries, max(1, min(count, len(self))), params=parameters)  # type: ignore[no-any-return]

    def products(
        self, query: Float32[np.ndarray, " d"], rows: Int64[np.ndarray, " n"], of_cells: Float32[np.ndarray, " cells"]
    ) -> Float32[np.ndarray, " n"]:
        """Give the inner products of a query with stored codes.

        Args:
            query: projected.
            rows: ascending.
            of_cells: its inner products with the cells.
        """
        return _products(self._short.trained, query, self._codes[rows]) + of_cells[self._cells(rows)]  # type: ignore[no-any-return]

    def allowed(self, only: Bool[np.ndarray, " ids"]) -> Bool[np.ndarray, " n"]:
        """Mark the rows of some ids."""
        return _marked(only, self.ids)  # type: ignore[no-any-return]

    def taken(self, rows: Int64[np.ndarray, " n"]) -> tuple[UInt8[np.ndarray, "n M"], Int64[np.ndarray, " n"]]:
        """Copy the stored codes of some rows, ascending; give the cells that they are in."""
        return self._codes[rows], self._cells(rows)

    def _cells(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.repeat(np.arange(len(self._starts) - 1), np.diff(np.searchsorted(rows, self._starts)))


class GatheredPhotos:
    """Few photos of some shards, so near each other in memory that all of them are compared. For any number of threads.

    Takes, beside the code, two bytes for each number of a projection: 1.2 kB a photo of 512.

    Args:
        rows: of each shard, by its number: those that may be found, ascending.
        shards: by their numbers.
        short: of the quantizer.
        cells: of the quantizer.
    """

    def __init__(
        self,
        rows: Mapping[int, Int64[np.ndarray, " n"]],
        shards: Mapping[int, PackedShard],
        short: ShortCodes,
        cells: Float32[np.ndarray, "nlist d"],
    ) -> None:
        taken = [shards[number].taken(those) for number, those in rows.items()]
        self._trained = short.trained
        self._codes = np.concatenate([np.empty((0, self._trained.pq.M), np.uint8), *(codes for codes, _ in taken)])
        self._cell_of = np.concatenate([np.empty(0, np.int64), *(cell_of for _, cell_of in taken)])
        self.numbers = np.repeat(np.array(list(rows), np.int64), [len(those) for those in rows.values()])
        """Of the shard of each photo."""
        self.ids = np.concatenate([np.empty(0, np.uint32), *(shards[number].ids[those] for number, those in rows.items())])
        kind = faiss.ScalarQuantizer.QT_fp16
        self._halves: Any = faiss.IndexScalarQuantizer(self._trained.d, kind, faiss.METRIC_INNER_PRODUCT)
        self._error = self._add(cells)

    def __len__(self) -> int:
        return len(self.ids)

    def nearest(
        self, query: Float32[np.ndarray, " d"], k: int, of_cells: Float32[np.ndarray, " cells"]
    ) -> tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Find the k photos whose stored codes are nearest, and all that may be as near; a few that are not may be among them.

        Args:
            query: projected.
            k: at least one.
            of_cells: its inner products with the cells.

        Returns:
            Inner products with stored codes, as `PackedShard.products` gives them, to the bit; and places among these photos.
        """
        error, asked = float(np.linalg.norm(query)) * self._error, k + k // 8 + 16
        places: Int64[np.ndarray, " n"] = np.arange(len(self))
        while asked < len(self):
            (products,), (found,) = self._halves.search(query[None], asked)
            # k photos have at least the k-th product less an error, so one that is two errors below it is not among the nearest.
            if products[-1] < products[k - 1] - 2 * error:
                places = found[: np.searchsorted(-products, 2 * error - products[k - 1], side="right")]
                break
            asked *= 4
        return _products(self._trained, query, self._codes[places]) + of_cells[self._cell_of[places]], places

    def _add(self, cells: Float32[np.ndarray, "nlist d"]) -> float:
        """Decode all photos to halves.

        Returns:
            By how much the product of a half and of a stored code with a query of length 1 can differ, at most.
        """
        of, farthest, longest = self._halves.sq, 0.0, 0.0
        halves = np.empty((len(self), of.code_size), np.uint8)
        for start in range(0, len(self), DECODED_AT_ONCE):
            several = slice(start, start + DECODED_AT_ONCE)
            coded, cell = self._trained.pq.decode(self._codes[several]), cells[self._cell_of[several]]
            decoded = coded + cell
            halves[several] = of.compute_codes(decoded)
            farthest = max(farthest, float(np.linalg.norm(decoded - of.decode(halves[several]), axis=1).max()))
            longest = max(longest, float((np.linalg.norm(coded, axis=1) + np.linalg.norm(cell, axis=1)).max()))
        faiss.copy_array_to_vector(halves.ravel(), self._halves.codes)  # at once: FAISS makes room for twice as many
        self._halves.ntotal = len(self)
        # Both are sums of as many float32 as there are dimensions, at most, and each of these may be rounded.
        return farthest + 2 * int(self._trained.d) * float(np.finfo(np.float32).eps) * longest


def give_back_memory() -> None:
    """Return to the system what was let go of, where its C library can: thousands of lists leave a shard's size in holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _products(trained: Any, query: Float32[np.ndarray, " d"], codes: UInt8[np.ndarray, "n M"]) -> Float32[np.ndarray, " n"]:
    """Give the inner products of a query with what codes stand for, less their cells: the same bits wherever a code stands."""
    count = len(codes)
    values, places = np.empty(count, np.float32), np.empty(count, np.int64)
    heap: Any = faiss.float_minheap_array_t()
    heap.nh, heap.k, heap.val, heap.ids = 1, count, faiss.swig_ptr(values), faiss.swig_ptr(places)
    heap.heapify()
    trained.pq.search_ip(faiss.swig_ptr(query), 1, faiss.swig_ptr(codes), count, heap, False)
    products = np.empty(count, np.float32)
    products[places] = values
    return products


def _marked(marks: Bool[np.ndarray, " ids"], numbers: Any) -> Any:
    """Look up marks; what is beyond their end is not marked."""
    return np.append(marks, False)[np.minimum(numbers, len(marks))]


def _shortened(
    points: Float32[np.ndarray, "M 256 e"],
) -> tuple[Float32[np.ndarray, "M 16 e"], UInt8[np.ndarray, "M 256"]]:
    """Find 16 points for each byte's 256, and which of them is nearest to each."""
    short = np.empty((len(points), SHORT_CODES, points.shape[2]), np.float32)
    nearest = np.empty(points.shape[:2], np.uint8)
    padded = np.zeros((points.shape[1], max(8, points.shape[2])), np.float32)  # as `ivfpq.PADDED_DIM`
    for byte, of_byte in enumerate(points):
        padded[:, : points.shape[2]] = of_byte
        means = faiss.Kmeans(padded.shape[1], SHORT_CODES, niter=ITERATIONS, seed=1, min_points_per_centroid=1)
        means.train(padded)
        short[byte] = np.asarray(means.centroids)[:, : points.shape[2]]
        nearest[byte] = ((of_byte[:, None] - short[byte]) ** 2).sum(axis=2).argmin(axis=1)
    return short, nearest
