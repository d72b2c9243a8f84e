"""Traps of FAISS that would lose photos, find photos that were taken down, or find the wrong ones without a word."""

import ast
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipelines import ivfpq
from pipelines.ivfpq import IndexConfig, IvfPqParameters, ShardSearcher, make_shard, quantization_error, train_quantizer
from schemas.errors import DamagedError

PROJECT = Path(__file__).parents[2]
SOURCES = [
    path for package in ("schemas", "fol_model", "infra", "pipelines") for path in sorted((PROJECT / package).rglob("*.py"))
]
DIM = 64
PHOTOS = 600
CONFIG = IndexConfig(seed=3)
PARAMETERS = IvfPqParameters(pca_dim=32, nlist=8, code_bytes=4, nprobe=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    ivfpq.use_threads(1)


def unit_vectors(count: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def serialised(index: faiss.Index) -> bytes:
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


def format_1() -> tuple[bytes, bytes]:
    """A quantizer that searches by distance, as Folio once trained them, and a shard of photos 0 to 599."""
    descriptors = unit_vectors(PHOTOS, 0)
    projection = faiss.PCAMatrix(DIM, 32)
    projection.train(descriptors)
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(32), 32, 8, 4, 8)
    index.do_polysemous_training = False
    index.train(projection.apply(descriptors))
    quantizer = serialised(faiss.IndexPreTransform(projection, index))
    return quantizer, make_shard(quantizer, DIM, [(descriptors, np.arange(PHOTOS))])


@pytest.fixture(scope="module")
def kinds() -> dict[str, tuple[bytes | None, bytes]]:
    """Quantizer and shard of every class of index that a map may hold."""
    descriptors, ids = unit_vectors(PHOTOS, 0), np.arange(PHOTOS)
    quantizer = train_quantizer(descriptors, PARAMETERS, CONFIG)
    return {
        "IVF-PQ by inner product": (quantizer, make_shard(quantizer, DIM, [(descriptors, ids)])),
        "IVF-PQ by distance": format_1(),
        "flat": (None, make_shard(None, DIM, [(descriptors, ids)])),
    }


KINDS = ["IVF-PQ by inner product", "IVF-PQ by distance", "flat"]


# ----------------------------------------------------------------------------------------------- photos taken down


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("way", ["live", "only", "made ready"])
def test_no_index_finds_a_photo_that_it_may_not(kinds: dict[str, tuple[bytes | None, bytes]], kind: str, share: float, way: str):
    """faiss#5584: one class passes over the selector without a word. Asked for everything, and for the photos left out."""
    quantizer, shard = kinds[kind]
    allowed = np.random.default_rng(int(100 * share)).random(PHOTOS) < share
    queries = unit_vectors(PHOTOS, 0)[~allowed][:20]
    searcher = ShardSearcher(quantizer, PARAMETERS.nlist, [shard], [allowed] if way == "live" else None)
    only = {"live": None, "only": {0: allowed}, "made ready": searcher.among({0: allowed})}[way]

    everything = ShardSearcher(quantizer, PARAMETERS.nlist, [shard]).search(queries, PHOTOS)
    found = searcher.search(queries, PHOTOS, only)

    assert found == [[hit for hit in hits if allowed[hit[2]]] for hits in everything]
    assert {len(hits) for hits in found} == {np.count_nonzero(allowed)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_that_was_taken_down_stays_away_where_it_is_asked_for(kinds: dict[str, tuple[bytes | None, bytes]], kind: str):
    """A prior that names it, whether its photos are copied out of the shard or not."""
    quantizer, shard = kinds[kind]
    live = np.arange(PHOTOS) != 17
    for others in (3, 400):
        wanted = np.isin(np.arange(PHOTOS), [17, *range(20, 20 + others)])

        (hits,) = ShardSearcher(quantizer, 8, [shard], [live]).search(unit_vectors(PHOTOS, 0)[[17]], PHOTOS, {0: wanted})

        assert sorted(number for _, _, number in hits) == list(range(20, 20 + others))


def test_nothing_is_removed_from_an_index_and_no_class_is_used_that_passes_over_selectors():
    """`remove_ids` aborts the process on some indexes; `IndexShardsIVF` ignores what may not be found; a factory string with PQ
    in it trains polysemous codes, at five times the cost."""
    used = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "faiss"
    }

    assert "IndexIVFPQ" in used
    assert used & {"IndexShards", "IndexShardsIVF", "IndexReplicas", "index_factory"} == set()
    assert not any("remove_ids" in path.read_text() for path in SOURCES)


def test_codes_are_not_polysemous(kinds: dict[str, tuple[bytes | None, bytes]]):
    quantizer = kinds["IVF-PQ by inner product"][0]
    assert quantizer is not None
    chain = faiss.deserialize_index(np.frombuffer(quantizer, np.uint8))
    index = faiss.downcast_index(chain.index)

    assert not index.do_polysemous_training
    assert index.polysemous_ht == 0


# -------------------------------------------------------------------------------------------------- files that do not fit


FOREIGN = [
    *("no bytes", "half", "all but one byte", "text", "another class", "flat"),
    *("dimension", "cells", "code bytes", "metric", "seed", "empty"),
]


@cache
def foreign_shards() -> dict[str, tuple[bytes, str]]:
    """Files in place of a shard of the map, and what is said of them."""
    descriptors, ids = unit_vectors(PHOTOS, 0), np.arange(PHOTOS)

    def by(seed: int = 3, **sizes: int) -> bytes:
        parameters = IvfPqParameters(**{**PARAMETERS.to_json(), **sizes})
        return make_shard(train_quantizer(descriptors, parameters, IndexConfig(seed=seed)), DIM, [(descriptors, ids)])

    whole = by()
    hnsw = faiss.IndexHNSWFlat(32, 8)
    return {
        "no bytes": (b"", "0 bytes that FAISS cannot read"),
        "half": (whole[: len(whole) // 2], "bytes that FAISS cannot read"),
        "all but one byte": (whole[:-1], "bytes that FAISS cannot read"),
        "text": (b"PAR1 and so on, not an index at all", "bytes that FAISS cannot read"),
        "another class": (serialised(hnsw), "IndexHNSWFlat, needed an IVF-PQ shard"),
        "flat": (make_shard(None, DIM, [(descriptors, ids)]), "IndexIDMap, needed an IVF-PQ shard"),
        "dimension": (by(pca_dim=16), r"another quantizer \(16 dimensions.*needed one of 32 dimensions"),
        "cells": (by(nlist=16), r"another quantizer \(32 dimensions, 16 cells.*needed one of 32 dimensions, 8 cells"),
        "code bytes": (by(code_bytes=8), r"8 code bytes.*needed one of.*4 code bytes"),
        "metric": (format_1()[1], r"by distance.*needed one of.*by inner product"),
        "seed": (by(seed=4), "a shard of another quantizer, of the same size"),
        "empty": (make_shard(train_quantizer(descriptors, PARAMETERS, CONFIG), DIM, []), "0 photos, needed 600"),
    }


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_is_no_shard_of_the_map_is_named_and_nothing_is_searched_in_it(
    kinds: dict[str, tuple[bytes | None, bytes]], what: str
):
    """With its sha256 in the manifest, as a publisher gone wrong would write it: a checksum says nothing against it."""
    quantizer, good = kinds["IVF-PQ by inner product"]
    assert list(foreign_shards()) == FOREIGN
    file, says = foreign_shards()[what]
    names = ["quantizer.faiss", "shard-00000.faiss", "shard-00001.faiss"]
    searcher = ShardSearcher(quantizer, 8, [good, file], names=names, rows=[PHOTOS, PHOTOS])

    with pytest.raises(DamagedError, match=rf"^shard-00001\.faiss: found .*{says}.*Nothing of it was used.*folio verify"):
        searcher.open()
    with pytest.raises(DamagedError, match="shard-00001"):
        searcher.search(unit_vectors(1, 0), 5)


@pytest.mark.parametrize("what", ["no bytes", "half", "another class", "a shard"])
def test_a_file_that_is_no_quantizer_is_named(kinds: dict[str, tuple[bytes | None, bytes]], what: str):
    quantizer, shard = kinds["IVF-PQ by inner product"]
    assert quantizer is not None
    file = {"no bytes": b"", "half": quantizer[: len(quantizer) // 2], "another class": serialised(faiss.IndexFlatL2(4))}

    with pytest.raises(DamagedError, match=r"^lund/quantizer\.faiss: found "):
        ShardSearcher(file.get(what, shard), 8, [shard], names=["lund/quantizer.faiss", "shard"])


def test_a_coded_shard_of_a_map_without_quantizer_is_refused(kinds: dict[str, tuple[bytes | None, bytes]]):
    with pytest.raises(DamagedError, match="found IndexIVFPQ, needed a flat shard"):
        ShardSearcher(None, 1, [kinds["IVF-PQ by inner product"][1]]).open()


@pytest.mark.parametrize("flat", [False, True])
def test_a_shard_in_which_nothing_is_finds_nothing(kinds: dict[str, tuple[bytes | None, bytes]], flat: bool):
    quantizer = None if flat else kinds["IVF-PQ by inner product"][0]
    searcher = ShardSearcher(quantizer, 8, [make_shard(quantizer, DIM, [])])

    assert searcher.search(unit_vectors(2, 0), 5) == [[], []]
    assert searcher.search(unit_vectors(2, 0), 5, {0: np.ones(10, bool)}) == [[], []]


# ------------------------------------------------------------------------------------------- photos that are all alike


def test_photos_that_are_all_the_same_are_trained_on_and_found():
    """A camera that was covered: one descriptor, 600 times."""
    one = np.repeat(unit_vectors(1, 0), PHOTOS, axis=0)

    quantizer = train_quantizer(one, PARAMETERS, CONFIG)
    (hits,) = ShardSearcher(quantizer, 8, [make_shard(quantizer, DIM, [(one, np.arange(PHOTOS))])]).search(one[:1], PHOTOS)

    assert np.isfinite(quantization_error(quantizer, one[:3]))
    assert [number for _, _, number in hits] == list(range(PHOTOS))
    assert len({distance for distance, _, _ in hits}) == 1


def test_thousands_of_duplicates_are_equally_near_in_every_shard_and_hide_nobody():
    """3,000 copies of one photo among 600 others, in shards cut differently: each is found at one and the same distance."""
    others, copies = unit_vectors(PHOTOS, 0), np.repeat(unit_vectors(1, 9), 3000, axis=0)
    everyone = np.concatenate([others, copies])[np.random.default_rng(1).permutation(3600)]
    quantizer = train_quantizer(everyone, PARAMETERS, CONFIG)

    def found(parts: int) -> list[tuple[float, int]]:
        ids = np.array_split(np.arange(3600), parts)
        shards = [make_shard(quantizer, DIM, [(everyone[part], part)]) for part in ids]
        (hits,) = ShardSearcher(quantizer, 8, shards).search(copies[:1], 3600)
        return sorted((distance, number) for distance, _, number in hits)

    whole = found(1)
    assert whole == found(7)
    assert len(whole) == 3600
    same = np.flatnonzero((everyone == copies[0]).all(axis=1)).tolist()
    assert len({distance for distance, number in whole if number in set(same)}) == 1
