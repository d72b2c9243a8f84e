"""Decisions: what a person said of single geotags. JSON; the review page saves it and `folio geotag --apply` takes it.

A results folder keeps those that were applied as `decisions.json`. The file has no seal, so that it can be written by hand.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from schemas.errors import FormatError

DECISIONS_FORMAT: Final = 1


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said of one photo."""

    query_id: str
    """Of the geotag; the same in every run over the same names."""
    uri: str
    """Its name, for people: the id decides."""
    decision: Literal["accept", "correct", "refuse", "undo"]
    """The position found is right | this one is | none is | take the earlier decision back."""
    lat_deg: float | None = None
    """Accepted: what the person saw; null: what is found now. Corrected: where it was taken. Likewise `lon_deg`."""
    lon_deg: float | None = None
    note: str = ""


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """All of a file."""

    format_version: int = DECISIONS_FORMAT
    map_version: int | None = None
    """Of the answers that the person saw; null: not said."""
    decisions: list[Decision] = []


class _Unread(msgspec.Struct):
    format_version: int
    map_version: int | None = None
    decisions: list[Any] = []


def decode_decisions(data: bytes, *, where: str) -> tuple[Decisions, list[str]]:
    """Read decisions; an entry that is none costs itself and not the others.

    Args:
        data: what is stored.
        where: the file, for messages.

    Returns:
        The good ones, and a line on each bad one.

    Raises:
        FormatError: not a file of decisions, or one of a format this Folio does not read.
    """
    try:
        unread = msgspec.json.decode(data, type=_Unread)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{where}: expected decisions, found {error}. Nothing was changed. Give the file that the review page saved."
        ) from error
    if unread.format_version != DECISIONS_FORMAT:
        raise FormatError(
            f"{where}: decisions format {unread.format_version} was found, but this Folio reads format {DECISIONS_FORMAT}. "
            "Nothing was changed. Install a newer Folio: pip install -U folio-vpr"
        )
    read = list(_read(unread.decisions))
    good = [entry for entry in read if isinstance(entry, Decision)]
    return Decisions(map_version=unread.map_version, decisions=good), [line for line in read if isinstance(line, str)]


def _read(entries: list[Any]) -> Iterator[Decision | str]:
    for number, entry in enumerate(entries, start=1):
        try:
            yield msgspec.convert(entry, Decision)
        except msgspec.ValidationError as error:
            name = entry.get("uri", "without a name") if isinstance(entry, dict) else "not an object"
            yield f"entry {number} ({name}): {error}"
