"""`folio models convert`: weights land under their recipe's name, never on top of others; `folio models` then lists them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from fol_model.checkpoints import ModelCard, write_weights
from fol_model.recipes import RECIPES, recipe_named, tiny
from fol_model.weights import expected_shapes, seeded_weights
from infra.settings import Settings
from pipelines.build.build import plan_build
from pipelines.build.request import BuildRequest
from pipelines.cli import main
from pipelines.engine.model import load_encoder, weights_file
from pipelines.models.convert import convert
from pipelines.models.listing import list_models
from schemas.errors import ModelError


@pytest.fixture
def checkpoint(tmp_path: Path, checkpoint_bytes: bytes) -> Path:
    path = tmp_path / "FoL_tiny.pth"
    path.write_bytes(checkpoint_bytes)
    return path


@pytest.fixture
def vits14_file(settings: Settings) -> Path:
    """Weights of a recipe that has none of its own, in the models folder."""
    file = settings.models / "fol_vits14.safetensors"
    file.parent.mkdir()
    shapes = expected_shapes(recipe_named("fol_vits14"))
    save_file({name: torch.full(shape, 0.01) for name, shape in shapes.items()}, file)
    return file


def folio(*arguments: str, models: Path) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="folio", env={"FOLIO_MODELS": str(models)})


def test_a_converted_network_is_named_after_its_recipe(checkpoint: Path, settings: Settings):
    done = convert(checkpoint, settings.models)

    assert done.written
    assert Path(done.file) == settings.models / "tiny.safetensors"
    assert (settings.models / "tiny.md").read_text().startswith("# tiny.safetensors\n\nA whole network")
    assert load_encoder("tiny", weights=Path(done.file), device="cpu").fingerprint == done.fingerprint


def test_converting_twice_changes_nothing(checkpoint: Path, settings: Settings):
    first = convert(checkpoint, settings.models)
    written = Path(first.file).stat().st_mtime_ns

    again = convert(checkpoint, settings.models)

    assert not again.written
    assert again.fingerprint == first.fingerprint
    assert Path(again.file).stat().st_mtime_ns == written


def test_other_weights_of_the_same_recipe_are_not_overwritten(checkpoint: Path, settings: Settings, tmp_path: Path):
    convert(checkpoint, settings.models)
    state = {name: torch.from_numpy(weight) for name, weight in seeded_weights(tiny()).items()}
    state["upconv.bias"] += 1
    other = tmp_path / "other.pth"
    torch.save(state, other)

    with pytest.raises(
        ModelError, match=r"tiny\.safetensors: holds other weights \(FoL_tiny\.pth\)\. Nothing was written.*--out"
    ):
        convert(other, settings.models)

    assert convert(other, tmp_path / "elsewhere").written


def test_a_damaged_file_in_the_way_is_written_anew(checkpoint: Path, settings: Settings):
    settings.models.mkdir()
    (settings.models / "tiny.safetensors").write_bytes(b"cut short")

    assert convert(checkpoint, settings.models).written


def test_a_refused_checkpoint_leaves_nothing(tmp_path: Path, settings: Settings):
    path = tmp_path / "FoL_large.pth"
    path.write_bytes(b"<html>")

    with pytest.raises(ModelError, match=r"FoL_large\.pth: is a web page, .*\. Nothing was written\.$"):
        convert(path, settings.models)

    assert not settings.models.exists()


def test_a_disk_that_fills_up_leaves_nothing(checkpoint: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fol_model.checkpoints._write_safetensors", full)

    with pytest.raises(
        ModelError, match=r"No space left on device, while writing the weights of .*What was there before still is"
    ):
        convert(checkpoint, settings.models)

    assert list(settings.models.iterdir()) == []


def test_a_backbone_gets_a_name_of_its_own_and_is_not_taken_for_a_network(tmp_path: Path, settings: Settings):
    start = tmp_path / "dinov2_tiny_pretrain.pth"
    weights = seeded_weights(tiny()).items()
    torch.save(
        {
            name.removeprefix("backbone.model."): torch.from_numpy(weight)
            for name, weight in weights
            if name.startswith("backbone.")
        },
        start,
    )

    done = convert(start, settings.models)

    assert Path(done.file).name == "tiny-backbone.safetensors"
    assert done.kind == "backbone"
    with pytest.raises(ModelError, match=r"tiny: .*start weights of a backbone"):
        load_encoder("tiny", weights=Path(done.file), device="cpu")


@pytest.mark.parametrize(("value", "found"), [(float("nan"), r"NaN or infinite: upconv\.bias"), (None, r"missing: upconv\.bias")])
def test_weights_that_cannot_be_used_are_refused_with_the_file_and_the_tensor(value: float | None, found: str, tmp_path: Path):
    state = {name: torch.from_numpy(weight) for name, weight in seeded_weights(tiny()).items()}
    if value is None:
        del state["upconv.bias"]
    else:
        state["upconv.bias"][0] = value
    save_file(state, tmp_path / "mine.safetensors")

    with pytest.raises(ModelError, match=rf"^tiny: .*mine\.safetensors: .*{found}"):
        load_encoder("tiny", weights=tmp_path / "mine.safetensors", device="cpu")


def test_a_recipe_finds_its_weights_in_the_models_folder(vits14_file: Path, settings: Settings):
    assert weights_file("fol-vits14", None, settings) == vits14_file
    assert weights_file("fol_vits14", "mine.safetensors", settings) == Path("mine.safetensors")
    assert weights_file("fol_vitb14", None, settings) is None
    with pytest.raises(ModelError, match="no recipe is called 'resnet'"):
        weights_file("resnet", None, settings)


def test_a_recipe_with_weights_of_its_own_keeps_them(checkpoint: Path, settings: Settings):
    """Else a file that happens to lie there would change what maps of that recipe are made with."""
    convert(checkpoint, settings.models)

    assert weights_file("tiny", None, settings) is None


def test_a_build_takes_the_weights_in_the_models_folder_and_hands_their_path_to_its_workers(
    vits14_file: Path, settings: Settings, tmp_path: Path
):
    photo = tmp_path / "@384562.1@6172413.5@33@U@.jpg"
    Image.new("RGB", (64, 64)).save(photo)

    prepared = plan_build(BuildRequest(map_url=str(tmp_path / "map"), photos=(str(photo),), recipe="fol-vits14"), settings)

    assert prepared.encoder.trained
    assert prepared.encoder.recipe.name == "fol_vits14"
    assert prepared.request.weights == str(vits14_file)


def test_models_says_which_recipes_have_weights_here(vits14_file: Path, settings: Settings):
    lines = {line.name: line for line in list_models(settings)}

    assert lines["fol_vits14"].weights == str(vits14_file)
    assert lines["fol_vitl14"].weights == "none here: folio models fetch fol-vitl14, or --weights FILE.safetensors"
    assert lines["tiny"].weights == "untrained (seeded)"


def test_models_says_where_weights_come_from_and_which_are_unusable(settings: Settings):
    recipe = recipe_named("fol_vits14")
    card = ModelCard(
        recipe=recipe.name, kind="full", input_size=504, parameters=1, fingerprint="f" * 64, source="FoL.pth", source_sha256=""
    )
    write_weights(settings.models / "fol_vits14.safetensors", {"a": torch.ones(1)}, card)
    (settings.models / "fol_vitb14.safetensors").write_bytes(b"cut short")

    lines = {line.name: line for line in list_models(settings)}

    assert lines["fol_vits14"].source == "FoL.pth"
    assert lines["fol_vits14"].fingerprint == "f" * 64
    assert "from FoL.pth" in lines["fol_vits14"].weights
    assert lines["fol_vitb14"].weights.startswith("unusable: ")


def test_folio_models_lists_as_text_and_as_json(settings: Settings):
    text, document = folio("models", models=settings.models), folio("models", "--json", models=settings.models)

    assert text.exit_code == document.exit_code == 0
    assert "fol_vitl14   504 px   308.8 M parameters  none here" in text.output
    assert [line["name"] for line in json.loads(document.output)] == list(RECIPES)


def test_folio_models_convert_prints_what_it_wrote(checkpoint: Path, settings: Settings, tmp_path: Path):
    shown = folio("models", "convert", str(checkpoint), "--recipe", "tiny", "--json", models=settings.models)

    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["file"] == str(settings.models / "tiny.safetensors")
    elsewhere = folio("models", "convert", str(checkpoint), "--out", str(tmp_path / "out"), models=settings.models)
    assert elsewhere.output.splitlines()[0] == str(tmp_path / "out" / "tiny.safetensors")


def test_a_refused_checkpoint_is_one_line_and_exit_code_1(tmp_path: Path, settings: Settings):
    path = tmp_path / "FoL_large.pth"
    torch.save({"best_r5": np.float64(1.0)}, path)

    shown = folio("models", "convert", str(path), models=settings.models)

    assert shown.exit_code == 1
    assert shown.stderr == f"folio: {path}: holds no state dict: 'best_r5' is a float64, not a tensor. Nothing was written.\n"


def test_json_before_the_name_of_a_command_is_a_usage_error(settings: Settings):
    assert folio("models", "--json", "fetch", "fol-vitl14", models=settings.models).exit_code == 2
    assert folio("models", "frobnicate", models=settings.models).exit_code == 2
