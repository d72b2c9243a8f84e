"""A hub to fetch from, and a small published checkpoint in it."""

import io
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import close_session, constants

from fol_model.recipes import tiny
from fol_model.weights import seeded_weights
from infra.settings import Settings
from pipelines.models.listing import PUBLISHED, Published
from tests.pipelines.models.hub import Hub, running


@pytest.fixture(scope="session")
def checkpoint_bytes() -> bytes:
    """A checkpoint as FoL's training writes it, of the smallest recipe: 4 MB."""
    weights = {f"module.{name}": torch.from_numpy(weight) for name, weight in seeded_weights(tiny()).items()}
    file = io.BytesIO()
    torch.save({"model_state_dict": weights, "recalls": np.array([93.1]), "best_r5": np.float64(93.1)}, file)
    return file.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(threads=1, models=tmp_path / "models")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """As if weights of the smallest recipe were published; those of the others are hundreds of megabytes."""
    monkeypatch.setitem(PUBLISHED, "tiny", Published(repository="someone/FoL", file="FoL_tiny.pth"))
    return PUBLISHED["tiny"]


def forbidden() -> None:
    """In place of what asks another server about this machine's programs, where telemetry is on."""
    pytest.fail("telemetry is on")


@pytest.fixture
def hub(published: Published, checkpoint_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)  # as it comes
    monkeypatch.setattr("huggingface_hub.utils._headers.detect_agent", forbidden, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what it loses of a broken download
    close_session()  # a client that was opened before would keep the proxies it knew
    with running(Hub(files={f"{published.repository}/{published.file}": checkpoint_bytes})) as hub:
        yield hub
    close_session()


@pytest.fixture
def hub_settings(settings: Settings, hub: Hub) -> Settings:
    return replace(settings, hub=hub.url)


@pytest.fixture
def nobody_there(settings: Settings, published: Published) -> Settings:
    """Settings with a hub at a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return replace(settings, hub=f"http://127.0.0.1:{port}")
