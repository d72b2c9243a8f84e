"""Every error a user of Folio can meet.

    FolioError
    ├── CatalogError            the photos cannot be listed as asked: folder, bucket, table or column
    ├── PhotoError              one photo cannot be used; becomes a row of rejects.parquet, never stops a run
    ├── ModelError              unknown recipe, missing or misshapen weights, a map made with another network
    ├── PlanError               the work would not fit; refused before anything is spent
    ├── WorkError               a worker was lost too often, or the machinery around the work cannot be used
    │   └── DeviceError         a GPU fails: another one may do the same work
    ├── StorageError            the store did not answer, or not as it must
    │   ├── ObjectMissing       an object that was asked for is not there
    │   └── ConditionsIgnored   the store does not honour create-if-absent, so two writers could overwrite each other
    ├── MapError                the map cannot be opened or used
    │   ├── MapMissing          there is no map at this URL
    │   ├── FormatError         written in a format this version of Folio does not read
    │   └── DamagedError        an object of the map is missing, truncated or altered
    └── CommitError             nothing was published
        ├── CommitConflict      another run published what this one cannot be merged with
        └── CommitUnknown       the store's answer was lost; the version may or may not exist, nothing was deleted

A message says where, what was found, what was needed, what is safe, and what to do next, in one line: the command line
prints it as it is and exits with 1.
"""

from schemas.reasons import RejectReason


class FolioError(Exception):
    """A problem that a user of Folio can do something about."""


class CatalogError(FolioError):
    """The photos cannot be listed as asked."""


class PhotoError(FolioError):
    """One photo cannot be used.

    Args:
        reason: the code that lands in `rejects.parquet`.
        detail: what exactly was found, for a person.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that the error survives a trip between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


class ModelError(FolioError):
    """The network asked for cannot be made, or is not the one a map was made with."""


class PlanError(FolioError):
    """The work would not fit the machine or the limits that were given."""


class WorkError(FolioError):
    """The work was given up: a worker was lost too often, or Ray or Prefect cannot be used as asked."""


class DeviceError(WorkError):
    """A GPU is gone, has no memory left or gives no numbers; what it was at work on is not done."""


class StorageError(FolioError):
    """The store did not answer, or not as it must."""


class ObjectMissing(StorageError):  # noqa: N818  the tree reads better without a second Error
    """An object that was asked for is not there."""


class ConditionsIgnored(StorageError):  # noqa: N818
    """The store does not honour create-if-absent."""


class MapError(FolioError):
    """The map cannot be opened or used."""


class MapMissing(MapError):  # noqa: N818
    """There is no map at this URL."""


class FormatError(MapError):
    """The map, or a part of it, is in a format this version of Folio does not read."""


class DamagedError(MapError):
    """An object of the map is missing, truncated or altered."""


class CommitError(FolioError):
    """Nothing was published."""


class CommitConflict(CommitError):  # noqa: N818
    """Another run has published what this one cannot be merged with."""


class CommitUnknown(CommitError):  # noqa: N818
    """The answer of the store was lost; the version may or may not exist and nothing was deleted."""
