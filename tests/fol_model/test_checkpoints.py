"""A published checkpoint becomes a safetensors file with a card, or is refused by name; nothing in it is run or half written."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fol_model.checkpoints import (
    BACKBONE,
    ModelCard,
    card_of,
    file_sha256,
    read_card,
    read_checkpoint,
    start_weights,
    write_weights,
)
from fol_model.inference import open_encoder
from fol_model.recipes import recipe_named, tiny
from fol_model.weights import build, expected_shapes, fingerprint, load_safetensors, seeded_weights

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return {name: torch.from_numpy(weight) for name, weight in seeded_weights(tiny()).items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "FoL_tiny.pth"


def training_run(state: State) -> dict[str, Any]:
    """What FoL's training saves: NumPy numbers beside the weights, and the optimiser's state."""
    return {
        "epoch_num": 5,
        "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 6e-5}]},
        "recalls": np.array([93.1, 96.9]),
        "best_r5": np.float64(96.9),
        "not_improved_num": 0,
    }


def dinov2(state: State) -> State:
    return {name.removeprefix(BACKBONE): tensor for name, tensor in state.items() if name.startswith(BACKBONE)}


@pytest.mark.parametrize("form", ["training run", "bare", "before PyTorch 1.6", "lightning", "half precision"])
def test_the_weights_of_every_form_of_checkpoint_arrive_as_they_were(form: str, state: State, path: Path, tmp_path: Path):
    if form == "half precision":
        state = {name: tensor.half() for name, tensor in state.items()}
    document = {"training run": training_run(state), "lightning": {"state_dict": state, "epoch": 1}}.get(form, state)
    if form == "before PyTorch 1.6":
        document = training_run(state)
    torch.save(document, path, _use_new_zipfile_serialization=form != "before PyTorch 1.6")

    read = read_checkpoint(path)
    write_weights(tmp_path / "out" / "tiny.safetensors", read.tensors, read.card)

    written = load_file(tmp_path / "out" / "tiny.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name].float()) for name in state)
    assert read.card == ModelCard(
        recipe="tiny",
        kind="full",
        input_size=224,
        parameters=sum(tensor.numel() for tensor in state.values()),
        fingerprint=fingerprint(replace(tiny(), seed=None), state),
        source="FoL_tiny.pth",
        source_sha256=file_sha256(path),
    )


def test_numbers_that_an_older_numpy_pickled_are_taken_too(state: State, path: Path, tmp_path: Path):
    """NumPy 2 moved `numpy.core` to `numpy._core`; the published checkpoints are older."""
    torch.save(training_run(state), path)
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(older, "w") as after:
        for entry in before.infolist():
            after.writestr(entry, before.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert b"numpy.core.multiarray" in after.read("FoL_tiny/data.pkl")

    assert read_checkpoint(older).card.recipe == "tiny"


def test_tensors_that_share_memory_or_lie_in_another_order_are_written_whole(state: State, path: Path, tmp_path: Path):
    state["upconv2.weight"] = state["upconv2.weight"].transpose(0, 1).contiguous().transpose(0, 1)
    state["aggregator.score.0.bias"] = state["aggregator.cluster_features.0.bias"]
    torch.save(state, path)

    read = read_checkpoint(path)
    write_weights(tmp_path / "tiny.safetensors", read.tensors, read.card)

    written = load_file(tmp_path / "tiny.safetensors")
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_a_converted_file_opens_as_a_trained_network_with_the_fingerprint_of_its_card(state: State, path: Path, tmp_path: Path):
    torch.save(training_run(state), path)
    read = read_checkpoint(path)
    file = tmp_path / "tiny.safetensors"
    write_weights(file, read.tensors, read.card)

    encoder = open_encoder("tiny", weights=file, device="cpu")

    assert encoder.trained
    assert encoder.fingerprint == read.card.fingerprint
    assert read_card(file) == read.card
    assert f"`{read.card.fingerprint}`" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", ["fol_vits14", "fol_vitb14", "fol_vitl14"])
def test_the_recipe_is_told_from_the_shapes(name: str, tmp_path: Path):
    """The tensors are one number spread out, so that no gigabyte is written."""
    state = {name: torch.zeros(()).expand(shape) for name, shape in expected_shapes(recipe_named(name)).items()}
    path, start = tmp_path / "full.pth", tmp_path / "start.pth"
    torch.save({key: tensor for key, tensor in state.items() if key != "upconv.bias"}, path)
    torch.save({key: tensor for key, tensor in dinov2(state).items() if key != "norm.bias"}, start)

    with pytest.raises(ValueError, match=rf"recipe {name}: missing: upconv\.bias$"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match=rf"recipe {name}: missing: backbone\.model\.norm\.bias$"):
        read_checkpoint(start)


def test_a_recipe_may_be_spelled_with_hyphens():
    assert recipe_named("fol-vitl14") == recipe_named("fol_vitl14")


def test_what_is_missing_unexpected_and_misshapen_is_named_and_counted(state: State, path: Path):
    for index in range(5):
        state[f"extra.{index}"] = torch.ones(1)
    del state["upconv.bias"]
    state["upconv2.bias"] = torch.ones(7)
    torch.save(state, path)

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: these are not weights for recipe tiny: ") as refusal:
        read_checkpoint(path)

    assert "missing: upconv.bias; " in str(refusal.value)
    assert "unexpected: extra.0, extra.1, extra.2 and 2 more; " in str(refusal.value)
    assert "misshapen: upconv2.bias is (7,) instead of (128,)" in str(refusal.value)


def test_another_recipe_than_the_files_is_refused(state: State, path: Path):
    torch.save(state, path)

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: these are not weights for recipe fol_vits14: missing"):
        read_checkpoint(path, recipe="fol-vits14")
    with pytest.raises(ValueError, match="no recipe is called 'resnet'"):
        read_checkpoint(path, recipe="resnet")


def test_weights_of_a_network_that_no_recipe_knows_are_refused_with_what_they_are(path: Path):
    state = {"cls_token": torch.ones(1, 1, 1536)} | {f"blocks.{index}.ls1.gamma": torch.ones(1536) for index in range(40)}
    torch.save(state, path)

    with pytest.raises(ValueError, match="fits no recipe: it has tokens of 1536 channels and 40 blocks; there are fol_vits14"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_with_the_name_of_its_tensor(value: float, state: State, path: Path):
    state["upconv.weight"][3, 2, 1, 0] = value
    torch.save(state, path)

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: .*NaN or infinite: upconv\.weight"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match=r"NaN or infinite: upconv\.weight"):
        build(tiny(), state)


def test_tensors_that_hold_no_plain_numbers_are_refused(state: State, path: Path):
    state["upconv.bias"] = state["upconv.bias"].to(torch.int32)
    torch.save(state, path)

    with pytest.raises(ValueError, match=r"plain floating-point numbers, but upconv\.bias is torch\.int32"):
        read_checkpoint(path)


def test_a_salad_checkpoint_is_refused_by_name(state: State, path: Path):
    salad = {name: tensor for name, tensor in state.items() if not name.startswith("upconv")}
    torch.save({"state_dict": salad | {"aggregator.dust_bin": torch.tensor(1.0)}}, path)

    with pytest.raises(ValueError, match=r"is a SALAD checkpoint: .*Use FoL's own weights \(FoL_large\.pth, FoL_base\.pth\)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (pickle.dumps({"a": 1}), "is a Python pickle that torch.save did not write"),
        (bytes(range(7, 200)), "is no PyTorch checkpoint"),
        (b"PK\x03\x04 and nothing more", "is cut short or damaged"),
    ],
    ids=["empty", "web page", "lfs", "pickle", "noise", "zip head"],
)
def test_a_file_of_another_kind_is_refused_by_name_with_what_it_is(content: bytes, found: str, path: Path):
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"FoL_tiny\.pth: {found}"):
        read_checkpoint(path)


def test_a_file_that_is_not_there_is_refused_by_name(path: Path):
    with pytest.raises(ValueError, match=r"FoL_tiny\.pth"):
        read_checkpoint(path)


def test_a_zip_of_something_else_and_renamed_safetensors_are_told_apart(state: State, path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/1.jpg", b"jpeg")
    with pytest.raises(ValueError, match="is a zip archive, but no PyTorch checkpoint"):
        read_checkpoint(path)

    save_file(state, path)
    with pytest.raises(ValueError, match="is a safetensors file, whatever its name"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(zipped: bool, kept: float, state: State, path: Path):
    torch.save(training_run(state), path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(kept * path.stat().st_size))

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: is .*(cut short|damaged).*Download it again"):
        read_checkpoint(path)


def test_a_flipped_bit_in_a_tensor_is_found(state: State, path: Path):
    torch.save(training_run(state), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match="is damaged: the checksum of FoL_tiny/data/"):
        read_checkpoint(path)


class Program:
    """Unpickled, it makes a file. Only `weights_only` stands between it and the disk."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_in_a_checkpoint_is_named_and_not_run(zipped: bool, state: State, path: Path, tmp_path: Path):
    document = training_run(state) | {"hello": Program(tmp_path / "was-here")}
    torch.save(document, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: holds Python code \(posix\.mkdir\), which Folio never runs"):
        read_checkpoint(path)

    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({}, "holds no weights: .*found an empty dict"),
        ([torch.ones(1)], "holds no weights: .*found a list"),
        ({"epoch": 3}, "holds no state dict: 'epoch' is a int, not a tensor"),
        ({"module.a": torch.ones(1), "a": torch.ones(1)}, "names tensors twice"),
    ],
)
def test_a_checkpoint_without_weights_is_refused(document: object, found: str, path: Path):
    torch.save(document, path)

    with pytest.raises(ValueError, match=rf"FoL_tiny\.pth: {found}"):
        read_checkpoint(path)


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_no_other(state: State, tmp_path: Path):
    file = tmp_path / "tiny.safetensors"
    card = card_of(tiny(), state, source="a test")
    write_weights(file, state, card)
    before = file.read_bytes()
    broken = state | {"upconv2.weight": torch.ones(3, dtype=torch.int64)}  # fails in the middle of the file

    with pytest.raises(ValueError, match=r"upconv2\.weight"):
        write_weights(file, broken, card)

    assert file.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tiny.md", "tiny.safetensors"]


def test_a_file_without_a_card_or_of_another_kind_says_so(state: State, tmp_path: Path):
    save_file(state, tmp_path / "plain.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")

    assert read_card(tmp_path / "plain.safetensors") is None
    with pytest.raises(ValueError, match=r"noise\.safetensors: expected a safetensors file"):
        read_card(tmp_path / "noise.safetensors")


@pytest.fixture
def backbone(state: State, path: Path, tmp_path: Path) -> Path:
    """Start weights, converted from a file as DINOv2 publishes them."""
    torch.save(dinov2(state), path)
    read = read_checkpoint(path)
    file = tmp_path / "tiny-backbone.safetensors"
    write_weights(file, read.tensors, read.card)
    return file


def test_dinov2s_start_weights_become_a_backbone_that_training_can_begin_from(backbone: Path, state: State):
    card = read_card(backbone)
    assert card is not None
    assert (card.kind, card.recipe) == ("backbone", "tiny")

    start = start_weights(backbone, tiny(), seed=3)

    network = build(tiny(), start)  # complete
    assert torch.equal(network.backbone.pos_embed, state["backbone.model.pos_embed"])
    again, other = start_weights(backbone, tiny(), seed=3), start_weights(backbone, tiny(), seed=4)
    assert torch.equal(start["upconv.weight"], again["upconv.weight"])
    assert not torch.equal(start["upconv.weight"], other["upconv.weight"])


def test_a_backbone_is_refused_where_a_network_is_needed(backbone: Path):
    with pytest.raises(ValueError, match=r"tiny-backbone\.safetensors: holds start weights of a backbone, without the heads"):
        open_encoder("tiny", weights=backbone, device="cpu")


def test_a_pth_that_was_not_converted_says_how_to(state: State, path: Path):
    torch.save(state, path)

    with pytest.raises(ValueError, match=r"FoL_tiny\.pth: expected a safetensors file.*folio models convert FILE\.pth"):
        load_safetensors(path)


def test_fol_weights_start_folpp_with_a_branch_that_says_a_half_everywhere(state: State, tmp_path: Path):
    """So that FoL++ begins as FoL: its last layer is zero."""
    file = tmp_path / "tiny.safetensors"
    write_weights(file, state, card_of(tiny(), state, source="a test"))

    start = start_weights(file, replace(tiny(), mode="folpp"), seed=0)

    assert not start["reb.out.weight"].any()
    assert torch.equal(start["upconv.weight"], state["upconv.weight"])


def test_start_weights_with_half_a_head_are_refused(state: State, tmp_path: Path):
    del state["aggregator.score.0.bias"]
    save_file(state, tmp_path / "half.safetensors")

    with pytest.raises(ValueError, match=r"half\.safetensors: .*missing: aggregator\.score\.0\.bias"):
        start_weights(tmp_path / "half.safetensors", tiny(), seed=0)


def test_drawing_heads_leaves_the_random_numbers_of_the_process_alone(backbone: Path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    start_weights(backbone, tiny(), seed=5)

    assert torch.equal(torch.rand(3), expected)
