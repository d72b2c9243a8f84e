"""The folder of a training run: what it was started with, how far it got, what it measured, and the weights in the end.

RUN/
  plan.json              settings and data: a run is resumed only under the same
  rejects.parquet        photos that could not be used; other workers have rejects-worker1.parquet ...
  metrics.jsonl          a line a step and a line a validation
  metrics.parquet        recalls of the weights that were kept, in the schema of metrics
  progress.json          points to the last checkpoint; replaced in one go, so a kill at any moment leaves a whole one
  checkpoints/           the learner's own files, the last two
  sample-city/           photos of the made-up town, where it was asked for
  weights.safetensors    the best weights so far, by validation, with their card; without validation the last ones
  card.json              the card, for a person
  report.html
  diverged.json          only if a loss turned NaN: at which step and on which photos
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import read_table, write_table
from pipelines.train.request import Recall
from schemas.errors import DamagedError, ModelError
from schemas.metrics import METRICS
from schemas.rejects import REJECTS

WEIGHTS: Final = "weights.safetensors"

KEPT_CHECKPOINTS: Final = 2

Plan = dict[str, Any]
"""Plain JSON."""


class StepLine(msgspec.Struct, frozen=True, kw_only=True, tag="step", tag_field="kind"):
    """What one step did; a line of metrics.jsonl. Of several workers the first one's share, but for `images` and `grad_norm`."""

    step: int
    """Steps done, this one included."""
    epoch: int
    """Of 0, 1, ..."""
    total: float
    """The loss that the step made smaller."""
    losses: dict[str, float]
    """Its terms, before they are weighted."""
    pseudo_correspondences: int
    """Pairs of patches that their loss learnt from. Always none: it teaches nothing."""
    mined_pairs: int
    """Pairs of photos that the global loss learnt from."""
    learning_rate: float
    grad_norm: float
    images: int
    """That all workers saw."""
    seconds: float
    """Since the step before, loading included."""
    waited: float
    """Seconds of them that the network stood still for photos."""


class RecallLine(Recall, frozen=True, kw_only=True, tag="validation", tag_field="kind"):
    """A validation; a line of metrics.jsonl."""

    step: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run got. With the learner's file it is all that is needed to go on."""

    checkpoint: str
    """Name of the learner's file."""
    epoch: int
    """Being worked on."""
    batch: int
    """Batches of it that are done."""
    steps: int
    log_bytes: int
    """Length of metrics.jsonl then; what is behind was done again."""
    best: Recall | None = None
    stale: int = 0
    """Epochs since the best."""
    stopped: bool = False
    """Early: nothing got better any more."""


LOCK: Final = "run.lock"
"""Held by the run that is at work in a folder."""


class RunFolder:
    """One run's folder on this machine."""

    def __init__(self, path: str, settings: Settings) -> None:
        self.path: Final = Path(path)
        self._storage = open_storage(path, settings)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of this machine out; a killed run keeps nobody out.

        Raises:
            ModelError: another run is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ModelError(
                    f"{self.path}: another training is at work in this folder. Nothing was changed. "
                    "Wait for it, or give another --out."
                ) from error
            yield

    def open(self, plan: Plan) -> None:
        """Start a run, or make sure that one which has got somewhere is the same.

        Raises:
            ModelError: the folder holds a run with other settings or data.
            DamagedError: its files are not what was written.
        """
        before = self._json("plan.json")
        if before is None:
            strangers = sorted(
                file.name for file in self.path.glob("*") if file.name not in ("sample-city", "sample-city.part", LOCK)
            )
            if strangers:
                raise ModelError(
                    f"{self.path}: holds {', '.join(strangers[:3])} but no plan.json, so it is no training run. "
                    "Nothing was started. Give a folder of its own with --out."
                )
        changed = list(differences(before, json.loads(_pretty(plan)))) if self.progress() else []
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ModelError(
                f"{self.path}: this run was started with other settings or data: {'; '.join(changed[:4])}{more}. "
                "It was left as it is. Set them back to go on with it, or give another folder with --out."
            )
        self._storage.put("plan.json", _pretty(plan))

    def progress(self) -> Progress | None:
        """How far it got; None: it has no checkpoint yet.

        Raises:
            DamagedError: the file is not what was written.
        """
        found = self._json("progress.json")
        return None if found is None else self._converted(found)

    def diverged(self) -> dict[str, Any] | None:
        """What a worker wrote of a loss that turned NaN: step, term and photos."""
        found: dict[str, Any] | None = self._json("diverged.json")
        return found

    def truncate_log(self, size_bytes: int) -> None:
        """Drop the lines of steps after the checkpoint, which will be done again."""
        file = self.path / "metrics.jsonl"
        self.path.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            os.truncate(file, min(size_bytes, file.stat().st_size))

    def log(self, lines: Sequence[msgspec.Struct]) -> int:
        """Append lines to metrics.jsonl and give its length."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def lines(self) -> list[StepLine | RecallLine]:
        """Read metrics.jsonl; nothing where there is none. A last line that was cut off is left out."""
        file = self.path / "metrics.jsonl"
        data = file.read_bytes() if file.exists() else b""
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        return [msgspec.json.decode(line, type=StepLine | RecallLine) for line in whole]

    def checkpoint_path(self, steps: int) -> Path:
        """Where the learner's file after so many steps belongs."""
        folder = self.path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"step-{steps:08d}.ckpt"

    def commit(self, progress: Progress) -> None:
        """Make a checkpoint the one that a resume takes, and delete old ones."""
        self._storage.put("progress.json", _pretty(msgspec.to_builtins(progress)))
        for old in sorted((self.path / "checkpoints").glob("step-*.ckpt"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def write_rejects(self, rejects: Sequence[Mapping[str, object]], *, rank: int) -> None:
        """Add to a worker's table of rejects: each photo once, in order of their names."""
        name = rejects_name(rank)
        before = read_table(self._storage, name, kind="rejects").to_pylist() if (self.path / name).exists() else []
        by_photo = {(str(row["root"]), str(row["uri"])): dict(row) for row in [*before, *rejects]}
        rows = [by_photo[key] for key in sorted(by_photo)]
        write_table(self._storage, name, pa.Table.from_pylist(rows, REJECTS), kind="rejects")

    def rejected(self) -> dict[str, int]:
        """Count the rejects of all workers by reason."""
        files = sorted(self.path.glob("rejects*.parquet"))
        rows = [row for file in files for row in read_table(self._storage, file.name, kind="rejects").to_pylist()]
        photos = {(row["root"], row["uri"]): row["reason"] for row in rows}
        return dict(Counter(photos[key] for key in sorted(photos)))

    def write_recalls(self, best: Recall | None, facts: dict[str, Any]) -> None:
        """Write metrics.parquet."""
        rows = (
            [
                {"metric": "recall", "stage": stage, "at": float(at), "value": value, "unit": "fraction", "queries": best.queries}
                for stage, values in (("global", best.global_), ("reranked", best.reranked))
                for at, value in zip((1, 5, 10), values, strict=True)
            ]
            if best
            else []
        )
        write_table(self._storage, "metrics.parquet", pa.Table.from_pylist(rows, METRICS), kind="metrics", facts=facts)

    def write_weights(self, weights: Mapping[str, np.ndarray], card: Mapping[str, str]) -> None:
        """Write weights.safetensors with its card inside: whole, in place of any before it."""
        data = save({key: np.ascontiguousarray(value) for key, value in weights.items()}, dict(card))
        self._storage.put(WEIGHTS, _with_sorted_header(data))

    def write_json(self, name: str, document: Any) -> None:
        """Write a document for a person to read."""
        self._storage.put(name, _pretty(document))

    def write_page(self, html: str) -> Path:
        """Write report.html."""
        self._storage.put("report.html", html.encode())
        return self.path / "report.html"

    def _json(self, name: str) -> Any:
        file = self.path / name
        if not file.exists():
            return None
        try:
            return json.loads(file.read_bytes())
        except ValueError as error:
            raise self._damaged(name, error) from error

    def _converted(self, found: Any) -> Progress:
        try:
            return msgspec.convert(found, Progress)
        except msgspec.ValidationError as error:
            raise self._damaged("progress.json", error) from error

    def _damaged(self, name: str, error: Exception) -> DamagedError:
        return DamagedError(
            f"{self.path / name}: found {error}, needed what a run wrote there. Nothing was changed. Put a copy back, or start "
            "anew in another folder with --out."
        )


def rejects_name(rank: int) -> str:
    """Each worker has a table of its own."""
    return f"rejects-worker{rank}.parquet" if rank else "rejects.parquet"


def _with_sorted_header(data: bytes) -> bytes:
    """Put the names in a safetensors header in order: the library's order changes from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Name what differs between two plans, as `training.learning_rate was 6e-05 and is 0.0001`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} was {before} and is {now}"


def _pretty(document: Any) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
