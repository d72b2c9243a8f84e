"""Fixtures that every test folder may use."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def _shared(folder: str) -> Path:
    path = PROJECT.parent / "shared" / folder
    if not path.is_dir():
        pytest.skip(f"needs {folder} of the project's shared folder, which lies beside the checkout and is not here")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos for tests; skips where they are absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_fol() -> Path:
    """Outputs of the reference implementation; skips where they are absent."""
    return _shared("fol")
