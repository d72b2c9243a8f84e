"""A photo taken down from a real map: out of the answers at once, out of the store with the next build, and never back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.commits import list_retired, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import encode, prepare, run_build, survey
from pipelines.build.request import BuildRequest, BuildSummary
from pipelines.maintain.verify import verify
from schemas.images import image_id
from tests.end_to_end.conftest import Ran

Folio = Callable[..., Ran]


@pytest.fixture(scope="module")
def first(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> "Town":
    """A map of 66 photos of the sample city, and of one of them once more under another name."""
    place = tmp_path_factory.mktemp("town")
    (place / "photos").mkdir()
    for photo in sorted((photos / "database").iterdir())[::4]:
        shutil.copy(photo, place / "photos")
    original = min((place / "photos").iterdir())
    shutil.copy(original, original.with_name(f"copy-of-{original.name}"))
    town = Town(place)
    town.build()
    return town


@pytest.fixture
def town(first: "Town", tmp_path: Path) -> "Town":
    """The same, for this test to change."""
    shutil.copytree(first.place, tmp_path / "town")
    return Town(tmp_path / "town")


class Town:
    """Photos and their map."""

    def __init__(self, place: Path) -> None:
        self.place, self.photos, self.map = place, place / "photos", place / "map"
        self.victim = sorted(self.photos.iterdir())[10]

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.map), Settings(threads=2))

    def build(self, mode: str = "build") -> BuildSummary:
        request = BuildRequest(recipe="tiny", map_url=str(self.map), photos=(str(self.photos),), mode=mode)
        return run_build(request, Settings(threads=2))

    def uri(self, photo: Path) -> str:
        return f"{self.photos.name}/{photo.name}"


def answer(folio: Folio, town: Town, photo: Path, *options: str) -> str | None:
    ran = folio("query", town.map, photo, "--json", *options)
    return ran.json()["answers"][0]["matched_uri"] if ran.code == 0 else ran.err


def test_a_photo_taken_down_is_gone_from_answers_from_the_store_and_stays_gone(folio: Folio, town: Town, tmp_path: Path) -> None:
    uri = town.uri(town.victim)
    names = tmp_path / "names.txt"
    names.write_text(f"{uri}\n")
    assert answer(folio, town, town.victim) == uri
    before = {info.path for info in town.storage.list()}

    done = folio("takedown", town.map, "--uris", names, "--json").json()

    assert [photo["uri"] for photo in done["photos"]] == [uri]
    assert answer(folio, town, town.victim) != uri
    assert answer(folio, town, town.victim, "--version", "1") != uri, "an older version does not show it either"
    left = folio("verify-deleted", town.map, "--uris", names)
    assert left.code == 1
    assert "is left" in left.out

    rebuilt = town.build()  # its source still has the photo

    assert (rebuilt.encoded, rebuilt.photos) == (0, 66)
    proof = folio("verify-deleted", town.map, "--uris", names)
    assert proof.code == 0, proof.out
    assert verify(town.storage).problems == []
    assert before - {info.path for info in town.storage.list()}, "objects that held it are gone"
    assert list_retired(town.storage) == {1, 2}
    assert answer(folio, town, town.victim) != uri

    for version in (1, 2):
        refused = folio("rollback", town.map, str(version))
        assert (refused.code, "retired" in refused.err) == (1, True)
    assert "retired" in str(answer(folio, town, town.victim, "--version", "1"))
    again = town.build()
    assert not again.published
    assert town.build("backfill").photos == 66
    assert folio("verify-deleted", town.map).code == 0


def test_a_copy_put_back_under_another_name_does_not_come_in_again(folio: Folio, town: Town) -> None:
    folio("takedown", town.map, "--ids", image_id(town.uri(town.victim)))
    town.victim.rename(town.photos / "renamed.jpg")

    rebuilt = town.build()

    assert (rebuilt.photos, rebuilt.encoded) == (66, 0)
    assert folio("verify-deleted", town.map).code == 0


def test_a_copy_that_stays_is_named_and_survives_the_next_build(folio: Folio, town: Town) -> None:
    copy = next(photo for photo in sorted(town.photos.iterdir()) if photo.name.startswith("copy-of-"))
    original = town.uri(town.photos / copy.name.removeprefix("copy-of-"))

    said = folio("takedown", town.map, "--ids", image_id(original)).out

    assert f"{town.uri(copy)}  {image_id(town.uri(copy))}  is a copy of one of these and stays: --duplicates" in said
    assert town.build().photos == 66
    assert answer(folio, town, town.photos / original.partition("/")[2]) == town.uri(copy)


def test_copies_go_too_when_asked_for(folio: Folio, town: Town) -> None:
    copy = next(photo for photo in sorted(town.photos.iterdir()) if photo.name.startswith("copy-of-"))

    done = folio("takedown", town.map, "--ids", image_id(town.uri(copy)), "--duplicates", "--json").json()

    assert len(done["photos"]) == 2
    assert town.build().photos == 65
    assert folio("verify-deleted", town.map).code == 0


def test_a_photo_that_a_killed_build_had_encoded_does_not_come_in(folio: Folio, town: Town, photos: Path, tmp_path: Path) -> None:
    """It lies with two others in a finished segment that no version names."""
    for photo in sorted((photos / "database").iterdir())[1:4]:
        shutil.copy(photo, town.photos / f"new-{photo.name}")
    victim = min(town.photos.glob("new-*"))
    settings = Settings(threads=2)
    request = BuildRequest(recipe="tiny", map_url=str(town.map), photos=(str(town.photos),))
    encode(prepare(survey(request, settings), settings), settings)  # and then it is killed
    folio("takedown", town.map, "--ids", image_id(town.uri(victim)))

    resumed = town.build()

    assert resumed.photos == 67 + 2
    assert folio("verify-deleted", town.map).code == 0


def test_a_rollback_before_the_purge_leaves_the_photo_out(folio: Folio, town: Town) -> None:
    uri = town.uri(town.victim)
    folio("takedown", town.map, "--ids", image_id(uri))

    assert folio("rollback", town.map, "1").code == 0

    assert answer(folio, town, town.victim) != uri
    assert read_head(town.storage).statistics["photos"] == 66


def test_a_map_whose_photos_were_all_taken_down_says_dont_know(folio: Folio, town: Town) -> None:
    assert folio("takedown", town.map, "--bbox", "-180,-90,180,90").code == 0

    assert "don't know" in folio("query", town.map, town.victim).out


def test_what_the_command_cannot_understand_is_a_usage_error(folio: Folio, town: Town) -> None:
    assert folio("takedown", town.map).code == 2
    assert folio("takedown", town.map, "--bbox", "1,2,3").code == 2
    assert folio("verify-deleted", town.map, "--uris", "nowhere.txt").code == 2
