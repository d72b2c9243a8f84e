"""A city small enough to be built again and again, and what an undisturbed build makes of it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.commits import read_head, read_receipts
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.engine.partition import PartitionConfig
from pipelines.maintain.verify import verify
from schemas.manifest import Manifest
from tests.faults.profile import rounds


@dataclass(frozen=True, kw_only=True)
class SmallCity:
    """Photos, and the version that a build makes of them when nothing disturbs it."""

    photos: Path
    undisturbed: Manifest

    def request(self, map_url: str) -> BuildRequest:
        """Ask for the same map elsewhere, in several segments though there are few photos."""
        partition = PartitionConfig(min_photos=4, pieces=6)
        return BuildRequest(recipe="tiny", map_url=map_url, photos=(str(self.photos),), partition=partition)

    def check(self, storage: Storage) -> None:
        """Require that a map is whole, is that of the undisturbed build, and that its segments were encoded once each."""
        head = read_head(storage)
        assert head.content_id == self.undisturbed.content_id
        assert head.statistics["photos"] == self.undisturbed.statistics["photos"]
        assert set(read_receipts(storage)) == {segment.segment_id for segment in self.undisturbed.segments}
        assert verify(storage).problems == []


@pytest.fixture(scope="session")
def small_city(tmp_path_factory: pytest.TempPathFactory) -> SmallCity:
    """12 photos in three segments, or twice as many."""
    return make_city(tmp_path_factory.mktemp("small-city"), places=rounds(quick=3, full=6))


def make_city(folder: Path, *, places: int) -> SmallCity:
    """Take the photos of a city, four a place, and build its map."""
    write_sample_city(folder, places=places, queries=2, unmapped=0)
    photos, place = folder / "database", folder / "map"
    settings = Settings(threads=1)
    run_build(SmallCity(photos=photos, undisturbed=None).request(str(place)), settings)  # type: ignore[arg-type]
    return SmallCity(photos=photos, undisturbed=read_head(open_storage(str(place), settings)))
