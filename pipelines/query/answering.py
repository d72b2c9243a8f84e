"""manifest + photos ▶ results: answer every photo of a catalog and keep what was found as tables.

Photos are fetched, decoded and resized ahead (`catalog.loading`), encoded as many at a time as there are threads, and looked for
a chunk at a time (`QueryWorker.answer_all`). Each answer is the one that the photo would get alone.

What is in memory beside the results does not grow with the catalog: the photos that are loaded ahead, and of a chunk the local
features of its candidates, at most `CHUNK_BYTES` and at least those of one photo.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import EncodedPhoto
from infra.observability import progress_bar
from infra.settings import Settings
from pipelines.build.membership import live_rows
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.loading import photo_loader
from pipelines.catalog.rows import reject_row
from pipelines.catalog.sources import Catalog
from pipelines.query.counting import Counting
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import Answer, QueryWorker
from schemas.calibration import Calibration
from schemas.coverage import COVERAGE
from schemas.errors import PhotoError
from schemas.rejects import REJECTS
from schemas.results import RESULTS

COVERAGE_POINTS = 20_000
"""Photos of the map that are kept for drawing, at most."""

CHUNK_PHOTOS: Final = 64
"""Photos that are looked for together, at most. More of them find more of what they compare in one place; a run that is killed
loses so many."""

CHUNK_S: Final = 30.0
"""After this a chunk has enough photos, however few: what a killed run loses with a slow network."""

CHUNK_BYTES: Final = 256 * 1024 * 1024
"""Local features of the candidates of a chunk, all of them different and as many as can be."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Answers to some photos, all from one version of the map."""

    photo_keys: Mapping[str, str]
    """Of the photos, by image id."""
    results: pa.Table
    """In the schema of results; a photo without candidates has no row."""
    basis: Mapping[str, Any]
    """What the answers rest on beside the photos, as plain JSON values: where it is the same, so are they."""
    without_features: tuple[str, ...] = ()
    """Photos of which some candidate kept its global place; see `Answer.without_features`."""


class AnsweredBefore(Protocol):
    """Keeps answers, so that a run that is stopped goes on where it was."""

    def find(self, basis: Mapping[str, Any], photo_keys: Mapping[str, str]) -> Iterator[Chunk]:
        """Give what was answered of these photos on this basis, each photo once."""

    def keep(self, chunk: Chunk) -> None:
        """Keep a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a search found, as the tables that are stored."""

    queries: pa.Table
    """Photos that could be used, in the schema of images."""
    results: pa.Table
    rejects: pa.Table
    coverage: pa.Table
    versions: list[int]
    """That answers came from: more than one when the map had to be followed to a newer version meanwhile."""
    facts: dict[str, Any]
    """Of the results: map version, model, trained, grid_side, mode."""
    calibration: Calibration | None = None
    """Of the newest of these versions; None: the map is not calibrated."""
    without_features: tuple[str, ...] = ()
    """Queries of which some candidate kept its global place, since its local features were missing, damaged or of no use."""
    basis: Mapping[str, Any] | None = None
    """What all of it rests on, see `basis_of`; None: not all on the same."""
    answered_before: int = 0
    """Queries whose answers were kept by an earlier run."""
    answered_now: int = 0
    """Queries that were looked for."""
    duplicates: Mapping[str, str] = field(default_factory=dict)
    """Queries that were not looked for, with the query of the same bytes whose results they have."""


def answer_catalog(
    worker: QueryWorker,
    catalog: Catalog,
    settings: Settings,
    limits: PhotoLimits,
    *,
    description: str,
    before: AnsweredBefore | None = None,
    duplicates: Mapping[str, str] | None = None,
) -> Answers:
    """Answer each photo of a catalog; photos that cannot be used land in the rejects.

    Args:
        worker: of the map.
        catalog: the photos.
        settings: of this process; `threads` are used.
        limits: what one photo may cost.
        description: of the progress bar.
        before: what earlier runs answered, and where to keep what this one does; None: nothing is kept.
        duplicates: photos with the same bytes as another one, and that one, by image id: they share an answer. None: nobody does.
    """
    images, duplicates = catalog.images, duplicates or {}
    row_of = {name: row for row, name in enumerate(images["image_id"].to_pylist())}
    chunks: list[Chunk] = []
    unusable: dict[int, PhotoError] = {}
    with progress_bar(len(images), unit="photo", description=description) as bar:
        counting = Counting(catalog, bar)

        def answer(names: Iterable[str]) -> None:
            for chunk, errors in _chunks(worker, images, [row_of[name] for name in names], settings, limits, counting):
                if before:
                    before.keep(chunk)
                chunks.append(chunk)
                unusable.update(errors)
                counting.chunk([row_of[name] for name in chunk.photo_keys], errors)

        if before:
            chunks += before.find(basis_of(worker.map, worker), dict(zip(row_of, images["photo_key"].to_pylist(), strict=True)))
        done = {name for chunk in chunks for name in chunk.photo_keys}
        counting.known(len(done))
        copies = {name: first for name, first in duplicates.items() if name not in done}
        answer(name for name in row_of if name not in done and name not in copies)
        alone = [name for name, first in copies.items() if row_of[first] in unusable]  # that file may have changed, this one not
        answer(alone)
        counting.copies(len(copies) - len(alone))
    duplicates = {name: first for name, first in duplicates.items() if row_of[first] not in unusable}
    return _gathered(worker, catalog, chunks, unusable, duplicates, answered_before=len(done))


def _gathered(
    worker: QueryWorker,
    catalog: Catalog,
    chunks: Sequence[Chunk],
    unusable: Mapping[int, PhotoError],
    duplicates: Mapping[str, str],
    *,
    answered_before: int,
) -> Answers:
    """Make the tables of all that was found, in the order of the catalog."""
    images = catalog.images
    answered = [chunk for chunk in chunks if chunk.photo_keys]
    rejects = [reject_row(images, row, "query", unusable[row]) for row in sorted(unusable)]
    lacking = {name for chunk in chunks for name in chunk.without_features}
    lacking |= {name for name, first in duplicates.items() if first in lacking}
    return Answers(
        queries=images.filter(pa.array([row not in unusable for row in range(len(images))], pa.bool_())),
        results=_in_order([chunk.results for chunk in chunks], images["image_id"].to_pylist(), duplicates),
        rejects=pa.concat_tables([catalog.rejects, pa.Table.from_pylist(rejects, REJECTS)]),
        coverage=_coverage(worker),
        versions=sorted({int(chunk.basis["map_version"]) for chunk in answered}),
        calibration=worker.calibration,
        without_features=tuple(sorted(lacking)),
        facts=facts_of(worker),
        basis=_only([chunk.basis for chunk in answered]),
        answered_before=answered_before,
        answered_now=sum(len(chunk.photo_keys) for chunk in answered) - answered_before,
        duplicates=duplicates,
    )


def facts_of(worker: QueryWorker) -> dict[str, Any]:
    """Say which map and network answers come from: the file facts of results and geotags."""
    manifest = worker.map.manifest
    return {
        "map_version": manifest.version,
        "model": manifest.model.recipe,
        "trained": manifest.model.trained,
        "grid_side": worker.encoder.grid_side,
        "mode": manifest.model.settings["mode"],
        "calibration": manifest.calibration,
    }


def basis_of(opened: OpenedMap, worker: QueryWorker) -> dict[str, Any]:
    """Say what answers from a version of a map rest on, as plain JSON values.

    That is the version with its network, its calibration and the photos taken down; what was known of where photos were taken;
    how candidates are put in order; and the Folio that does it.
    """
    basis = {
        "map_version": opened.manifest.version,
        "manifest": hashlib.sha256(msgspec.json.encode(opened.manifest)).hexdigest(),
        "prior": worker.prior,
        "reranking": worker.config,
        "folio": version("folio-vpr"),
    }
    return msgspec.json.decode(msgspec.json.encode(basis))  # type: ignore[no-any-return]


def _only(bases: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Give what all answers rest on; None where that is not one thing."""
    return bases[0] if bases and all(basis == bases[0] for basis in bases) else None


def _chunks(
    worker: QueryWorker, images: pa.Table, rows: Sequence[int], settings: Settings, limits: PhotoLimits, counting: Counting
) -> Iterator[tuple[Chunk, dict[int, PhotoError]]]:
    """Answer some rows of a catalog, a chunk at a time, beside those that cannot be used."""
    size = max(1, min(CHUNK_PHOTOS, CHUNK_BYTES // worker.pool_bytes))
    for several in _several(_encoded(worker, images, rows, settings, limits, counting), size, CHUNK_S):
        errors = {row: one for row, one in several if isinstance(one, PhotoError)}
        encoded = [(row, one) for row, one in several if not isinstance(one, PhotoError)]
        with counting.clock.stage("search"):
            answers = worker.answer_all([one for _, one in encoded], threads=settings.threads) if encoded else []
        names = [images["image_id"][row].as_py() for row, _ in encoded]
        found = [row for name, answer in zip(names, answers, strict=True) for row in _rows(name, answer)]
        chunk = Chunk(
            photo_keys={name: images["photo_key"][row].as_py() for name, (row, _) in zip(names, encoded, strict=True)},
            results=pa.Table.from_pylist(found, RESULTS),
            basis=basis_of(answers[0].map if answers else worker.map, worker),
            without_features=tuple(name for name, answer in zip(names, answers, strict=True) if answer.without_features),
        )
        yield chunk, errors


def _encoded(
    worker: QueryWorker, images: pa.Table, rows: Sequence[int], settings: Settings, limits: PhotoLimits, counting: Counting
) -> Iterator[tuple[int, EncodedPhoto | PhotoError]]:
    """Encode some rows of a catalog, as many at a time as the network likes, and at least one for each thread.

    On a CPU that changes no bit. On a GPU the last bits may depend on which photos go together, as in a build.
    """
    together = max(worker.encoder.batch_size, settings.threads)
    with closing(photo_loader(worker.encoder, settings, limits)) as loader:
        loaded = zip(rows, loader.load(images.take(pa.array(rows, pa.int64())), counting.waiting), strict=True)
        for several in _several(loaded, together):
            prepared = [one.photo for _, one in several if not isinstance(one.photo, PhotoError)]
            with counting.clock.stage("network"):
                encoded = iter(worker.encoder.encode_prepared(prepared))
            for row, one in several:
                yield row, one.photo if isinstance(one.photo, PhotoError) else next(encoded)


def _several(items: Iterable[T], count: int, within_s: float = math.inf) -> Iterator[list[T]]:
    """Take so many at a time, or fewer where they take long to come."""
    several: list[T] = []
    start = time.monotonic()
    for item in items:
        several.append(item)
        if len(several) == count or time.monotonic() - start > within_s:
            yield several
            several, start = [], time.monotonic()
    if several:
        yield several


def _in_order(results: Sequence[pa.Table], names: Sequence[str], duplicates: Mapping[str, str]) -> pa.Table:
    """Put results into the order of the catalog, and give photos with the same bytes as another one what that one has.

    Args:
        results: the rows of a query follow each other.
        names: of the queries, in the order that is wanted.
        duplicates: names of queries without results of their own, and whose they get.
    """
    table = pa.concat_tables([RESULTS.empty_table(), *results])
    query_ids = pc.dictionary_encode(table["query_id"].combine_chunks())
    codes = query_ids.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    found = query_ids.dictionary.take(pa.array(codes[starts], pa.int32())).to_pylist()
    rows = dict(zip(found, pairwise([*starts.tolist(), len(table)]), strict=True))
    taken = [np.arange(*rows.get(duplicates.get(name, name), (0, 0))) for name in names]
    owners = np.repeat(np.arange(len(names)), [len(each) for each in taken])
    ordered = table.take(pa.array(np.concatenate([np.empty(0, np.int64), *taken])))
    return ordered.set_column(0, RESULTS.field("query_id"), pa.array(names, pa.string()).take(pa.array(owners)))


def _rows(query_id: str, answer: Answer) -> Iterator[dict[str, object]]:
    for rank, candidate in enumerate(answer.candidates, start=1):
        yield {
            "query_id": query_id,
            "rank": rank,
            **candidate.photo.image,
            "global_rank": candidate.global_rank,
            "cosine": candidate.cosine,
            "matches": candidate.matches,
            "local_score": candidate.local_score,
            "score": candidate.score,
            "matched_patches": answer.matched_patches.ravel().tolist() if rank == 1 else None,
        }


def _coverage(worker: QueryWorker) -> pa.Table:
    return worker.read(_thinned).select(COVERAGE.names).cast(COVERAGE)


def _thinned(opened: OpenedMap) -> pa.Table:
    photos = sum(int(live_rows(entry).sum()) for entry in opened.manifest.segments)
    return opened.positions(step=max(1, photos // COVERAGE_POINTS))
