"""Answer single photos and keep nothing: `folio query`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from pipelines.geotag.geotag import make_geotags
from pipelines.locate.position import PositionConfig
from pipelines.query.answering import answer_catalog
from pipelines.query.prior import Prior
from pipelines.query.worker import open_worker


class PhotoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where one photo was taken."""

    uri: str
    status: str
    reason: str | None
    lat_deg: float | None
    lon_deg: float | None
    expected_error_m: float | None
    support: float
    probability: float | None
    """That the best position, given or not, is within 25 m; None: the map is not calibrated."""
    matched_uri: str | None
    matches: int | None
    cosine: float | None
    pool_size: int

    def line(self) -> str:
        """Say it in one line."""
        if self.lat_deg is None or self.lon_deg is None:
            return f"don't know ({self.reason})"
        return (
            f"{self.lat_deg:.6f}, {self.lon_deg:.6f}  ±{self.expected_error_m:.0f} m  {self.matches} matches  "
            f"{self.matched_uri}  ({self._sureness()}, cosine {self.cosine:.3f}, {self.pool_size} re-ranked)"
        )

    def _sureness(self) -> str:
        return f"support {self.support:.2f}" if self.probability is None else f"probability {self.probability:.2f}"


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A photo that could not be used."""

    uri: str
    reason: str
    detail: str


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """All answers. `folio query --json` prints this."""

    map_version: int
    recipe: str
    trained: bool
    answers: list[PhotoAnswer]
    rejected: list[Rejected]

    def lines(self) -> Iterator[str]:
        """Say it to a person: the answer alone for one photo, led by its name for several."""
        alone = len(self.answers) == 1 and not self.rejected
        for answer in self.answers:
            yield answer.line() if alone else f"{answer.uri}: {answer.line()}"
        for reject in self.rejected:
            yield f"{reject.uri}: rejected, {reject.reason} ({reject.detail})"


def ask(
    map_url: str,
    photos: Sequence[str],
    settings: Settings,
    *,
    version: int | str | None,
    weights: str | None,
    device: str,
    precision: float = 0.95,
    prior: Prior | None = None,
) -> Asked:
    """Answer photos. Writes nothing. Raises any `FolioError`."""
    limits = PhotoLimits()
    weights_file = Path(weights) if weights else None
    worker = open_worker(map_url, settings, version=version, weights=weights_file, device=device, prior=prior)
    catalog = list_photos(photos, settings=settings, needs_position=False, limits=limits)
    answers = answer_catalog(worker, catalog, settings, limits, description="query")
    geotags = make_geotags(answers, PositionConfig(precision=precision))
    rejects = answers.rejects.select(["uri", "reason", "detail"]).to_pylist()
    return Asked(
        map_version=answers.facts["map_version"],
        recipe=answers.facts["model"],
        trained=answers.facts["trained"],
        answers=msgspec.convert(geotags.select(PhotoAnswer.__struct_fields__).to_pylist(), list[PhotoAnswer]),
        rejected=msgspec.convert(rejects, list[Rejected]),
    )
