"""What lies beside a photo and says where and when it was taken: XMP sidecars and JSON.

JSON is either Google Takeout's or, as in shards for WebDataset, an object with latitude and longitude; its keys tell. `listing`
finds the files by name, `sources` reads them. Names of Takeout: the photo's name, `.supplemental-metadata` (from 2024), both cut
to 46 characters, the counter of photos of one name, `.json`.
"""

import math
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from pipelines.catalog.claims import Claim
from pipelines.catalog.photo_tables import SPELLINGS, finite, read_heading, read_number, read_time
from pipelines.catalog.positions import position_problem
from pipelines.catalog.times import unix_time
from pipelines.catalog.xmp import read_xmp
from schemas.reasons import RejectReason

ENDINGS: Final = (".xmp", ".json")

MAX_BYTES: Final = 2**20
"""Of one such file. Usual are 1 to 20 kB."""

CUT: Final = 46
"""Characters that Takeout leaves of a name before the counter and `.json`."""

TAKEOUT_ENDING: Final = ".supplemental-metadata"
TAKEOUT_KEYS: Final = ("geoData", "geoDataExif", "photoTakenTime")

COUNTER: Final = re.compile(r"(.+)(\(\d+\))", re.DOTALL)
"""What Takeout adds to the names of further photos of one name."""

EDITED: Final = re.compile(r"(.+)-edited(\(\d+\))?", re.DOTALL)
"""What Google Photos adds to the name of an edited photo, which shares the JSON of the one it was made from."""


def beside(path: str, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Find the sidecars of a photo, at most one XMP and one JSON.

    Args:
        path: of the photo.
        exists: tells whether there is a file of such a path.
    """
    folder, name = posixpath.split(path)
    found = (next((each for each in names if exists(each)), None) for names in _names(folder, name))
    return tuple(each for each in found if each)


def read_sidecar(path: str, data: bytes, *, photo: str) -> Claim:
    """Read what a sidecar says. A position that cannot be, or of 0, 0, is as good as none.

    Args:
        path: of the sidecar; its ending says what it is.
        photo: its path. Photos with long names may find the JSON of one another, which then says nothing.
        data: the file, or so much of it that it is known to be too large.

    Raises:
        ValueError: it is too large or not what its ending says.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    name = posixpath.basename(path)
    if path.lower().endswith(".xmp"):
        facts = read_xmp(data)
        lat_deg, lon_deg = (None, None) if isinstance(facts.position, RejectReason) else facts.position
        return Claim(source=name, lat_deg=lat_deg, lon_deg=lon_deg, taken_at=facts.taken_at)
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(said, dict):
        return Claim(source=name)
    if not any(key in said for key in TAKEOUT_KEYS):
        return _plain(name, said)
    return _takeout(name, said) if _is_of(posixpath.basename(photo), said.get("title")) else Claim(source=name)


def _names(folder: str, name: str) -> Iterator[Iterator[str]]:
    """List what the XMP of a photo, and then what its JSON may be called, the likeliest first."""
    stem = posixpath.splitext(name)[0]
    yield (posixpath.join(folder, each) for each in (f"{name}.xmp", f"{name}.XMP", f"{stem}.xmp", f"{stem}.XMP"))
    yield (posixpath.join(folder, each) for each in _json_names(name))


def _json_names(name: str) -> Iterator[str]:
    stem, ending = posixpath.splitext(name)
    yield from _takeout_names(name, "")
    if counted := COUNTER.fullmatch(stem):
        yield from _takeout_names(f"{counted[1]}{ending}", counted[2])
    yield f"{stem}.json"
    if edited := EDITED.fullmatch(stem):
        yield from _json_names(f"{edited[1]}{edited[2] or ''}{ending}")


def _takeout_names(name: str, counter: str) -> Iterator[str]:
    """Takeout cuts at 46 characters; exports have been seen that cut earlier, but never into the photo's own name."""
    yield f"{name[:CUT]}{counter}.json"
    for length in range(len(TAKEOUT_ENDING), 0, -1):
        yield f"{name}{TAKEOUT_ENDING[:length]}{counter}.json"


def _takeout(name: str, said: dict[str, Any]) -> Claim:
    lat_deg, lon_deg, altitude_m = next(_takeout_positions(said), (None, None, None))
    taken = said.get("photoTakenTime")
    seconds = read_number(taken.get("timestamp")) if isinstance(taken, dict) else None
    return Claim(
        source=name,
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        altitude_m=altitude_m,
        taken_at=unix_time(seconds) if seconds is not None else None,
    )


def _is_of(photo: str, title: Any) -> bool:
    """Whether a title, uncut, may be of a photo: Takeout exchanges some characters of it for `_`."""
    if len(photo) <= CUT or not isinstance(title, str):
        return True
    stem = posixpath.splitext(photo)[0]
    counted = COUNTER.fullmatch(stem)
    stem = counted[1] if counted else stem
    return len(stem) <= len(title) and all(ours in (theirs, "_") for ours, theirs in zip(stem, title, strict=False))


def _takeout_positions(said: dict[str, Any]) -> Iterator[tuple[float, float, float | None]]:
    """What the user set in Google Photos, or else the camera. Zeros stand for nothing known, in the altitude too."""
    for key in ("geoData", "geoDataExif"):
        place = said.get(key)
        if not isinstance(place, dict):
            continue
        lat_deg, lon_deg = (_known(place.get(each)) for each in ("latitude", "longitude"))
        if position_problem(lat_deg, lon_deg) is None:
            yield lat_deg, lon_deg, finite(_known(place.get("altitude"))) or None


def _plain(name: str, said: dict[str, Any]) -> Claim:
    values = {str(key).strip().lower(): value for key, value in said.items()}
    given = {ours: _first(values, (ours, *groups[0])) for ours, groups in SPELLINGS.items()}  # not x and y, which may be pixels
    lat_deg, lon_deg = _known(given["lat_deg"]), _known(given["lon_deg"])
    usable = position_problem(lat_deg, lon_deg) is None
    sequence = given["sequence_id"]
    return Claim(
        source=name,
        lat_deg=lat_deg if usable else None,
        lon_deg=lon_deg if usable else None,
        altitude_m=finite(read_number(given["altitude_m"])),
        heading_deg=read_heading(read_number(given["heading_deg"])),
        taken_at=read_time(given["taken_at"]),
        sequence_id=str(sequence) if isinstance(sequence, str | int) and sequence != "" else None,
    )


def _first(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _known(value: Any) -> float:
    found = read_number(value)
    return math.nan if found is None else found
