"""The command line is part of the product: every command explains itself and gives an example."""

import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import main

COMMANDS = {
    "backfill",
    "build",
    "demo",
    "diff",
    "evaluate",
    "gc",
    "geotag",
    "models",
    "query",
    "report",
    "rollback",
    "sample-city",
    "status",
    "tag",
    "takedown",
    "train",
    "verify",
    "verify-deleted",
    "versions",
}


def test_the_commands_are_these() -> None:
    assert set(main.commands) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_says_what_it_does_and_shows_an_example(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"])

    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: main {name}")
    assert f"folio {name}" in shown.output.split("Example:")[1]


def test_models_has_commands_of_its_own() -> None:
    assert isinstance(main.commands["models"], click.Group)
    assert set(main.commands["models"].commands) == {"convert", "fetch"}


@pytest.mark.parametrize("name", ["convert", "fetch"])
def test_help_of_a_command_of_models_does_the_same(name: str) -> None:
    shown = CliRunner().invoke(main, ["models", name, "--help"])
    models = main.commands["models"]
    assert isinstance(models, click.Group)
    options = [param for param in models.commands[name].params if isinstance(param, click.Option)]

    assert shown.output.startswith(f"Usage: main models {name}")
    assert f"folio models {name}" in shown.output.split("Example:")[1]
    assert all(option.help for option in options)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_has_a_help_text(name: str) -> None:
    options = [param for param in main.commands[name].params if isinstance(param, click.Option)]

    assert all(option.help for option in options)


def test_build_help_reads_as_designed() -> None:
    shown = CliRunner().invoke(main, ["build", "--help"], prog_name="folio").output

    assert shown.startswith("Usage: folio build MAP PHOTOS... [OPTIONS]\n\n  Bring the map at MAP up to date")
    assert "readers see the old map until the new one is complete" in " ".join(shown.split())
    assert shown.rstrip().endswith("Example:\n  folio build s3://maps/lund s3://survey/2026/ --plan")


def test_an_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["versions", "somewhere", "--frobnicate"]).exit_code == 2


def test_help_imports_none_of_the_heavy_libraries() -> None:
    """Else each `folio --help` would take seconds."""
    heavy = {"torch", "ray", "prefect", "faiss", "pyarrow", "bokeh", "huggingface_hub", "prometheus_client"}
    probe = f"import sys, pipelines.cli; print({heavy} & set(sys.modules))"

    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"
    assert time.perf_counter() - start < 5
