"""Photos for the page, wherever they lie. One that cannot be read any more is None, never an error: the page says so."""

from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import UInt8

from infra.settings import Settings
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.locations import leaves_root, locate
from pipelines.catalog.reading import Storages
from schemas.errors import PhotoError, StorageError


class PhotoSource:
    """Reads and decodes photos one at a time, in a process that a bad photo cannot hurt. Use it in `with`."""

    def __init__(self, settings: Settings, *, root: str | None) -> None:
        """Take photos from `root`, or where None from the root that stands beside each. Absolute names need neither."""
        self._storages = Storages(settings)
        self._root = root
        self._limits = PhotoLimits()
        self._decoder = PhotoDecoder(self._limits)

    def read(self, uri: str, root: str, *, min_side: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """Decode a photo, no smaller than `min_side` on either side; None: it cannot be read."""
        if leaves_root(uri):
            return None
        try:
            data = self._storages.get(locate(uri, self._root or root), stop=self._limits.max_bytes + 1)
            return self._decoder.decode(data, min_side=min_side)
        except (PhotoError, StorageError, ValueError):  # ValueError: a name that no store can have
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._decoder.close()
