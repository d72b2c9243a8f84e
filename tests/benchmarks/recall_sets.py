"""The photo sets that recall is measured on: which photos are the map, which are asked for, and which answers are right.

Real photos lie in the project's shared folder beside the checkout; the sample city and the night-like queries are made here,
once, below `out/bench`. A query without any right answer in its database stays: no method can find it, and leaving it out would
flatter them all.

| set | database | queries | an answer is right when |
|---|---|---|---|
| street-lund | manifest's split | every 5th photo of a walk | within 25 m |
| mapillary | 4 of 5 frames of all five drives | every 5th frame of all drives | same drive, one frame away |
| mapillary-held-back | the same | every 5th frame of the two drives that training does not see | same |
| mapillary-held-back-night | the same | those, made night-like (`night`) | same |
| ie-tower | gallery | query | same floor and same area of it |
| sample-city | the survey's photos | photos of later visits; 8 of 120 are of a street that is not in the database | within 25 m |

Of ie_tower's `dataset.csv`, `label` is the floor alone (25 of them) and `area` a part of it, such as its stairs; both must agree.
Its queries are frames of the very clips that the gallery is taken from, and floors look alike.
"""

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from fol_model.recall import recall_at
from pipelines.catalog.sample_city import photos
from pipelines.catalog.sample_city.photos import PlannedPhoto, plan_sample_city, write_photos
from pipelines.locate.position import distances_m

PROJECT: Final = Path(__file__).parents[2]
DATA: Final = PROJECT.parent / "shared" / "data"
WORK: Final = PROJECT / "out" / "bench"

HELD_BACK_DRIVES: Final = ("16U02a2VZI6P3Wz2z8QPZA", "B7pIuT15loCnfjz59DcNTQ")
"""55 and 62 frames: for measuring only."""
TRAINING_DRIVES: Final = ("kDUGtZ3Nv6IkkmABg6hC8w", "ywLysPFu3TL85zOMOYJkw", "zp_ni0km3m9vjI1jSSQuYA")
"""39, 183 and 59 frames: training and visual words may use them."""

MADE_UP: Final = ("mapillary-held-back-night", "sample-city")
"""Sets with photos that no camera took."""

RADIUS_M: Final = 25.0
KS: Final = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSet:
    """Photos to search, photos to search for, and the truth."""

    name: str
    database: list[Path]
    queries: list[Path]
    positives: Bool[np.ndarray, "queries database"]
    """Which database photos are right answers. A row may have none."""


class MissingPhotosError(Exception):
    """The photos of a set are not on this machine."""


def set_names() -> list[str]:
    """List the sets, in the order they are reported."""
    return list(_SETS)


def load_set(name: str, *, data: Path = DATA, work: Path = WORK) -> RecallSet:
    """Look up a set; the sample city and night-like queries are made when they are asked for first.

    Args:
        name: one of `set_names()`.
        data: the shared folder's photos.
        work: where photos that are made here are kept.

    Raises:
        ValueError: no such set.
        MissingPhotosError: its photos are not there.
    """
    if name not in _SETS:
        raise ValueError(f"no set {name}: choose from {', '.join(_SETS)}")
    found = _SETS[name](data, work)
    missing = [path for path in (*found.database, *found.queries) if not path.is_file()]
    if missing:
        raise MissingPhotosError(f"{name}: {len(missing)} photos are not there, the first is {missing[0]}")
    return found


def hits_of(
    database: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"], positives: Bool[np.ndarray, "q n"]
) -> Bool[np.ndarray, "q n"]:
    """Rank the database for each query by cosine, ties in database order, and say which ranks hold right answers.

    Args:
        database: descriptors of unit length, one a row.
        queries: the same of the queries.
        positives: the truth.
    """
    order = np.argsort(-(queries @ database.T), axis=1, kind="stable")
    return np.take_along_axis(positives, order, axis=1)


def recalls(
    database: Float32[np.ndarray, "n D"], queries: Float32[np.ndarray, "q D"], positives: Bool[np.ndarray, "q n"]
) -> Float64[np.ndarray, " 3"]:
    """Compute recall at 1, 5 and 10 of descriptors of unit length; see `hits_of`."""
    return recall_at(hits_of(database, queries, positives), KS)


# --------------------------------------------------------------------------------------------------------- the sets


def training_drive_photos(data: Path = DATA) -> list[Path]:
    """List the frames of the drives that visual words may be learnt from."""
    return [data / "street" / row["file"] for row in _street_rows(data, "training drives") if _drive(row) in TRAINING_DRIVES]


def walk_photos(data: Path = DATA) -> list[Path]:
    """List the photos of lund and berlin."""
    rows = _street_rows(data, "walks")
    return [data / "street" / row["file"] for row in rows if row["file"].startswith(("lund/", "berlin/"))]


def _street_rows(data: Path, name: str) -> list[dict[str, str]]:
    return _rows(data / "street" / "manifest.csv", name)


def _rows(table: Path, name: str) -> list[dict[str, str]]:
    if not table.is_file():
        raise MissingPhotosError(f"{name}: {table} is not there; it is in the project's shared folder, beside the checkout")
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _split(rows: Sequence[dict[str, str]], database: str = "database") -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return [row for row in rows if row["split"] == database], [row for row in rows if row["split"] == "query"]


def _lund(data: Path, work: Path) -> RecallSet:
    del work
    database, queries = _split([row for row in _street_rows(data, "street-lund") if row["sequence"] == "lund"])
    lat = np.array([float(row["lat"]) for row in database])
    lon = np.array([float(row["lon"]) for row in database])
    far = [distances_m(np.full(len(lat), float(q["lat"])), np.full(len(lat), float(q["lon"])), lat, lon) for q in queries]
    return RecallSet(
        name="street-lund",
        database=[data / "street" / row["file"] for row in database],
        queries=[data / "street" / row["file"] for row in queries],
        positives=np.array(far) <= RADIUS_M,
    )


def _drives(name: str, data: Path, queried: Sequence[str]) -> RecallSet:
    rows = [row for row in _street_rows(data, name) if row["file"].startswith("mapillary_seq/")]
    database, queries = _split(rows)
    queries = [row for row in queries if _drive(row) in queried]
    drive = np.array([_drive(row) for row in database])
    frame = np.array([int(row["frame"]) for row in database])
    right = [(drive == _drive(query)) & (abs(frame - int(query["frame"])) <= 1) for query in queries]
    return RecallSet(
        name=name,
        database=[data / "street" / row["file"] for row in database],
        queries=[data / "street" / row["file"] for row in queries],
        positives=np.array(right),
    )


def _drive(row: dict[str, str]) -> str:
    """The folder's name: in one of them it lacks the dash that its sequence key begins with."""
    return Path(row["file"]).parent.name


def _mapillary(data: Path, work: Path) -> RecallSet:
    del work
    return _drives("mapillary", data, HELD_BACK_DRIVES + TRAINING_DRIVES)


def _held_back(data: Path, work: Path) -> RecallSet:
    del work
    return _drives("mapillary-held-back", data, HELD_BACK_DRIVES)


def _held_back_night(data: Path, work: Path) -> RecallSet:
    day = _drives("mapillary-held-back-night", data, HELD_BACK_DRIVES)
    folder = work / f"mapillary-held-back-night-{_code_of(Path(__file__))}"
    names = [f"{path.parent.name}-{path.stem}.jpg" for path in day.queries]

    def darken(into: Path) -> None:
        for seed, (path, name) in enumerate(zip(day.queries, names, strict=True)):
            photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            dark = cv2.cvtColor(night(photo, np.random.default_rng([NIGHT_SEED, seed])), cv2.COLOR_RGB2BGR)
            (into / name).write_bytes(cv2.imencode(".jpg", dark, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())

    _make_once(folder, darken)
    return RecallSet(name=day.name, database=day.database, queries=[folder / name for name in names], positives=day.positives)


def _tower(data: Path, work: Path) -> RecallSet:
    del work
    root = data / "train" / "ie_tower"
    database, queries = _split(_rows(root / "dataset.csv", "ie-tower"), database="gallery")
    place = np.array([f"{row['label']}/{row['area']}" for row in database])

    def photo(row: dict[str, str]) -> Path:
        return root / row["image_path"].split("/", 1)[1]  # without the folder it was published in

    return RecallSet(
        name="ie-tower",
        database=[photo(row) for row in database],
        queries=[photo(row) for row in queries],
        positives=np.array([place == f"{row['label']}/{row['area']}" for row in queries]),
    )


def _sample_city(data: Path, work: Path) -> RecallSet:
    del data
    city, folder = plan_sample_city(), work / f"sample-city-{_code_of(*sorted(Path(photos.__file__).parent.glob('*.py')))}"

    def photograph(into: Path) -> None:
        for _ in write_photos(city, into):
            pass

    _make_once(folder, photograph)
    there, here = _ground_m(city.database), _ground_m(city.queries)
    return RecallSet(
        name="sample-city",
        database=[folder / photo.name for photo in city.database],
        queries=[folder / photo.name for photo in city.queries],
        positives=np.linalg.norm(here[:, None] - there, axis=2) <= RADIUS_M,
    )


def _ground_m(planned: Sequence[PlannedPhoto]) -> Float64[np.ndarray, "n 2"]:
    """The town is a plane in metres, and EXIF says the same to a millimetre."""
    return np.array([[photo.pose.x_m, photo.pose.y_m] for photo in planned], np.float64)


def _code_of(*sources: Path) -> str:
    """Name what was made by the code that made it, so that other code makes it anew."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def _make_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name first, so that one that exists is whole."""
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    fill(part)
    part.rename(folder)


_SETS: Final[dict[str, Callable[[Path, Path], RecallSet]]] = {
    "street-lund": _lund,
    "mapillary": _mapillary,
    "mapillary-held-back": _held_back,
    "mapillary-held-back-night": _held_back_night,
    "ie-tower": _tower,
    "sample-city": _sample_city,
}

# ------------------------------------------------------------------------------------------------------------- night

NIGHT_SEED: Final = 20250929
"""Made with another transform than training's, on purpose: a network must not be measured on its own augmentation."""


def night(photo: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Make a day photo look as a cheap camera might see the place at night. A stand-in: real nights also move shadows and lights.

    In linear light: what is bright and not near the ground (sky) goes dark, everything loses 4 to 6 stops, a few warm lamps light
    a pool around them, the colour is cast, the camera's gain brings shot and read noise with it, and a tone curve lifts what is
    left.

    Args:
        photo: RGB.
        rng: draws lamps, exposure, cast and noise. Equal generators make equal photos.
    """
    height, width = photo.shape[:2]
    light = (photo.astype(np.float32) / 255) ** 2.2
    row, column = np.mgrid[0:height, 0:width].astype(np.float32) / width
    up = np.clip(3 - 4 * row * width / height, 0, 1)  # 1 down to the middle, 0 in the lowest quarter
    brightness = light.mean(axis=2)
    sky = up * np.clip((brightness - 0.25) / 0.25, 0, 1)
    lamps = np.zeros((height, width), np.float32)
    glow = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(3, 8)):
        y, x = rng.uniform(0.15, 0.5) * height / width, rng.uniform(0, 1)
        apart = (row - y) ** 2 + (column - x) ** 2
        lamps += np.exp(-apart / (2 * rng.uniform(0.06, 0.2) ** 2)) * rng.uniform(0.3, 1.0)
        glow += np.exp(-apart / (2 * rng.uniform(0.004, 0.012) ** 2))
    warm = np.array([1.0, 0.78, 0.45], np.float32)
    cold = np.array([0.75, 0.9, 1.15], np.float32)
    ambient = 2.0 ** -rng.uniform(4, 6)
    lit = light * (1 - 0.97 * sky[..., None]) * (ambient * cold + 0.35 * lamps[..., None] * warm) + glow[..., None] * warm
    gain = rng.uniform(3, 6)
    photons = np.maximum(lit, 0) * 400
    noisy = (photons + rng.standard_normal(lit.shape) * np.sqrt(photons + 4)) / 400
    soft = cv2.GaussianBlur(noisy.astype(np.float32) * gain, (0, 0), rng.uniform(0.6, 1.2) * width / 1024)
    return np.asarray(np.clip(soft, 0, 1) ** (1 / 2.2) * 255, np.uint8)
