"""The photos of a large map in memory: by shard, with codes that are scanned by halves in registers, and few photos as float16.

Scanning is most of what a search costs: a nanosecond for each stored byte of each photo, 130 ms for a million. A byte stands for
one of 256 points. In memory these are named anew, in groups of sixteen that are near each other, so that the upper half of a byte
names its group. FAISS scans upper halves 12 times as fast (fast-scan; André, Kermarrec and Le Scouarnec, "Quicker ADC", 2018),
and what they put in front is ranked by whole bytes. Lower halves stand beside them, so that nothing is in memory twice. Nothing
of this is stored, and it changes no format.

Few photos are searched again and again where it is known where a photo was taken. None of them shall be lost to a first pass, and
the codes of 10,000 take 0.7 ms to look up. So they are decoded once, to float16, which is multiplied in half the time; how far it
is from what was decoded says which photos can be among the nearest at all, and their codes rank those.

Letters: n photos, M code bytes, h pairs of them (M / 2, rounded up), d projected dimensions, e of them a byte, q queries.
"""

import ctypes
from collections.abc import Mapping
from typing import Any, Final

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt32
from numpy.lib.stride_tricks import as_strided
from scipy.optimize import linear_sum_assignment

GROUPS: Final = 16
"""Of a byte's 256 points: as many as half a byte can name."""

ITERATIONS: Final = 20
"""Of the k-means that finds where groups may be."""

ROUNDS: Final = 2
"""Of sharing points out to groups of one size. Six find the same photos."""

BLOCK: Final = 32
"""Photos that FAISS scans together, their upper halves side by side."""

DECODED_AT_ONCE: Final = 512
"""Photos decoded at a time: so few that memory stays in use and in the cache. 8,192 take twice as long."""


class ShortCodes:
    """How the bytes of a quantizer are named anew, and what their upper halves stand for.

    Args:
        trained: the quantizer's empty `IndexIVFPQ`: 8-bit codes of residuals, by inner product.
    """

    def __init__(self, trained: Any) -> None:
        self.trained = trained
        points = faiss.vector_to_array(trained.pq.centroids).reshape(trained.pq.M, trained.pq.ksub, trained.pq.dsub)
        self._middles, stored = _grouped(points)
        self._names = (np.argsort(stored, axis=1).astype(np.uint8)).ravel()
        self.pq: Any = faiss.ProductQuantizer(trained.d, trained.pq.M, 8)
        """What the new names stand for: the points that the stored bytes do."""
        faiss.copy_array_to_vector(np.take_along_axis(points, stored[:, :, None], axis=1).ravel(), self.pq.centroids)

    def empty(self) -> Any:
        """Make an index of upper halves, in the quantizer's cells, without photos."""
        of = self.trained
        index = faiss.IndexIVFPQ(of.quantizer, of.d, of.nlist, of.pq.M, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(self._middles.ravel(), index.pq.centroids)
        index.is_trained = True
        return index

    def in_registers(self, index: Any) -> Any:
        """Make an index of upper halves into one that FAISS scans in registers."""
        fast: Any = faiss.IndexIVFPQFastScan(index, BLOCK)
        fast.referenced_objects = [self.trained]  # whose cells it uses; not what it was made of, which would stay in memory
        return fast

    def of(self, codes: UInt8[np.ndarray, "n M"]) -> tuple[UInt8[np.ndarray, "n h"], UInt8[np.ndarray, "n h"]]:
        """Name stored codes anew; give their upper halves, two neighbours a byte, as FAISS expects them, and their lower ones.

        Of the latter, those of the first half of the bytes below those of the second, so that they are soon put back.
        """
        named = np.take(self._names, codes + (np.arange(codes.shape[1], dtype=np.int32) << 8), mode="clip")
        if codes.shape[1] % 2:
            named = np.pad(named, ((0, 0), (0, 1)))
        half = named.shape[1] // 2
        return named[:, 0::2] >> 4 | named[:, 1::2] & 0xF0, named[:, :half] & 0x0F | named[:, half:] << 4


class PackedShard:
    """The photos of a shard that may be found, by cell. For any number of threads.

    Args:
        shard: an `IndexIVFPQ` of the quantizer; let go of afterwards.
        live: which ids may be found; None: all.
        short: of the quantizer.
    """

    def __init__(self, shard: Any, live: Bool[np.ndarray, " ids"] | None, short: ShortCodes) -> None:
        lists, code_bytes, scanned = shard.invlists, shard.code_size, short.empty()
        ids, lower = np.empty(shard.ntotal, np.uint32), np.empty((shard.ntotal, (code_bytes + 1) // 2), np.uint8)
        starts = [0]
        for cell in range(shard.nlist):
            start = end = starts[-1]
            if size := lists.list_size(cell):
                here = faiss.rev_swig_ptr(lists.get_ids(cell), size)
                kept = np.arange(size) if live is None else np.flatnonzero(_marked(live, here))
                end = start + len(kept)
                ids[start:end] = here[kept]
                stored = faiss.rev_swig_ptr(lists.get_codes(cell), size * code_bytes).reshape(size, code_bytes)
                upper, lower[start:end] = short.of(stored[kept])
                rows, upper = np.arange(start, end), np.ascontiguousarray(upper)
                scanned.invlists.add_entries(cell, end - start, faiss.swig_ptr(rows), faiss.swig_ptr(upper))
            starts.append(end)
        scanned.ntotal = starts[-1]
        self.ids: UInt32[np.ndarray, " n"] = ids if starts[-1] == len(ids) else ids[: starts[-1]].copy()
        """Of each row."""
        self._lower = lower if starts[-1] == len(lower) else lower[: starts[-1]].copy()
        self._starts = np.array(starts)
        self._short = short
        self._scanned = short.in_registers(scanned)
        self._upper = UpperHalves(self._scanned)

    def __len__(self) -> int:
        return len(self.ids)

    def scan(
        self, queries: Float32[np.ndarray, "q d"], count: int, nprobe: int, allowed: Any
    ) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Find the rows whose groups are nearest.

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
        """Give the inner products of a query with what the codes of some rows stand for.

        Args:
            query: projected.
            rows: ascending.
            of_cells: its inner products with the cells.
        """
        codes, cells = self.taken(rows)
        return _products(self._short.pq, query, codes) + of_cells[cells]  # type: ignore[no-any-return]

    def allowed(self, only: Bool[np.ndarray, " ids"]) -> Bool[np.ndarray, " n"]:
        """Mark the rows of some ids."""
        return _marked(only, self.ids)  # type: ignore[no-any-return]

    def taken(self, rows: Int64[np.ndarray, " n"]) -> tuple[UInt8[np.ndarray, "n M"], Int64[np.ndarray, " n"]]:
        """Put the codes of some rows, ascending, together, as `ShortCodes` names them; give the cells that they are in."""
        cells = np.repeat(np.arange(len(self._starts) - 1), np.diff(np.searchsorted(rows, self._starts)))
        codes = self._upper.of(cells, rows - self._starts[cells])
        lower, half = self._lower[rows], self._lower.shape[1]
        codes[:, :half] |= lower & 0x0F
        codes[:, half:] |= (lower >> 4)[:, : codes.shape[1] - half]
        return codes, cells


class UpperHalves:
    """The upper halves of codes where FAISS keeps them. Read only as long as the index lives, which nothing is added to.

    FAISS puts 32 photos of a cell together, and of these 16 bytes for each byte of their codes: the first 16 photos are in lower
    halves, in the order 0, 8, 1, 9 and so on, the others in upper halves. See `pq4_pack_codes` in its `pq4_fast_scan.cpp`.

    Args:
        index: an `IndexIVFPQFastScan`.
    """

    def __init__(self, index: Any) -> None:
        lists, even = index.invlists, index.pq.M + index.pq.M % 2
        blocks = np.array([-(-lists.list_size(cell) // BLOCK) for cell in range(index.nlist)])
        used = np.flatnonzero(blocks)
        addresses = np.zeros(index.nlist, np.int64)
        addresses[used] = [int(lists.get_codes(cell)) for cell in used.tolist()]
        self._block_bytes, self._code_bytes = even * BLOCK // 2, index.pq.M
        self._firsts = addresses - addresses[used].min(initial=np.iinfo(np.int64).max)
        """Of each cell, counted from the first in memory."""
        self._memory = np.empty((0, index.pq.M), np.uint8)
        """For each byte from the first cell to the last, not all of which are of this index: it, and those 16, 32, ... behind."""
        if len(used):
            size = int((self._firsts + blocks * self._block_bytes)[used].max())
            memory = faiss.rev_swig_ptr(lists.get_codes(int(used[np.argmin(addresses[used])])), size)
            self._memory = as_strided(memory, (size - 16 * (index.pq.M - 1), index.pq.M), (1, 16), writeable=False)

    def of(self, cells: Int64[np.ndarray, " n"], places: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n M"]:
        """Give the codes of photos, lower halves 0, by their cells and their places in these."""
        place = places % BLOCK
        firsts = self._firsts[cells] + places // BLOCK * self._block_bytes + 2 * (place % 8) + place // 8 % 2
        codes = self._memory[firsts]
        codes <<= np.where(place < BLOCK // 2, np.uint8(4), np.uint8(0))[:, None]
        codes &= 0xF0
        return codes  # type: ignore[no-any-return]


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
        self._pq = short.pq
        self._codes = np.concatenate([np.empty((0, self._pq.M), np.uint8), *(codes for codes, _ in taken)])
        self._cell_of = np.concatenate([np.empty(0, np.int64), *(cell_of for _, cell_of in taken)])
        self.numbers = np.repeat(np.array(list(rows), np.int64), [len(those) for those in rows.values()])
        """Of the shard of each photo."""
        self.ids = np.concatenate([np.empty(0, np.uint32), *(shards[number].ids[those] for number, those in rows.items())])
        kind = faiss.ScalarQuantizer.QT_fp16
        self._halves: Any = faiss.IndexScalarQuantizer(self._pq.d, kind, faiss.METRIC_INNER_PRODUCT)
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
        return _products(self._pq, query, self._codes[places]) + of_cells[self._cell_of[places]], places

    def _add(self, cells: Float32[np.ndarray, "nlist d"]) -> float:
        """Decode all photos to halves.

        Returns:
            By how much the product of a half and of a stored code with a query of length 1 can differ, at most.
        """
        of, farthest, longest = self._halves.sq, 0.0, 0.0
        halves = np.empty((len(self), of.code_size), np.uint8)
        for start in range(0, len(self), DECODED_AT_ONCE):
            several = slice(start, start + DECODED_AT_ONCE)
            coded, cell = self._pq.decode(self._codes[several]), cells[self._cell_of[several]]
            decoded = coded + cell
            halves[several] = of.compute_codes(decoded)
            farthest = max(farthest, float(np.linalg.norm(decoded - of.decode(halves[several]), axis=1).max()))
            longest = max(longest, float((np.linalg.norm(coded, axis=1) + np.linalg.norm(cell, axis=1)).max()))
        faiss.copy_array_to_vector(halves.ravel(), self._halves.codes)  # at once: FAISS makes room for twice as many
        self._halves.ntotal = len(self)
        # Both are sums of as many float32 as there are dimensions, at most, and each of these may be rounded.
        return farthest + 2 * int(self._pq.d) * float(np.finfo(np.float32).eps) * longest


def give_back_memory() -> None:
    """Return to the system what was let go of, where its C library can: thousands of lists leave a shard's size in holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _products(pq: Any, query: Float32[np.ndarray, " d"], codes: UInt8[np.ndarray, "n M"]) -> Float32[np.ndarray, " n"]:
    """Give the inner products of a query with what codes stand for, less their cells: the same bits wherever a code stands."""
    count = len(codes)
    values, places = np.empty(count, np.float32), np.empty(count, np.int64)
    heap: Any = faiss.float_minheap_array_t()
    heap.nh, heap.k, heap.val, heap.ids = 1, count, faiss.swig_ptr(values), faiss.swig_ptr(places)
    heap.heapify()
    pq.search_ip(faiss.swig_ptr(query), 1, faiss.swig_ptr(codes), count, heap, False)
    products = np.empty(count, np.float32)
    products[places] = values
    return products


def _marked(marks: Bool[np.ndarray, " ids"], numbers: Any) -> Any:
    """Look up marks; what is beyond their end is not marked."""
    return np.append(marks, False)[np.minimum(numbers, len(marks))]


def _grouped(points: Float32[np.ndarray, "M 256 e"]) -> tuple[Float32[np.ndarray, "M 16 e"], UInt8[np.ndarray, "M 256"]]:
    """Put the points of each byte into groups of sixteen that are near each other.

    K-means says where groups may be; points are shared out to them with the least sum of squared distances, which move to the
    middle of theirs, and once more. They tell as much of a photo as groups of any size: see `pipelines/README.md`.

    Returns:
        The middles of groups, and the points, one group after the other.
    """
    count, size = points.shape[1], points.shape[1] // GROUPS
    middles = np.empty((len(points), GROUPS, points.shape[2]), np.float32)
    ordered = np.empty(points.shape[:2], np.uint8)
    padded = np.zeros((count, max(8, points.shape[2])), np.float32)  # as `ivfpq.PADDED_DIM`
    for byte, of_byte in enumerate(points):
        padded[:, : points.shape[2]] = of_byte
        means = faiss.Kmeans(padded.shape[1], GROUPS, niter=ITERATIONS, seed=1, min_points_per_centroid=1)
        means.train(padded)
        middle = np.asarray(means.centroids)[:, : points.shape[2]]
        for _ in range(ROUNDS):
            distances = ((of_byte[:, None] - middle) ** 2).sum(axis=2)
            _, places = linear_sum_assignment(distances.repeat(size, axis=1))  # each group has so many places
            ordered[byte] = np.argsort(places)
            middle = of_byte[ordered[byte]].reshape(GROUPS, size, -1).mean(axis=1)
        middles[byte] = middle
    return middles, ordered
