"""Archives for a map of noise (`tests/faults/noise_map.py`), and `geotag` on them, in this process or in one that is killed."""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from infra.settings import Settings
from pipelines.geotag.geotag import GeotagRequest, GeotagSummary, run_geotag
from pipelines.query import answering, worker
from tests.faults.noise_map import SETTINGS, NoiseEncoder

CHUNK = 4


@contextmanager
def small_chunks():
    """Answer without a network, a few photos at a time."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(worker, "load_encoder", lambda *_, **__: NoiseEncoder()))
        stack.enter_context(patch.object(worker, "use_threads", lambda count: None))  # this process is pytest's
        stack.enter_context(patch.object(answering, "CHUNK_PHOTOS", CHUNK))
        yield


def geotag(map_url: Path, archive: Path, out: Path, *, settings: Settings = SETTINGS, **options: Any) -> GeotagSummary:
    """Geotag an archive."""
    with small_chunks():
        return run_geotag(request(map_url, archive, out, **options), settings)


def request(map_url: Path, archive: Path, out: Path, **options: Any) -> GeotagRequest:
    """What `geotag` asks for."""
    return GeotagRequest(map_url=str(map_url), photos=(str(archive),), out=str(out), **options)


@dataclass(frozen=True, kw_only=True)
class GeotagJob:
    """What a victim of `tests.faults.victim` is to do."""

    map_url: Path
    archive: Path
    out: Path
    action: str = "geotag"
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> GeotagSummary:
        """Do it."""
        return geotag(self.map_url, self.archive, self.out)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
