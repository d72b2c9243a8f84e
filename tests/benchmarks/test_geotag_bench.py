"""What `geotag` measures is what it says: both ways get the same photos and answers, sums are sums."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fol_model.inference import EncodedPhoto
from fol_model.recipes import folio_small
from infra.settings import Settings
from infra.storage import LocalStorage
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from tests.benchmarks import geotag
from tests.benchmarks.geotag import BULK, ONE_BY_ONE, PROCESS, STAGES, Way, ask_map, mean_of, stage_table, table
from tests.benchmarks.query import MadeUpPhotos, write_map
from tests.faults.noise_map import write_photos


class Blind:
    """A network that sees nothing."""

    local_precision, batch_size, grid_side, decode_side = "int4", 1, 20, None
    local_dim, max_local_features = folio_small().local_dim, folio_small().max_local_features

    def __init__(self) -> None:
        self.seen = 0

    is_on_cpu = True

    def prepare(self, photo: np.ndarray) -> np.ndarray:
        return photo

    def encode_prepared(self, photos: list[np.ndarray]) -> list[EncodedPhoto]:
        self.seen += len(photos)
        return [Any] * len(photos)


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    folder = write_photos(tmp_path / "archive", range(5))
    return list_photos([str(folder)], settings=Settings(threads=1), limits=PhotoLimits(), needs_position=False)


def test_both_ways_answer_every_photo_alike_and_every_stage_is_timed(
    archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(geotag, "use_threads", lambda count: None)  # this process is pytest's
    made_up, network = MadeUpPhotos(), Blind()
    write_map(LocalStorage(str(tmp_path / "map")), 64, made_up)

    one, bulk = ask_map(str(tmp_path / "map"), 64, archive, network, made_up, [1], 1)

    assert (one.way, bulk.way) == (ONE_BY_ONE, BULK)
    assert network.seen == 2 * 5
    for way in (one, bulk):
        assert min(way.stages_s[stage] for stage in STAGES if stage != "network") > 0
        assert sum(way.stages_s.values()) < way.cpu_s
    monkeypatch.setattr(geotag, "one_by_one", lambda *asked: geotag.in_bulk(*asked).slice(1))
    with pytest.raises(RuntimeError, match="different results"):
        ask_map(str(tmp_path / "map"), 64, archive, network, made_up, [1], 1)


def test_times_are_means_of_rounds_and_ratios_of_these():
    stages = dict.fromkeys(STAGES, 0.01)
    one = Way(map_photos=1_000, way=ONE_BY_ONE, threads=1, photos=4, wall_s=0.5, cpu_s=0.2, stages_s=stages)
    ways = [
        one,
        replace(one, way=BULK, wall_s=0.2, cpu_s=0.1),
        replace(one, wall_s=0.7),
        replace(one, way=PROCESS, wall_s=6.0, cpu_s=2.0, stages_s={}),
    ]

    means = mean_of(ways)

    assert [way.wall_s for way in means] == pytest.approx([0.6, 0.2, 6.0])
    assert table(means).splitlines()[2:] == [
        "| 1,000 | 1 | one by one | 1.67 | 1.00 | 200 | 1.00 | 180 | 1.00 |",
        "| 1,000 | 1 | bulk | 5.00 | 3.00 | 100 | 2.00 | 80 | 2.25 |",
        "| 1,000 | 1 | a process each | 0.17 | 0.10 | 2,000 | 0.10 |  |  |",
    ]
    assert stage_table(means).splitlines()[-1] == f"| 1,000 | bulk | {' | '.join(['10.0'] * 7)} | 30.0 |"


def test_without_street_photos_an_archive_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geotag, "STREET", tmp_path / "absent")
    monkeypatch.setattr(geotag, "write_sample_city", lambda folder, **_: write_photos(folder / "queries", range(3)))

    photos = geotag.write_archive(tmp_path, 5)

    assert [photo.suffix for photo in photos] == [".jpg"] * 5
    assert photos[0].read_bytes() == photos[3].read_bytes() != photos[1].read_bytes()
