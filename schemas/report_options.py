"""How the pages of a results folder were asked for, so that they can be written again the same way. JSON, in `report.json`.

`folio report` keeps what it was given and `folio geotag --apply` follows it. A folder whose pages are as usual has no such file.
"""

from typing import Final

import msgspec

from schemas.errors import FormatError

REPORT_OPTIONS_FORMAT: Final = 1


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio report` takes beside the folder."""

    format_version: int = REPORT_OPTIONS_FORMAT
    photos: str | None = None
    """Where the photos are now, an absolute path or a URL; null: where the tables say."""
    review: int = 100
    """Photos that the review shows with pictures."""


def decode_report_options(data: bytes, *, where: str) -> ReportOptions:
    """Read them.

    Args:
        data: what is stored.
        where: the file, for messages.

    Raises:
        FormatError: not such a file, or one of a format this Folio does not read.
    """
    try:
        options = msgspec.json.decode(data, type=ReportOptions)
        found = f"format {options.format_version}"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        options, found = None, str(error)
    if options is None or options.format_version != REPORT_OPTIONS_FORMAT:
        raise FormatError(
            f"{where}: expected the options of a report in format {REPORT_OPTIONS_FORMAT}, found {found}. No page was written. "
            "Delete it, then say them again: folio report DIR"
        )
    return options
