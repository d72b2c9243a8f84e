"""Photos of places that can be told apart: blurred noise, one for each place, seen through slightly different crops.

And a training of them that takes seconds.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from fol_model.training.config import TrainingConfig
from pipelines.train.hold_out import HoldOutConfig
from pipelines.train.photos import TrainingPhoto
from pipelines.train.request import Sources, TrainRequest


def write_photo(file: Path, *, place: int, number: int) -> None:
    noise = np.random.default_rng(place).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    wide = Image.fromarray(noise).resize((200, 150)).filter(ImageFilter.GaussianBlur(1))
    left, top = np.random.default_rng([place, number]).integers(0, 30, 2).tolist()
    file.parent.mkdir(parents=True, exist_ok=True)
    wide.crop((left, top, left + 160, top + 120)).save(file, quality=90)


def write_labelled(folder: Path, *, places: int, photos: int) -> Path:
    """A folder with a table that says which place each photo shows; gives the table."""
    rows = []
    for place in range(places):
        for number in range(photos):
            name = f"p{place:02d}-{number}.jpg"
            write_photo(folder / name, place=place, number=number)
            rows.append({"path": name, "place_id": f"{place:03d}"})
    with (folder / "photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "place_id"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "photos.csv"


def photo(name: str = "a.jpg", **known: object) -> TrainingPhoto:
    return TrainingPhoto(**{"uri": name, "root": "/", "size_bytes": 1, "checksum": None, **known})  # type: ignore[arg-type]


def at_metres(north_m: Sequence[float], *, heading_deg: float | None = None) -> list[TrainingPhoto]:
    """Photos on a meridian, so many metres north of the equator."""
    return [photo(f"{m}.jpg", lat_deg=m / 111_320, lon_deg=0.0, heading_deg=heading_deg) for m in north_m]


def small_request(table: Path, out: Path, **changes: Any) -> TrainRequest:
    """A training of the smallest network on small photos: a few seconds."""
    training = TrainingConfig(
        places_per_batch=4, photos_per_place=2, input_size=126, learned_blocks=None, learning_rate=1e-4, precision="float32"
    )
    request = TrainRequest(
        out=str(out),
        sources=Sources(photos=(str(table),)),
        recipe="tiny",
        epochs=2,
        training=training,
        hold_out=HoldOutConfig(share=0.2),
        device="cpu",
    )
    settings = {name: changes.pop(name) for name in list(changes) if hasattr(training, name)}
    return replace(request, training=replace(training, **settings), **changes)
