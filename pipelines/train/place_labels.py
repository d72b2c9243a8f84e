"""The column of a user's table that says which place each photo shows. The rest of the table is for `pipelines.catalog`."""

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import Settings
from pipelines.catalog import photo_tables
from pipelines.catalog.reading import Storages

SPELLINGS: Final = ("place_id", "place", "label")
"""Names of the column; the first that is there counts."""

URI: Final = ("uri", *(name for group in photo_tables.SPELLINGS["uri"] for name in group))


def read_place_labels(source: str, settings: Settings) -> dict[str, str]:
    """Give the place of each photo by its name, as the table writes it; nothing for a source that is no such table.

    The table has been read by the catalog before, which refuses what cannot be read.
    """
    if not source.lower().endswith(photo_tables.ENDINGS):
        return {}
    folder, slash, name = source.rpartition("/")
    table = _read(Storages(settings).at(folder or slash or ".").get(name), name)
    places = _first_of(SPELLINGS, table.column_names)
    uris = _first_of(URI, table.column_names)
    if places is None or uris is None:
        return {}
    pairs = zip(table[uris].to_pylist(), table[places].to_pylist(), strict=True)
    return {str(uri): str(place) for uri, place in pairs if uri is not None and place not in (None, "")}


def _read(data: bytes, name: str) -> pa.Table:
    if PurePosixPath(name.lower()).suffix != ".csv":
        return pq.read_table(pa.BufferReader(data))
    text = data.decode("utf-8-sig").lstrip()
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    return pa.table({title: [row[at] for row in rows] for at, title in enumerate(header)})


def _first_of(names: Sequence[str], titles: Sequence[str]) -> str | None:
    by_name = {title.strip().lower(): title for title in titles}
    return next((by_name[name] for name in names if name in by_name), None)
