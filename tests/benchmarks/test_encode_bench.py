"""What `encode` measures is what it says: the best run counts, and shares are of the network with as many workers."""

from pathlib import Path

import pytest

from fol_model.inference import open_encoder
from infra.settings import Settings
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sample_city.photos import write_sample_city
from tests.benchmarks import encode
from tests.benchmarks.encode import Run, best_of, run_bare, run_whole, share, table


def run(way: str, workers: int, wall_s: float) -> Run:
    return Run(network="tiny", way=way, workers=workers, photos=100, wall_s=wall_s, cpu_s=2.0, peak_bytes=50_000_000)


def test_the_best_of_the_rounds_counts_beside_the_network_with_as_many_workers():
    runs = [run("bare", 1, 10.0), run("disk", 1, 12.5), run("bare", 2, 6.0), run("disk", 2, 7.0), run("disk", 1, 12.0)]

    best = best_of([*runs, run("bare", 1, 9.0)])

    assert [(one.way, one.workers, one.wall_s) for one in best] == [
        ("bare", 1, 9.0),
        ("disk", 1, 12.0),
        ("bare", 2, 6.0),
        ("disk", 2, 7.0),
    ]
    assert [share(one, best) for one in best] == pytest.approx([1, 0.75, 1, 6 / 7])
    assert table(best)[3] == "| tiny | disk | 1 | 8.33 | 75.0% | 20.0 | 50 |"


def test_a_run_from_files_to_receipts_encodes_every_photo_and_the_memory_and_time_of_its_decoders_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_sample_city(tmp_path / "city", places=6, queries=1, unmapped=0)
    encoder = open_encoder("tiny", weights=None, device="cpu")
    settings = Settings(threads=2)
    photos = sorted((tmp_path / "city/database").iterdir())
    with PhotoDecoder(PhotoLimits()) as decoder:
        prepared = [encoder.prepare(decoder.decode(photo.read_bytes())) for photo in photos]

    whole = run_whole("tiny", encoder, "disk", str(tmp_path / "city/database"), str(tmp_path / "map"), 2, settings)
    bare = run_bare("tiny", encoder, prepared, 2)

    assert whole.photos == bare.photos == len(photos) == 24
    assert whole.cpu_s > bare.cpu_s > 0
    assert whole.peak_bytes > 10_000_000  # a decoder alone takes more
    assert encode.share(whole, [bare, whole]) > 0
