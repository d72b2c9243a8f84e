"""The format number of each noun, and the check that this version of Folio can read one.

A number rises when old readers would misread new files. A reader takes every number from 1 up to its own. Format numbers
are not the version of the program: most releases change none of them.
"""

from typing import Final

from schemas.errors import FormatError

FORMATS: Final[dict[str, int]] = {
    "images": 1,
    "rejects": 1,
    "descriptors": 1,
    "descriptor_codes": 1,
    "local_features": 2,
    "receipt": 2,
    "quantizer": 2,
    "shard": 2,
    "manifest": 2,
    "tag": 1,
    "lease": 1,
    "retired": 1,
    "tombstones": 1,
    "plan": 2,
    "progress": 1,
    "index_receipt": 1,
    "results": 1,
    "geotags": 3,
    "metrics": 1,
    "coverage": 1,
}
"""The format that this version writes, by kind."""


def require_readable(kind: str, version: int, *, where: str) -> None:
    """Refuse a format that this version of Folio does not know.

    Args:
        kind: one of `FORMATS`.
        version: the format number found in the file.
        where: the file, for the message.

    Raises:
        FormatError: the number is not from 1 to the one this version writes.
    """
    newest = FORMATS[kind]
    if not 1 <= version <= newest:
        raise FormatError(
            f"{where}: {kind} format {version} was found, but this Folio reads formats 1 to {newest}. "
            "Nothing was changed. Install a newer Folio: pip install -U folio-vpr"
        )
