"""Photos that are answered together are answered as each would be alone, to the bit: whichever they are, in whatever order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import shapely
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fol_model.config import PoolConfig, RerankConfig
from fol_model.inference import Encoder
from infra.commits import read_head
from infra.storage import LocalStorage, Storage
from pipelines import ivfpq
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.ivfpq import IndexConfig
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.query.opened_map import OpenedMap
from pipelines.query.prior import Prior
from pipelines.query.worker import Answer, QueryWorker
from schemas import layout
from schemas.images import image_id
from tests.faults.noise_map import PARTITION, SETTINGS, NoiseEncoder, without_network, write_photos

QUERIES = range(0, 480, 20)
"""Of each kind some: photos of the map, photos that were taken down, and photos that it never had."""

NEAR = Prior(boxes=((2.0, 54.72, 3.0, 54.735),))
"""Photos 20 to 175, or so."""

NOWHERE = Prior(area=bytes(shapely.to_wkb(shapely.box(10, 10, 11, 11))))

KINDS = {"flat": (200, 10**6), "one pass": (400, 10**6), "two passes": (400, 8)}
"""Photos of the map, and the least pool of its search in two passes."""


@dataclass(frozen=True, kw_only=True)
class Town:
    """A map of several segments and shards, with photos taken down and a segment whose local features are damaged."""

    storage: Storage
    alone: dict[Prior | None, dict[int, Any]] = field(default_factory=dict, repr=False)
    """What each photo is answered alone, by what is known of it before."""

    def answers_alone(self, prior: Prior | None) -> dict[int, Any]:
        if prior not in self.alone:
            worker = self.worker(prior)
            self.alone[prior] = {number: said(worker.answer_encoded(NoiseEncoder().photo(number))) for number in QUERIES}
        return self.alone[prior]

    def worker(self, prior: Prior | None) -> QueryWorker:
        """Fresh, so that what it reads is read for these queries."""
        encoder = cast(Encoder, NoiseEncoder())
        opened = OpenedMap(self.storage, read_head(self.storage), prior)
        return QueryWorker(self.storage, opened, encoder, RerankConfig(pool=PoolConfig(fixed_size=10)), prior=prior)


@pytest.fixture(scope="module", params=KINDS)
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    photos, least_pool = KINDS[request.param]
    folder = tmp_path_factory.mktemp("town")
    build = BuildRequest(
        recipe="tiny",
        map_url=str(folder / "map"),
        photos=(str(write_photos(folder / "photos", range(photos))),),
        partition=PARTITION,
        index=IndexConfig(pca_photos=256, shard_photos=90),
    )
    with without_network():
        run_build(build, SETTINGS)
    storage = LocalStorage(build.map_url)
    takedown(
        storage, TakedownRequest(image_ids=frozenset(image_id(f"photos/{number:04d}.jpg") for number in range(0, photos, 16)))
    )
    manifest = read_head(storage)
    assert len(manifest.index.shards) > 1
    _damage(storage, layout.segment_folder(manifest.segments[0].segment_id, manifest.segments[0].attempt))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivfpq, "LEAST_POOL", least_pool)
        yield Town(storage=storage)


def _damage(storage: Storage, folder: str) -> None:
    """Flip a bit in the local features of several photos."""
    path = f"{folder}/{layout.LOCAL_FEATURES}/c/0/0/0"
    content = bytearray(storage.get(path))
    for place in range(100, len(content) // 2, 5_000):
        content[place] ^= 1
    storage.put(path, bytes(content))


def said(answer: Answer) -> Any:
    return answer.candidates, answer.pool_size, answer.matched_patches.tolist(), answer.without_features


@pytest.mark.parametrize("prior", [None, NEAR, NOWHERE], ids=["everywhere", "near", "nowhere"])
@given(
    order=st.permutations(list(QUERIES)), cuts=st.sets(st.integers(1, len(QUERIES) - 1), max_size=6), threads=st.integers(1, 3)
)
@settings(max_examples=4, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_together_photos_get_the_answers_that_each_gets_alone(
    town: Town, prior: Prior | None, order: Sequence[int], cuts: set[int], threads: int
):
    encoder, together = NoiseEncoder(), town.worker(prior)

    found = {}
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(order)], strict=True):
        numbers = order[start:stop]
        answers = together.answer_all([encoder.photo(number) for number in numbers], threads=threads)
        found.update(zip(numbers, map(said, answers), strict=True))

    assert found == town.answers_alone(prior)
    if prior is None:
        assert any(without_features for *_, without_features in found.values())
        assert all(candidates for candidates, *_ in found.values())
