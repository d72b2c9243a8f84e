"""Weights are fetched from a hub that answers, breaks off, lies, or is not there. The hub is on 127.0.0.1."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fol_model.inference import open_encoder
from infra.settings import Settings
from pipelines.models import fetch as fetching
from pipelines.models.fetch import fetch
from schemas.errors import ModelError
from tests.pipelines.models.hub import COMMIT, Hub, running

HALF = 2_000_000


def files_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def test_published_weights_are_downloaded_converted_and_say_where_they_come_from(hub: Hub, hub_settings: Settings):
    done = fetch("tiny", hub_settings.models, hub_settings)

    assert done.written
    assert done.source == f"someone/FoL/FoL_tiny.pth@{COMMIT}"
    assert files_in(hub_settings.models) == ["tiny.md", "tiny.safetensors"]
    encoder = open_encoder("tiny", weights=Path(done.file), device="cpu")
    assert encoder.fingerprint == done.fingerprint
    assert hub.asked == [
        ("HEAD", "/someone/FoL/resolve/main/FoL_tiny.pth", None),
        ("GET", f"/someone/FoL/resolve/{COMMIT}/FoL_tiny.pth", None),  # the version that was asked about, whatever came since
    ]


def test_nothing_but_the_file_is_asked_for_and_nothing_told_about_this_machine(hub: Hub, hub_settings: Settings):
    fetch("tiny", hub_settings.models, hub_settings)

    assert {path.rsplit("/", 1)[1] for _, path, _ in hub.asked} == {"FoL_tiny.pth"}
    assert not any("torch" in agent for agent in hub.user_agents)


def test_weights_that_are_there_are_not_fetched_again(hub: Hub, hub_settings: Settings):
    first = fetch("tiny", hub_settings.models, hub_settings)
    hub.asked.clear()

    again = fetch("tiny", hub_settings.models, hub_settings)

    assert not again.written
    assert again.fingerprint == first.fingerprint
    assert hub.asked == []
    assert again.lines()[0].startswith("already there: ")


def test_a_download_that_broke_off_goes_on_where_it_was(hub: Hub, hub_settings: Settings):
    hub.break_after = HALF
    with pytest.raises(ModelError, match=r"it answered 503\. The 2\.0 MB that arrived are kept: run the same command again"):
        fetch("tiny", hub_settings.models, hub_settings)
    (part,) = files_in(hub_settings.models)
    assert part.endswith(".part")
    hub.status, hub.break_after = 200, None
    hub.asked.clear()

    done = fetch("tiny", hub_settings.models, hub_settings)

    assert done.written
    assert hub.asked[-1][2] == f"bytes={HALF}-"
    assert files_in(hub_settings.models) == ["tiny.md", "tiny.safetensors"]


def test_a_hiccup_is_bridged_within_one_run(hub: Hub, hub_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """The connection breaks once; the client asks for the rest by itself."""

    def recover(_: float) -> None:
        hub.status, hub.break_after = 200, None

    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=recover))
    hub.break_after = HALF

    assert fetch("tiny", hub_settings.models, hub_settings).written
    assert [asked[2] for asked in hub.asked] == [None, None, f"bytes={HALF}-"]


def test_bytes_that_are_not_those_announced_are_thrown_away(hub: Hub, hub_settings: Settings):
    hub.altered = True

    with pytest.raises(ModelError, match=r"arrived damaged: sha256 .* It was removed, nothing else was changed"):
        fetch("tiny", hub_settings.models, hub_settings)

    assert files_in(hub_settings.models) == []


def test_a_file_in_another_store_is_fetched_and_resumed_there_without_the_token(
    hub: Hub, hub_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """As the real hub does with large files: it redirects, and the store has no business with the user's token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running(Hub(files=hub.files, break_after=HALF)) as store:
        hub.store = store
        with pytest.raises(ModelError, match=r"The 2\.0 MB that arrived are kept"):
            fetch("tiny", hub_settings.models, hub_settings)
        store.status, store.break_after = 200, None

        done = fetch("tiny", hub_settings.models, hub_settings)

    assert done.written
    assert store.asked[-1][2] == f"bytes={HALF}-"
    assert hub.tokens == {"Bearer hf_secret"}
    assert store.tokens == {None}


def test_a_file_that_grew_too_long_is_fetched_anew(hub: Hub, hub_settings: Settings, checkpoint_bytes: bytes):
    hub.break_after = HALF
    with pytest.raises(ModelError):
        fetch("tiny", hub_settings.models, hub_settings)
    (part,) = hub_settings.models.iterdir()
    part.write_bytes(checkpoint_bytes + b"more")
    hub.status, hub.break_after = 200, None

    assert fetch("tiny", hub_settings.models, hub_settings).written


def test_a_hub_that_has_no_such_file_says_404_and_how_to_go_on(hub: Hub, hub_settings: Settings):
    hub.files.clear()

    with pytest.raises(
        ModelError, match=r"it has no such file \(404\)\. Nothing was changed\. Try again, or download it by hand from "
    ) as error:
        fetch("tiny", hub_settings.models, hub_settings)

    assert str(error.value).endswith(
        f"{hub.url}/someone/FoL/resolve/main/FoL_tiny.pth and run: folio models convert FoL_tiny.pth"
    )
    assert not hub_settings.models.exists()


@pytest.mark.parametrize(("status", "advice"), [(401, "Set HF_TOKEN"), (403, "Set HF_TOKEN"), (500, "it answered 500")])
def test_a_hub_that_refuses_is_quoted(
    status: int, advice: str, hub: Hub, hub_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    hub.status = status

    with pytest.raises(ModelError, match=advice):
        fetch("tiny", hub_settings.models, hub_settings)


def test_a_web_server_that_is_no_hub_is_told_apart(hub: Hub, hub_settings: Settings):
    hub.a_hub = False

    with pytest.raises(ModelError, match=r"so this is no Hugging Face hub.*Check HF_ENDPOINT"):
        fetch("tiny", hub_settings.models, hub_settings)


def test_without_a_network_one_line_says_what_was_tried_and_what_to_do(nobody_there: Settings):
    with pytest.raises(ModelError, match=f"no download from {nobody_there.hub}: .*Nothing was changed.*by hand") as error:
        fetch("tiny", nobody_there.models, nobody_there)

    assert "\n" not in str(error.value)
    assert not nobody_there.models.exists()


def test_the_hubs_own_switch_for_working_offline_is_heeded(hub: Hub, hub_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets

    with pytest.raises(ModelError, match=r"no download from .*offline.*Nothing was changed"):
        fetch("tiny", hub_settings.models, hub_settings)

    assert hub.asked == []


def test_a_disk_that_is_too_small_is_found_out_first(hub: Hub, hub_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))

    with pytest.raises(
        ModelError, match=r"FoL_tiny\.pth and its conversion need 0\.0 GB, but 0\.0 GB are free\. Nothing was downloaded"
    ):
        fetch("tiny", hub_settings.models, hub_settings)

    assert [method for method, _, _ in hub.asked] == ["HEAD"]


def test_a_published_file_that_is_no_checkpoint_is_kept_and_named(hub: Hub, hub_settings: Settings):
    hub.files["someone/FoL/FoL_tiny.pth"] = b"<html>Moved</html>"

    with pytest.raises(ModelError, match=r"models/FoL_tiny\.pth: is a web page"):
        fetch("tiny", hub_settings.models, hub_settings)

    assert files_in(hub_settings.models) == ["FoL_tiny.pth"]


def test_weights_of_ones_own_are_not_replaced(hub: Hub, hub_settings: Settings):
    hub_settings.models.mkdir()
    (hub_settings.models / "tiny.safetensors").write_bytes(b"mine, damaged")

    with pytest.raises(ModelError, match=r"tiny\.safetensors: .*Nothing was downloaded\. Remove that file"):
        fetch("tiny", hub_settings.models, hub_settings)

    assert hub.asked == []


@pytest.mark.parametrize("name", ["fol-vits14", "resnet"])
def test_names_under_which_nothing_is_published_are_refused_with_those_there_are(name: str, settings: Settings):
    with pytest.raises(ModelError, match=r"published for .*fol-vitb14, fol-vitl14|only for fol-vitb14, fol-vitl14"):
        fetch(name, settings.models, settings)
