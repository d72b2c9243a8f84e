"""What the environment says, read once into a frozen `Settings` that is passed on. No other file reads `os.environ`.

Credentials are not here: s3fs finds them by itself where the AWS tools look (variables, `~/.aws`, instance role).
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from schemas.errors import FolioError

MAX_DEFAULT_THREADS: Final = 8
"""Above this torch and FAISS gain little, and a large machine usually runs several workers."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

ARITHMETICS: Final = ("auto", "float32", "bfloat16")

LOG_FORMATS: Final = ("text", "json")

HUB: Final = "https://huggingface.co"

_OPEN_URL: Final = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
"""Without user, password or query, so that everybody may see it."""

S3_ENDPOINT: Final = "AWS_ENDPOINT_URL_S3"
"""The variable that `folio --endpoint` sets: workers, and whatever else reads the environment, then find the same server."""


def _models_folder(data_home: str | None = None) -> Path:
    """Where programs keep a user's data, by the XDG rules."""
    return Path(data_home or "~/.local/share").expanduser() / "folio" / "models"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How this process runs. Nothing here changes what is written into a map, but `arithmetic` its last digits."""

    threads: int
    """FOLIO_THREADS: threads for decoding, torch and FAISS. Default: one a CPU, at most 8."""

    arithmetic: Literal["auto", "float32", "bfloat16"] = "auto"
    """FOLIO_ARITHMETIC: what transformers are computed in. auto is bfloat16 where the processor has instructions for it, about
    twice as fast and of the same recall; float32 gives the same digits on every processor. Default: auto."""

    log_level: str = "warning"
    """FOLIO_LOG: debug, info, warning or error. Default: warning."""

    log_format: str = "text"
    """FOLIO_LOG_FORMAT: text, or json: one object a line, with the ids of run and segment. Default: text."""

    metrics_port: int | None = None
    """FOLIO_METRICS_PORT: Prometheus may scrape a build, or the geotagging of an archive, here while it runs. Default: none."""

    metrics_address: str = "127.0.0.1"
    """FOLIO_METRICS_ADDRESS: where that port listens. Default: this machine alone."""

    metrics_file: Path | None = None
    """FOLIO_METRICS_FILE: a .prom file for node-exporter's textfile collector, kept up to date by a build or `folio geotag`.
    `{action}` in its name stands for which of these it is. Default: none."""

    prices: Path | None = None
    """FOLIO_PRICES: a TOML file of prices for `--plan`. Default: those of `pipelines/build/prices.toml`."""

    s3_endpoint_url: str | None = None
    """`folio --endpoint`, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: an S3 server other than AWS."""

    ray_address: str | None = None
    """RAY_ADDRESS: a Ray cluster to join; None: start one on this machine when workers are asked for."""

    prefect_api_url: str | None = None
    """PREFECT_API_URL: long commands then run as Prefect flows."""

    models: Path = field(default_factory=_models_folder)
    """FOLIO_MODELS: the folder of weights that `folio models` writes and every command looks in. Default:
    `folio/models` in XDG_DATA_HOME, which is ~/.local/share where it is not set."""

    hub: str = HUB
    """HF_ENDPOINT: a mirror of the Hugging Face hub. The hub's own client reads HF_TOKEN and HF_HUB_OFFLINE by itself."""

    @staticmethod
    def from_environment() -> "Settings":
        """Read this process's environment.

        Raises:
            FolioError: a variable has a value it cannot have.
        """
        return settings_from(os.environ)


def settings_from(variables: Mapping[str, str]) -> Settings:
    """Read settings from environment variables; an empty value counts as unset.

    Raises:
        FolioError: a variable has a value it cannot have.
    """
    threads = variables.get("FOLIO_THREADS") or str(min(os.cpu_count() or 1, MAX_DEFAULT_THREADS))
    log_level = variables.get("FOLIO_LOG") or "warning"
    if not threads.isdecimal() or int(threads) < 1:
        raise FolioError(_refusal("FOLIO_THREADS", threads, "a whole number from 1"))
    if log_level not in LOG_LEVELS:
        raise FolioError(_refusal("FOLIO_LOG", log_level, " or ".join(LOG_LEVELS)))
    hub = (variables.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not hub.startswith(("http://", "https://")):
        raise FolioError(_refusal("HF_ENDPOINT", hub, "a URL that begins with http:// or https://"))
    log_format = variables.get("FOLIO_LOG_FORMAT") or "text"
    if log_format not in LOG_FORMATS:
        raise FolioError(_refusal("FOLIO_LOG_FORMAT", log_format, " or ".join(LOG_FORMATS)))
    metrics_file = variables.get("FOLIO_METRICS_FILE")
    if metrics_file and not metrics_file.endswith(".prom"):
        raise FolioError(_refusal("FOLIO_METRICS_FILE", metrics_file, "a name ending with .prom: node-exporter reads no other"))
    arithmetic = variables.get("FOLIO_ARITHMETIC") or "auto"
    if arithmetic not in ARITHMETICS:
        raise FolioError(_refusal("FOLIO_ARITHMETIC", arithmetic, " or ".join(ARITHMETICS)))
    models = variables.get("FOLIO_MODELS")
    prices = variables.get("FOLIO_PRICES")
    return Settings(
        threads=int(threads),
        arithmetic=cast(Any, arithmetic),
        log_level=log_level,
        log_format=log_format,
        metrics_port=_port(variables),
        metrics_address=variables.get("FOLIO_METRICS_ADDRESS") or "127.0.0.1",
        metrics_file=Path(metrics_file).expanduser() if metrics_file else None,
        prices=Path(prices).expanduser() if prices else None,
        s3_endpoint_url=_endpoint(variables),
        ray_address=variables.get("RAY_ADDRESS") or None,
        prefect_api_url=variables.get("PREFECT_API_URL") or None,
        models=Path(models).expanduser() if models else _models_folder(variables.get("XDG_DATA_HOME")),
        hub=hub,
    )


def _port(variables: Mapping[str, str]) -> int | None:
    port = variables.get("FOLIO_METRICS_PORT")
    if not port:
        return None
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise FolioError(_refusal("FOLIO_METRICS_PORT", port, "a whole number from 1 to 65535"))
    return int(port)


def _endpoint(variables: Mapping[str, str]) -> str | None:
    """Read the URL of the S3 server, which is shown in errors and logs."""
    for name in (S3_ENDPOINT, "AWS_ENDPOINT_URL"):
        if url := variables.get(name):
            if not _OPEN_URL.fullmatch(url):
                raise FolioError(
                    f"S3 endpoint ({name} or --endpoint): found a URL with a user, password or query in it, or none of a server, "
                    "needed http://host:port or https://host:port. Nothing was started. Give credentials in AWS_PROFILE or "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                )
            return url
    return None


def _refusal(name: str, found: str, needed: str) -> str:
    return f"environment variable {name}: found {found!r}, needed {needed}. Nothing was started. Set it right or unset it."


def set_environment(variables: Mapping[str, str]) -> None:
    """Set environment variables for the rest of this process."""
    os.environ.update(variables)


@contextmanager
def changed_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs: for libraries and child processes that read nothing else."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
