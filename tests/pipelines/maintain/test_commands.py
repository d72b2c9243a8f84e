"""The commands that look after versions, as a user types them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from infra import arrays
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.cli import main
from tests.pipelines.maintain.photo_maps import images, publish_map, uri, write_segment


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A map with version 1 of photos 0 and 1, and version 2 of photos 1 and 2."""
    monkeypatch.setattr(arrays, "SHARD_BYTES", 1 << 16)
    storage = open_storage(str(tmp_path / "map"), Settings(threads=1))
    publish_map(storage, [write_segment(storage, images([0, 1]))])
    publish_map(storage, [write_segment(storage, images([1, 2]))])
    return str(tmp_path / "map")


def folio(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="folio")


def as_json(*arguments: str) -> Any:
    return msgspec.json.decode(folio(*arguments, "--json").stdout)


def test_a_version_is_tagged_listed_and_gone_back_to(place: str):
    assert folio("tag", place, "good", "1").stdout == f"{place}: version 1 is called good\n"
    assert "[good]" in folio("versions", place).stdout.splitlines()[0]
    assert folio("rollback", place, "good").stdout == f"{place}: version 3 now has the content of version good\n"
    assert [line["action"] for line in as_json("versions", place)] == ["build", "build", "rollback"]
    assert folio("tag", place, "good", "--delete").stdout == f"{place}: version 1 is no longer called good\n"
    assert as_json("versions", place)[0]["tags"] == []


def test_a_tag_is_for_the_newest_version_unless_one_is_given(place: str):
    assert "version 2 is called now" in folio("tag", place, "now").stdout
    assert folio("tag", place, "now", "1", "--delete").exit_code == 2
    refused = folio("tag", place, "now", "1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "the tag now is version 2 already, not 1" in refused.stderr


def test_versions_are_compared(place: str):
    shown = folio("diff", place, "1", "2").stdout

    assert shown.startswith(f"photos    1 added, 1 removed, 0 changed\n  added  {uri(2)}\n  removed  {uri(0)}\n")
    assert [photo["uri"] for photo in as_json("diff", place, "1", "2")["photos"]["added"]] == [uri(2)]


def test_gc_only_says_what_it_would_do_unless_told(place: str):
    assert folio("gc", place).stdout == "nothing to remove\n"
    would = folio("gc", place, "--older-than", "0s", "--shorter-than-safe").stdout

    assert "versions to be retired: 1" in would
    assert would.endswith("nothing was changed; to remove this: --delete\n")
    done = folio("gc", place, "--older-than", "0s", "--shorter-than-safe", "--delete").stdout
    assert "versions retired: 1" in done
    assert folio("versions", place).stdout.splitlines()[0].endswith("retired")
    assert "version 1 is retired" in folio("rollback", place, "1").stderr
    assert folio("verify", place).exit_code == 0


@pytest.mark.parametrize("age", ["6d", "0s", "soon"])
def test_gc_refuses_a_time_that_is_not_safe(place: str, age: str):
    refused = folio("gc", place, "--older-than", age, "--delete")

    assert refused.exit_code == 2
    assert "--older-than must be 7d" in refused.stderr or "a time must be" in refused.stderr
