"""What a results folder keeps of answers: a run that is stopped goes on where it was, and a second one does new photos only.

While a run goes on each chunk of answers is an object below `parts/`, written whole or not at all. Once the tables are written
these are removed, and the tables themselves are what the next run starts from. An answer is used again only for the same photo
(its `photo_key`) on the same basis (`answering.basis_of`). One whose candidates lacked local features is not: the map may be
repaired.

The results say in their file facts which queries they are of (`queries`, a digest of `queries.parquet`). As two tables cannot be
replaced at once, those queries are laid down in `parts/` before: at every moment there are queries that belong to the results.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Storage
from infra.tables import read_table, read_table_facts, write_table
from pipelines.query.answering import Answers, Chunk
from schemas.errors import DamagedError, FormatError, ObjectMissing

PARTS: Final = "parts"
NEW_QUERIES: Final = f"{PARTS}/queries.parquet"


class KeptAnswers:
    """Answers in a results folder. An `AnsweredBefore`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.notes: list[str] = []
        """What a user should know of answers that were found and cannot be used."""

    def find(self, basis: Mapping[str, Any], photo_keys: Mapping[str, str]) -> Iterator[Chunk]:
        """Give what was answered of these photos on this basis, each photo once.

        Args:
            basis: as `answering.basis_of` gives it.
            photo_keys: of the photos, by image id.
        """
        wanted, others = dict(photo_keys), []
        for chunk in self._chunks():
            if chunk.basis != basis:
                others.append(chunk.basis)
                continue
            usable = chunk.photo_keys.items() & wanted.items() - {
                (name, chunk.photo_keys[name]) for name in chunk.without_features
            }
            if usable:
                names = pa.array([name for name, _ in usable])
                yield Chunk(
                    photo_keys=dict(sorted(usable)),
                    results=chunk.results.filter(pc.is_in(chunk.results["query_id"], names)),
                    basis=basis,
                )
                for name, _ in usable:
                    del wanted[name]
        if others and len(wanted) == len(photo_keys):
            self.notes.append(_why_anew(others[-1], basis, self._storage.url))

    def keep(self, chunk: Chunk) -> None:
        """Keep a chunk until `finish`."""
        if chunk.photo_keys:
            facts = {
                "basis": chunk.basis,
                "photo_keys": chunk.photo_keys,
                "without_features": chunk.without_features,
            }
            path = f"{PARTS}/{_digest(facts)}.parquet"
            write_table(self._storage, path, chunk.results, kind="results", facts=facts)

    def prepare(self, answers: Answers) -> None:
        """Lay down which queries the results that are about to be written are of."""
        write_table(self._storage, NEW_QUERIES, answers.queries, kind="images")

    def finish(self) -> None:
        """Remove what is kept beside the tables, and what writers that were killed have left."""
        for info in list(self._storage.list(PARTS)):
            self._storage.delete(info.path)
        for info in list(self._storage.leftovers()):
            if "/" not in info.path.removeprefix(f"{PARTS}/"):
                self._storage.delete(info.path)

    def _chunks(self) -> Iterator[Chunk]:
        for path in ["results.parquet", *(info.path for info in self._storage.list(PARTS) if info.path != NEW_QUERIES)]:
            try:
                results, facts = read_table_facts(self._storage, path, kind="results")
                photo_keys = facts["photo_keys"] if "photo_keys" in facts else self._queries_of(facts)
            except ObjectMissing:
                continue
            except (DamagedError, FormatError) as error:
                self.notes.append(f"answers of an earlier run are not used again: {error}")
                continue
            if facts.get("basis") and photo_keys is not None:
                yield Chunk(
                    photo_keys=photo_keys,
                    results=results.replace_schema_metadata(None),
                    basis=facts["basis"],
                    without_features=tuple(facts["without_features"]),
                )

    def _queries_of(self, facts: Mapping[str, Any]) -> dict[str, str] | None:
        """Find the queries that results are of; None: they are not here."""
        for path in (NEW_QUERIES, "queries.parquet"):
            try:
                queries = read_table(self._storage, path, kind="images", columns=["image_id", "photo_key"])
            except ObjectMissing:
                continue
            if digest_of(queries) == facts.get("queries"):
                return photo_keys_of(queries)
        return None


def facts_of_results(answers: Answers) -> dict[str, Any]:
    """Give the file facts of finished results."""
    return {
        **answers.facts,
        "basis": answers.basis,
        "queries": digest_of(answers.queries),
        "without_features": answers.without_features,
    }


def digest_of(queries: pa.Table) -> str:
    """Name the state of some queries."""
    return _digest(photo_keys_of(queries))


def photo_keys_of(queries: pa.Table) -> dict[str, str]:
    """Give photo keys by image id."""
    return dict(zip(queries["image_id"].to_pylist(), queries["photo_key"].to_pylist(), strict=True))


def _digest(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:32]


def _why_anew(earlier: Mapping[str, Any], basis: Mapping[str, Any], url: str) -> str:
    was, now = earlier["map_version"], basis["map_version"]
    if was != now:
        return (
            f"{url}: holds answers from version {was} of the map, and this is version {now}: all are made anew. "
            f"--version {was} would keep them"
        )
    words = {
        "manifest": "another map, or photos taken down since",
        "prior": "another part of the map",
        "reranking": "another way to re-rank",
        "folio": "another version of Folio",
    }
    others = [word for name, word in words.items() if earlier.get(name) != basis[name]]
    return f"{url}: holds answers that rest on {' and '.join(others)}: all are made anew"
