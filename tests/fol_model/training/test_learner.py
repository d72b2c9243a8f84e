"""A step makes the loss smaller, changes only what may change, and changes nothing when anything is wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fol_model.training import learner as learner_module
from fol_model.training.config import LossWeights
from fol_model.training.learner import Learner, TrainingDiverged, TrainingOutOfMemory
from fol_model.weights import build, seeded_weights
from tests.fol_model.training.small import batch_of, small_config, small_recipe, untrained

FOLPP = {"mode": "folpp", "dustbin": "reliability"}


def learner_of(**changed: object) -> Learner:
    return Learner(small_recipe(), None, small_config(**changed), device="cpu")


def changed_names(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", [{}, FOLPP], ids=["fol", "folpp"])
def test_the_loss_of_a_batch_gets_smaller(mode: dict[str, str], precision: str):
    recipe = small_recipe(**mode)
    learner = Learner(recipe, untrained(recipe), small_config(precision=precision), device="cpu")

    totals = [learner.step(batch_of(0)).total for _ in range(8)]

    assert totals[-1] < totals[0]
    assert all(weight.dtype == np.float32 for weight in learner.weights().values())


def test_a_report_counts_what_was_learnt_from():
    report = learner_of().step(batch_of(0))

    assert report.step == 1
    assert set(report.losses) == {"global_", "local", "separation", "alignment", "correspondence", "reliability"}
    assert report.mined_pairs > 0
    assert report.grad_norm > 0
    assert report.learning_rate == 1e-3


def test_only_the_last_blocks_the_norm_and_the_heads_learn():
    learner = learner_of(learned_blocks=1)
    before = learner.weights(ema=False)
    learner.step(batch_of(0))

    changed = changed_names(before, learner.weights(ema=False))

    backbone = {name.removeprefix("backbone.model.") for name in changed if name.startswith("backbone.")}
    assert {name.split(".")[0] for name in backbone} == {"blocks", "norm"}
    assert {name.split(".")[1] for name in backbone if name.startswith("blocks")} == {"2"}
    assert any(name.startswith("aggregator.") for name in changed)
    assert any(name.startswith("upconv") for name in changed)


def test_frozen_blocks_keep_nothing_for_a_gradient(monkeypatch: pytest.MonkeyPatch):
    seen: dict[int, bool] = {}

    def watched(*args: object) -> nn.Module:
        network = build(*args)  # type: ignore[arg-type]
        for index, block in enumerate(network.backbone.blocks):
            block.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out.requires_grad}))
        return network

    monkeypatch.setattr(learner_module, "build", watched)
    learner_of(learned_blocks=1).step(batch_of(0))

    assert seen == {0: False, 1: False, 2: True}


@pytest.mark.parametrize("blocks", [None, 3, 12])
def test_with_no_block_left_out_all_of_the_backbone_learns(blocks: int | None):
    learner = learner_of(learned_blocks=blocks)
    before = learner.weights(ema=False)
    learner.step(batch_of(0))

    still = before.keys() - changed_names(before, learner.weights(ema=False))

    assert still == {"backbone.model.mask_token"}


def test_micro_batches_add_up_to_the_mean_of_their_losses():
    """Both halves as micro-batches report the mean of what each half alone reports; without dropout, which differs."""
    whole = batch_of(0, places=4)
    halves = [
        replace(whole, images=whole.images[part], places=whole.places[part], photos=whole.photos[part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    reports = []
    for batch, accumulate in [(whole, 2), (halves[0], 1), (halves[1], 1)]:
        learner = learner_of(accumulate=accumulate)
        learner._network.eval()
        reports.append(learner.step(batch))

    both, first, second = reports
    assert both.total == pytest.approx((first.total + second.total) / 2, rel=1e-6)
    assert both.losses["global_"] == pytest.approx((first.losses["global_"] + second.losses["global_"]) / 2, rel=1e-6)
    assert both.mined_pairs == first.mined_pairs + second.mined_pairs


def test_the_running_mean_follows_the_weights():
    """At a decay of 0.9 the first step's share is still 1 / 10 of the old: decay 1 / 10 of the old, 9 / 10 of the new."""
    learner = learner_of()
    start = learner.weights(ema=False)["upconv2.bias"]
    learner.step(batch_of(0))
    now, mean = learner.weights(ema=False)["upconv2.bias"], learner.weights()["upconv2.bias"]

    assert not np.array_equal(now, start)
    np.testing.assert_allclose(mean, 0.1 * start + 0.9 * now, atol=1e-7)


def test_without_a_running_mean_the_weights_are_given():
    learner = learner_of(ema_decay=0.0)
    learner.step(batch_of(0))

    assert not changed_names(learner.weights(), learner.weights(ema=False))


def test_long_gradients_are_shortened():
    """AdamW's first moment after one step is a tenth of the gradient it was given."""
    learner = learner_of(max_grad_norm=1e-3)
    report = learner.step(batch_of(0))

    moments = [learner._optimizer.state[weight]["exp_avg"] for weight in learner._learned.values()]

    assert report.grad_norm > 1e-3
    assert float(torch.stack([moment.square().sum() for moment in moments]).sum().sqrt()) == pytest.approx(1e-4, rel=1e-3)


def test_a_step_leaves_the_callers_generator_alone():
    learner = learner_of()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    learner.step(batch_of(0))

    assert torch.equal(torch.rand(3), expected)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run():
    def losses(*, rate: float) -> list[float]:
        learner = learner_of(learning_rate=rate)
        return [learner.step(batch_of(0)).losses["global_"] for _ in range(2)]

    first, second = losses(rate=1e-12)

    assert first != pytest.approx(second, rel=1e-4)
    assert [first, second] == losses(rate=1e-12)


def test_a_nan_stops_before_weights_change_and_names_step_term_and_photos():
    learner = learner_of()
    learner.step(batch_of(0))
    before = learner.weights(ema=False)
    bad = batch_of(1)
    bad.images[3] = torch.nan

    with pytest.raises(TrainingDiverged, match=r"step 2: loss \w+ is NaN or infinite on photos place 0 photo 0, ") as stop:
        learner.step(bad)

    assert stop.value.step == 2
    assert stop.value.photos == tuple(bad.photos)
    assert not changed_names(before, learner.weights(ema=False))
    assert learner.step(batch_of(1)).step == 2


def test_a_gradient_that_is_not_finite_stops_before_weights_change():
    """Losses may be finite and a gradient not; here the averaging of the workers spoils the last one."""

    def spoil(tensors: list[Tensor]) -> None:
        if len(tensors) > 1:
            tensors[-1].fill_(torch.inf)

    learner = Learner(small_recipe(), None, small_config(), device="cpu", all_reduce=spoil)  # type: ignore[arg-type]
    before = learner.weights(ema=False)

    with pytest.raises(TrainingDiverged, match=r"step 1: the gradient of \S+ is NaN or infinite"):
        learner.step(batch_of(0))

    assert not changed_names(before, learner.weights(ema=False))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_settings_to_change(error: Exception, monkeypatch: pytest.MonkeyPatch):
    learner = learner_of(accumulate=2)
    before = learner.weights(ema=False)

    def no_memory(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(learner_module, "total_loss", no_memory)
        with pytest.raises(
            TrainingOutOfMemory, match=r"8 photos of 70 pixels in accumulate=2 .* Raise accumulate.* or lower places_per"
        ):
            learner.step(batch_of(0))

    assert not changed_names(before, learner.weights(ema=False))
    assert learner.step(batch_of(0)).step == 1


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(learner_module, "total_loss", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        learner_of().step(batch_of(0))


def test_known_reliability_teaches_the_branch():
    """The upper half of every photo is said to be hidden, the lower to be seen again."""
    recipe = small_recipe(**FOLPP)
    config = small_config(losses=LossWeights(reliability=1.0), learning_rate=1e-2)
    learner = Learner(recipe, untrained(recipe), config, device="cpu")
    known = torch.full((8, 5, 5), torch.nan)
    known[:, :2], known[:, 3:] = 0, 1

    reports = [learner.step(replace(batch_of(0), known_reliability=known)) for _ in range(15)]

    assert reports[-1].losses["reliability"] < 0.7 * reports[0].losses["reliability"]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (batch_of(0, size_px=84), r"70 pixels wide and high \(input_size\), got 84"),
        (batch_of(0, places=1), "at least 2 places for each of accumulate=1 micro-batches, or no photo has a negative; got 1"),
        (replace(batch_of(0), places=torch.arange(8) % 4), "stand next to each other"),
        (replace(batch_of(0), known_reliability=torch.zeros(8, 4, 4)), r"must be \(8, 5, 5\), got \(8, 4, 4\)"),
        (replace(batch_of(0), photos=["one"]), "8 photos, 8 places and 1 names"),
    ],
    ids=["size", "one place", "split place", "reliability", "names"],
)
def test_a_batch_that_does_not_fit_is_refused(batch: learner_module.Batch, said: str):
    with pytest.raises(ValueError, match=said):
        learner_of().step(batch)


@pytest.mark.parametrize("size_px", [71, 28])
def test_an_input_size_that_does_not_suit_the_recipe_is_refused(size_px: int):
    with pytest.raises(ValueError, match=r"input_size of training does not suit recipe small: .*14 pixels|needs at least 7"):
        learner_of(input_size=size_px)


def test_another_input_size_that_suits_the_recipe_is_trained_at():
    assert learner_of(input_size=84).step(batch_of(0, size_px=84)).step == 1


def test_reliability_cannot_be_learnt_without_a_branch():
    with pytest.raises(ValueError, match=r"recipe small is of mode fol. Set it to 0"):
        learner_of(losses=LossWeights(reliability=1.0))


def test_training_starts_from_the_weights_it_is_given():
    state = {name: weight + 1 for name, weight in seeded_weights(small_recipe()).items()}

    started = Learner(small_recipe(), state, small_config(), device="cpu").weights()

    assert all(np.array_equal(started[name], weight) for name, weight in state.items())


def test_a_recipe_without_a_seed_needs_weights():
    with pytest.raises(ValueError, match="its weights must be given"):
        Learner(small_recipe(seed=None), None, small_config(), device="cpu")
