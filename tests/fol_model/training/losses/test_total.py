"""All terms of a batch: for both modes, any grid and any stride of the local map."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fol_model.network import Sight
from fol_model.training.config import LossWeights
from fol_model.training.losses.total import Losses, total_loss

PLACES = torch.tensor([0, 0, 0, 1, 1, 2])
WEIGHTS = LossWeights(reliability=0.5)
FOL_WEIGHTS = LossWeights(reliability=0.0)


def sight(g: int = 9, stride: int = 1, seed: int = 0, clusters: int = 8) -> Sight:
    """Photos of a place share most of their patches; descriptors and local features are hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    photos, N = len(PLACES), g * g

    def alike(*shape: int, noise: float = 0.4) -> Tensor:
        of_place = torch.randn(3, *shape, generator=generator)
        return of_place[PLACES] + noise * torch.randn(photos, *shape, generator=generator)

    plan = (2 * alike(clusters + 1, N)).softmax(dim=1).requires_grad_()
    kept = 1 - plan[:, -1]
    salience = (kept / torch.quantile(kept, 0.9, dim=1, keepdim=True)).clamp(max=1)
    reliability = alike(N).sigmoid().requires_grad_()
    score = (salience + reliability) / 2
    mask = torch.zeros(photos, N, dtype=torch.bool).scatter_(1, score.topk(30, dim=1).indices, True)
    return Sight(
        patches=alike(16, g, g).requires_grad_(),
        attention=alike(N).softmax(dim=1).requires_grad_(),
        descriptors=functional.normalize(alike(32, noise=3.0), dim=1).requires_grad_(),
        plan=plan,
        reliability=reliability,
        salience=salience,
        mask_score=score,
        mask=mask.view(-1, g, g),
        local=alike(8, 4 * g - 3, 4 * g - 3, noise=3.0)[:, :, ::stride, ::stride].requires_grad_(),
    )


def known(g: int) -> Tensor:
    reliability = torch.full((len(PLACES), g, g), torch.nan)
    reliability[0, 0], reliability[1, 1] = 1, 0
    return reliability


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("g", [9, 12])
def test_every_term_is_finite_counted_and_in_the_sum(g: int, stride: int):
    losses = total_loss(sight(g, stride), PLACES, WEIGHTS, known(g), mode="folpp")

    terms = losses.terms()
    assert all(term.isfinite() for term in terms.values())
    assert terms["global_"] > 0
    assert terms["local"] >= 0
    assert terms["separation"] > 0
    assert terms["alignment"] > 0
    assert terms["correspondence"] > 0
    assert terms["reliability"] > 0
    weighted = sum(getattr(WEIGHTS, name) * term.item() for name, term in terms.items())
    assert losses.total.item() == pytest.approx(weighted, rel=1e-5)
    assert losses.mined_pairs > 0
    assert losses.pseudo_correspondences > 0
    assert losses.triplets == 5  # the photo that is alone of its place is no anchor


def test_weights_have_the_names_of_the_terms():
    losses = total_loss(sight(), PLACES, FOL_WEIGHTS, mode="fol")

    assert all(hasattr(FOL_WEIGHTS, name) for name in losses.terms())


def gradients(losses: Losses, *of: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(losses.total, of, allow_unused=True, retain_graph=True))


def only(**weights: float) -> LossWeights:
    nothing = dict.fromkeys(("global_", "local", "separation", "alignment", "correspondence", "reliability"), 0.0)
    return LossWeights(**(nothing | weights))


@pytest.mark.parametrize(
    ("term", "learning"),
    [
        ("global_", {"descriptors"}),
        ("local", {"local"}),
        ("separation", {"plan", "reliability"}),
        ("alignment", {"plan", "reliability"}),
        ("correspondence", {"local"}),
        ("reliability", {"reliability"}),
    ],
)
def test_each_term_teaches_its_own_part_and_no_other(term: str, learning: set[str]):
    """So neither the contrast nor the correspondences move the features they compare: no gradient crosses a stop."""
    seen = sight()
    names = ("patches", "attention", "descriptors", "plan", "reliability", "local")

    found = gradients(
        total_loss(seen, PLACES, only(**{term: 1.0}), known(9), mode="folpp"), *(getattr(seen, name) for name in names)
    )

    moved = {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}
    assert moved == learning


def test_in_mode_fol_the_attention_is_aligned_and_part_of_the_mask():
    seen = sight()
    seen = replace(seen, reliability=seen.salience, mask_score=seen.confidence)

    for weights in (only(alignment=1.0), only(separation=1.0)):
        for_attention, for_plan = gradients(total_loss(seen, PLACES, weights, mode="fol"), seen.attention, seen.plan)
        assert for_attention is not None
        assert for_attention.any()
        assert for_plan is not None
        assert for_plan.any()


def test_mode_fol_refuses_to_learn_a_reliability_that_it_has_not():
    with pytest.raises(ValueError, match="must be 0 in mode fol"):
        total_loss(sight(), PLACES, WEIGHTS, known(9), mode="fol")


def test_unknown_reliability_teaches_nothing_unless_guessed():
    seen = sight()

    unknown = total_loss(seen, PLACES, WEIGHTS, mode="folpp")
    guessed = total_loss(seen, PLACES, WEIGHTS, mode="folpp", self_supervised=True)
    told = total_loss(seen, PLACES, WEIGHTS, torch.ones(6, 9, 9), mode="folpp")
    told_and_guessed = total_loss(seen, PLACES, WEIGHTS, torch.ones(6, 9, 9), mode="folpp", self_supervised=True)

    assert unknown.reliability.item() == 0
    assert guessed.reliability > 0
    assert told_and_guessed.reliability == told.reliability  # what is known is not guessed


def test_the_total_does_not_depend_on_the_order_of_the_photos():
    seen, order = sight(), torch.tensor([4, 0, 5, 2, 3, 1])
    fields = ("patches", "attention", "descriptors", "plan", "reliability", "salience", "mask_score", "mask", "local")
    shuffled = replace(seen, **{name: getattr(seen, name)[order] for name in fields})

    losses = total_loss(seen, PLACES, WEIGHTS, known(9), mode="folpp")
    again = total_loss(shuffled, PLACES[order], WEIGHTS, known(9)[order], mode="folpp")

    for name, term in losses.terms().items():
        assert again.terms()[name].item() == pytest.approx(term.item(), rel=1e-5, abs=1e-7), name
    assert again.pseudo_correspondences == losses.pseudo_correspondences
    assert again.mined_pairs == losses.mined_pairs


def test_blank_photos_and_lone_photos_are_finite_to_the_last_gradient():
    seen = sight()
    zeros = {name: torch.zeros_like(getattr(seen, name)).requires_grad_() for name in ("patches", "attention", "local")}
    blank = replace(seen, **zeros)

    for places in (PLACES, torch.arange(6), torch.zeros(6, dtype=torch.long)):
        losses = total_loss(blank, places, WEIGHTS, mode="folpp")
        losses.total.backward(retain_graph=True)
        assert losses.total.isfinite()
        assert losses.pseudo_correspondences == 0
        for leaf in (blank.patches, blank.local, blank.plan, blank.reliability, blank.descriptors):
            assert leaf.grad is None or leaf.grad.isfinite().all()


def test_half_precision_is_left_before_anything_is_summed():
    """Under autocast too, whose matrix products would be in bfloat16 again."""
    seen = sight()
    halved = replace(seen, patches=seen.patches.bfloat16(), local=seen.local.bfloat16())
    single = replace(seen, patches=halved.patches.float(), local=halved.local.float())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = total_loss(halved, PLACES, WEIGHTS, known(9), mode="folpp")

    assert losses.total.dtype == torch.float32
    assert losses.total.item() == total_loss(single, PLACES, WEIGHTS, known(9), mode="folpp").total.item()
