"""What `growth` measures is a whole build of a city in which no photo is there twice."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.catalog.sources import list_photos
from tests.benchmarks.growth import TILE_DEG, Stage, growth_table, measure_build, write_city


def test_a_larger_city_is_towns_side_by_side_and_every_stage_of_its_build_is_measured(tmp_path: Path):
    write_sample_city(tmp_path / "town", places=3, queries=1, unmapped=0)
    write_city(tmp_path / "city", 30)

    images = list_photos([str(tmp_path / "city")], settings=Settings(threads=1), limits=PhotoLimits(), needs_position=True).images
    assert len(images) == len(set(images["checksum"].to_pylist())) == 30
    lat, lon = (dict(zip(images["uri"].to_pylist(), images[name].to_pylist(), strict=True)) for name in ("lat_deg", "lon_deg"))
    here, there = (f"city/tile-000{tile}/drive1-0001-left.jpg" for tile in (0, 1))
    assert (lat[there] - lat[here], lon[there] - lon[here]) == pytest.approx((0, TILE_DEG[1]), abs=1e-8)
    pixels = [np.asarray(Image.open(tmp_path / name), np.float64) for name in (here, there)]
    assert 0.5 < np.abs(pixels[0] - pixels[1]).mean() < 20

    stages = measure_build(tmp_path / "city", tmp_path / "map", 30)

    assert [one.stage for one in stages] == ["list", "plan", "encode", "rewrite", "index", "calibrate", "publish"]
    assert all(one.cpu_s >= 0 and one.photos == 30 for one in stages)
    assert stages[2].cpu_ms > 1


def test_the_table_has_a_line_a_stage_and_two_columns_a_size():
    stages = [
        Stage(photos=size, stage=stage, wall_s=1, cpu_s=cpu_s, peak_bytes=5_000_000)
        for size, stage, cpu_s in ((100, "list", 0.1), (100, "encode", 1.0), (1000, "list", 2.0), (1000, "encode", 10.0))
    ]

    assert growth_table(stages) == [
        "| stage | 100 photos: CPU ms each | peak MB | 1,000 photos: CPU ms each | peak MB |",
        "|---|---|---|---|---|",
        "| list | 1.00 | 5 | 2.00 | 5 |",
        "| encode | 10.00 | 5 | 10.00 | 5 |",
        "| all | 11.00 | | 12.00 | |",
    ]
