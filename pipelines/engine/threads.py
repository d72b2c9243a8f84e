"""How many threads the numerical libraries of this process use. Called by whoever owns a process, never on import."""

from fol_model import inference
from pipelines import ivfpq


def use_threads(count: int) -> None:
    """Set torch and FAISS to `count` threads each."""
    inference.use_threads(count)
    ivfpq.use_threads(count)
