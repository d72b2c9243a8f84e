"""Train the default weights, `folio-small`, from the photos beside the project. `make weights` runs it; run it again to go on.

The photos: the gallery of ie_tower (MIT; its queries are kept for the benchmark), three drives of Mapillary (CC BY-SA 4.0; the
drives with 55 and 62 frames are kept), drone photos of OpenDroneMap (CC BY-SA 4.0, BSD-2), and the sample city. One folder is
written: tables for `folio train`, the run, and what it ends with: OUT/run/weights.safetensors. Where there is a GPU it is used.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from pipelines.cli import main as folio
from tests.benchmarks.recall_sets import HELD_BACK_DRIVES

DATA: Final = Path(__file__).parents[3] / "shared" / "data"

LICENCES: Final = (
    "train/ie_tower: MIT",
    "street/mapillary_seq: CC BY-SA 4.0, Mapillary, sequences {drives}",
    "train/odm_copr: CC BY-SA 4.0",
    "train/odm_brighton: BSD-2-Clause",
    "sample city: made by Folio",
)

TOWER_FRAMES: Final = 3
"""So many consecutive frames of a clip are a place of ie_tower; every other such group is used, so that places differ."""


def tower_rows() -> list[dict[str, str]]:
    """The gallery photos of ie_tower with the place each shows: floor, clip and a third of a dozen frames."""
    rows = []
    for row in csv.DictReader((DATA / "train/ie_tower/dataset.csv").open()):
        folder, _, name = row["image_path"].removeprefix("processed_frames/").partition("/")
        clip, _, frame = name.removesuffix(".jpg").rpartition("_")
        group = int(frame) // TOWER_FRAMES
        if row["split"] == "gallery" and group % 4 == 0:
            uri = (DATA / "train/ie_tower" / folder / name).resolve().as_posix()
            rows.append({"uri": uri, "place_id": f"{clip}/{group}", "sequence_id": ""})
    return rows


def drive_rows() -> list[dict[str, str]]:
    """The frames of the drives that are not kept for the benchmark."""
    manifest = [row for row in csv.DictReader((DATA / "street/manifest.csv").open()) if row["file"].startswith("mapillary_seq/")]
    frames = Counter(row["sequence"] for row in manifest)
    assert len(frames) == 5
    return [
        {"uri": (DATA / "street" / row["file"]).resolve().as_posix(), "place_id": "", "sequence_id": row["sequence"]}
        for row in manifest
        if row["sequence"] not in HELD_BACK_DRIVES
    ]


def main() -> None:
    """Write the table and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", default="out/weights", type=Path)
    parser.add_argument("options", nargs="*", help="more options of `folio train`, after --")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA}: the photos to train on are not there. Nothing was written.")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [*tower_rows(), *drive_rows()]
    table = given.out / "photos.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "place_id", "sequence_id"])
        writer.writeheader()
        writer.writerows(rows)
    drives = ", ".join(sorted({row["sequence_id"] for row in rows} - {""}))
    licences = [part for text in LICENCES for part in ("--licence", text.format(drives=drives))]
    photos = [str(table), str(DATA / "train/odm_copr"), str(DATA / "train/odm_brighton")]
    settings = ["--recipe", "folio-small", "--learn", "reliability", "--sample-city", "12", "--out", str(given.out / "run")]
    settings += ["--places", "12", "--photos-per-place", "2", "--learning-rate", "1e-3", "--linear-steps", "300", "--ema", "0.98"]
    settings += ["--validate", "0.05", "--checkpoint-minutes", "2"]
    folio(["train", *photos, *settings, *licences, *given.options])


if __name__ == "__main__":
    main()
