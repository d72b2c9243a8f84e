"""The losses against the released code, run by its authors' code on the same inputs.

Where a definition is the same the values agree to the rounding of float32. Where ours differs on purpose the test checks our
reading of the released form (`losses.released`), says why we left it, and checks the difference. A file of another prefix is
checked by naming it below.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from fol_model.local_decoder import most_confident, pack, patch_of_row
from fol_model.network import FoL, Sight
from fol_model.training.losses import released
from fol_model.training.losses.correspondences import (
    CorrespondenceRules,
    Correspondences,
    correspondence_loss,
    patch_centres,
    patch_features,
    pseudo_correspondences,
)
from fol_model.training.losses.local import local_loss, mutual_similarity
from fol_model.training.losses.metric import batch_hard_triplets, mine_pairs, multi_similarity, photos_of_a_place
from fol_model.training.losses.regions import alignment, contrast
from tests.fol_model.parity.rules import draw, network_input

Arrays = dict[str, np.ndarray[Any, Any]]
PREFIXES = ["fol-A"]  # seeds of the files at hand: A_losses.npz


@pytest.fixture(scope="module", params=PREFIXES)
def prefix(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def reference(prefix: str, shared_fol: Path) -> Arrays:
    with np.load(shared_fol / "parity" / f"{prefix[-1]}_losses.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def drawn(prefix: str, name: str, *shape: int) -> np.ndarray[Any, Any]:
    return draw(f"{prefix}/{name}", shape)


def l2(values: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


def float32(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def assert_close(found: Tensor, expected: np.ndarray[Any, Any], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rtol, atol=atol)


# Global descriptors


def test_mined_pairs_and_the_multi_similarity_loss_agree(reference: Arrays):
    descriptors, places = torch.from_numpy(reference["ms_desc"]), torch.from_numpy(reference["ms_labels"])

    pairs = mine_pairs(descriptors, places)

    assert [len(indices) for indices in pairs] == reference["ms_mined_counts"].tolist()
    assert_close(multi_similarity(descriptors, places, pairs), reference["ms_loss"])


def test_batch_hard_triplets_agree(reference: Arrays):
    triplets = batch_hard_triplets(torch.from_numpy(reference["ms_desc"]), torch.from_numpy(reference["ms_labels"]))

    np.testing.assert_array_equal(triplets.T, reference["ms_batchhard_triplets"])


# Local features


def test_the_mean_cosine_of_mutual_neighbours_agrees_where_the_released_code_has_one(reference: Arrays):
    """Where no pair is above 0.7 it has NaN, and a step of training is lost; ours is the mean over all mutual pairs."""
    query, candidates = torch.from_numpy(reference["mm_query"]), torch.from_numpy(reference["mm_cands"])

    similarity = mutual_similarity(query.expand(4, -1, -1), candidates)

    theirs = reference["mm_train_sim"]
    defined = ~np.isnan(theirs)
    assert_close(similarity[defined], theirs[defined])
    assert (~defined).sum() == 1
    for candidate in np.flatnonzero(~defined):
        assert_close(similarity[candidate], np.float32(mean_of_all_mutual_pairs(query[:60], candidates[candidate, :60])))


def mean_of_all_mutual_pairs(query: Tensor, candidate: Tensor) -> float:
    cosine = query.numpy() @ candidate.numpy().T
    mutual = (cosine == cosine.max(0)) & (cosine == cosine.max(1, keepdims=True))
    return float(cosine[mutual].mean())


def test_the_sum_over_triplets_agrees(reference: Arrays):
    query, candidates = torch.from_numpy(reference["mm_query"]), torch.from_numpy(reference["mm_cands"])
    items = {100: query, 110: query.flip(0)}
    items |= {i: candidates[i] for i in range(4)} | {10 + i: candidates[i].flip(0) for i in range(4)}
    features = torch.stack([items[int(item)] for item in reference["mm_loc_order"]])

    loss = local_loss(features, torch.from_numpy(reference["mm_triplets"]).long().T)

    assert_close(loss, reference["mm_triplet_loss_sum"])


# Where the network looks


@pytest.mark.parametrize(("scale", "suffix"), [((1, 1), ""), ((529, 50), "_peaky")])
def test_the_released_alignment_is_read_rightly(reference: Arrays, scale: tuple[int, int], suffix: str):
    confidence, attention = (
        torch.from_numpy(reference[f"kl_{name}_in"]) * by for name, by in zip(("conf", "attn"), scale, strict=True)
    )

    found = released.alignment(confidence, attention)

    if not suffix:
        np.testing.assert_array_equal(released.clipped(confidence), reference["kl_conf_clipped"])
        np.testing.assert_array_equal(released.clipped(attention), reference["kl_attn_clipped"])
    assert_close(found.confidence, reference[f"kl_loss_1{suffix}"], rtol=1e-3, atol=1e-7)  # a sum of terms that nearly cancel
    assert_close(found.attention, reference[f"kl_loss_2{suffix}"], rtol=1e-3, atol=1e-7)


def test_our_alignment_sees_differences_that_the_released_one_is_blind_to(reference: Arrays):
    """A softmax of raw shares (thousandths) is flat: it hardly tells the two maps apart. Ours divides by the sum instead, so that
    the loss does not depend on a map's scale either."""
    confidence, attention = torch.from_numpy(reference["kl_conf_in"]), torch.from_numpy(reference["kl_attn_in"])

    ours = alignment(confidence, attention)

    assert reference["kl_loss_1"] < 1e-3
    assert ours > 100 * reference["kl_loss_1"]
    assert_close(alignment(confidence * 64, attention * 9), ours.numpy(), rtol=1e-2)
    assert_close(ours, our_alignment_in_float64(confidence, attention), rtol=1e-4)


def our_alignment_in_float64(first: Tensor, second: Tensor) -> np.float64:
    a, r = (np.minimum(x, np.quantile(x, 0.9, axis=1, keepdims=True)) + 1e-6 for x in (first.numpy(), second.numpy()))
    a, r = (x.astype(np.float64) / x.sum(1, keepdims=True, dtype=np.float64) for x in (a, r))
    return np.float64((((a - r) * np.log(a / r)).sum(1)).mean())


def separation_inputs(prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    local = l2(drawn(prefix, "sep/l", 8, 20, 20, 16), -1).reshape(8, 400, 16).transpose(0, 2, 1)
    z = drawn(prefix, "sep/m", 8, 400)
    mask = 40 * np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return float32(local), float32(mask), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_the_released_foreground_and_background_term_is_read_rightly(prefix: str, reference: Arrays):
    local, mask, _ = separation_inputs(prefix)
    partner = torch.tensor([1, 0, 0, 0, 5, 4, 4, 4])  # the first remaining photo of the place

    assert_close(released.contrast(local, mask, partner), reference["sep_loss"])


def test_our_contrast_pushes_backgrounds_away_where_the_released_one_draws_them_together(prefix: str):
    """The paper's hinge has a photo's own background as the negative, and no term that wants backgrounds alike."""
    local, mask, places = separation_inputs(prefix)
    pairs = photos_of_a_place(places)
    alike = local.clone()
    alike[:, :, 200:] = alike[:1, :, 200:]  # one background for all
    M = torch.cat([mask[:, :200], torch.zeros(8, 200)], dim=1)
    partner = torch.tensor([1, 0, 0, 0, 5, 4, 4, 4])

    assert released.contrast(alike, M, partner) < released.contrast(local, M, partner)
    assert_close(contrast(local, mask, pairs), contrast_by_hand(local.numpy(), mask.numpy(), pairs.tolist()))


def contrast_by_hand(F: np.ndarray[Any, Any], M: np.ndarray[Any, Any], pairs: list[list[int]]) -> np.float64:
    fg = l2(np.einsum("bn,bcn->bc", M.astype(np.float64), F), 1)
    bg = l2(np.einsum("bn,bcn->bc", 1 - M.astype(np.float64), F), 1)
    return np.float64(np.mean([max(0, 1 - (fg[i] @ fg[j] - fg[i] @ bg[i])) for i, j in pairs]))


# Pseudo-correspondences


@pytest.fixture(scope="module")
def pair(prefix: str, reference: Arrays) -> dict[str, Tensor]:
    """Two photos whose patches correspond by a permutation, the later ones less surely."""
    perm = np.random.default_rng(zlib.crc32(f"{prefix}/ws/perm".encode())).permutation(529)
    np.testing.assert_array_equal(perm, reference["ws_true_perm"])
    f2, e = l2(drawn(prefix, "ws/f2", 48, 529), 0), l2(drawn(prefix, "ws/e", 48, 529), 0)
    g = drawn(prefix, "ws/s2", 64, 529)
    p2, p1 = (np.exp(s) / np.exp(s).sum(axis=0) for s in (3 * g, 3 * g[:, perm] + 0.5 * drawn(prefix, "ws/s1", 64, 529)))
    f1 = l2(f2[:, perm] + np.linspace(0.1, 1, 529) * e, 0)
    maps = (l2(drawn(prefix, f"ws/{name}", 89, 89, 32), -1).transpose(2, 0, 1) for name in ("l1", "l2"))
    return {
        "patches": float32(np.stack([f1, f2])),
        "plan": float32(np.stack([p1, p2])),
        "mask": float32(np.abs(0.12 * drawn(prefix, "ws/mask", 529))),
        "local": float32(np.stack(list(maps))),
    }


def in_raster_order(mask: Tensor) -> Tensor:
    """Try the patches above 0.1 in raster order but for the first, as the released code; the second photo is never first."""
    tried = mask > 0.1
    tried[tried.nonzero()[:1]] = False
    return torch.where(tried, -torch.arange(len(mask)).float(), -torch.inf).expand(2, -1)


def correspondences_of(pair: dict[str, Tensor], M: Tensor, rules: CorrespondenceRules) -> Correspondences:
    return pseudo_correspondences(pair["patches"], pair["plan"], M, torch.tensor([[0, 1]]), rules)


@pytest.mark.parametrize(("most", "suffix"), [(5, "_max5"), (529, "_all")])
def test_pseudo_correspondences_agree_under_the_released_rules(
    pair: dict[str, Tensor], reference: Arrays, most: int, suffix: str
):
    rules = CorrespondenceRules(second_needed=True, most=most)

    found = correspondences_of(pair, in_raster_order(pair["mask"]), rules)

    np.testing.assert_array_equal(found.anchor, reference[f"ws_anchor_idx{suffix}"])
    np.testing.assert_array_equal(found.positive, reference[f"ws_pos_idx{suffix}"])
    assert_close(found.similarity, reference[f"ws_sim{suffix}"])


def test_by_our_rules_anchors_are_tried_by_the_mask_and_eight_are_taken(pair: dict[str, Tensor], reference: Arrays):
    """As the paper: sorted by M, eight at most. All that the released rules find are found, and more: any patch may be an
    anchor. (Every anchor has a second candidate here: `test_correspondences` has those without.)"""
    M = pair["mask"].expand(2, -1)

    found = correspondences_of(pair, M, CorrespondenceRules())
    everything = correspondences_of(pair, M, CorrespondenceRules(most=529))

    assert len(found.anchor) == 8
    assert found.anchor.tolist() == everything.anchor[:8].tolist()
    assert (pair["mask"][everything.anchor].diff() <= 0).all()
    assert set(reference["ws_anchor_idx_all"].tolist()) <= set(everything.anchor.tolist())
    assert everything.positive.tolist() == reference["ws_true_perm"][everything.anchor].tolist()  # and all are true


def test_patches_are_centred_where_the_released_code_puts_them(reference: Arrays):
    row, column = torch.meshgrid(patch_centres(23), patch_centres(23), indexing="ij")

    np.testing.assert_array_equal(torch.stack([row, column], dim=2).view(-1, 2), reference["ws_patch_centre_on_89"])


def test_local_features_of_corresponding_patches_agree(pair: dict[str, Tensor], reference: Arrays):
    features = patch_features(pair["local"], 23)

    assert_close(features[0, :, reference["ws_anchor_idx_max5"]].T, reference["ws_anchor_desc"])
    assert_close(features[1, :, reference["ws_pos_idx_max5"]].T, reference["ws_pos_desc"])


def test_the_pair_loss_agrees_and_ours_weights_it_as_the_paper(reference: Arrays):
    """exp(s) as in eq. 6 instead of s, and divided by the weights' sum, so that the loss does not grow with the number of pairs.
    The 1e-2 is beta, in the total."""
    anchor, positive = torch.from_numpy(reference["ws_anchor_desc"]), torch.from_numpy(reference["ws_pos_desc"])
    similarity, pair_loss = torch.from_numpy(reference["ws_sim_max5"]), reference["ws_pair_loss"]

    theirs = released.correspondence_loss(anchor, positive, similarity, pairs=len(anchor))
    ours = correspondence_loss(anchor, positive, similarity)

    assert_close(1 - functional.cosine_similarity(anchor, positive, dim=1), pair_loss)
    assert_close(theirs, reference["ws_loss_this_pair"])
    weight = np.exp(reference["ws_sim_max5"].astype(np.float64))
    assert_close(ours, (weight * pair_loss).sum() / weight.sum())


# The network and its losses, end to end


@pytest.fixture(scope="module")
def sight(prefix: str, vits14: FoL) -> Sight:
    """Eight photos of two places through ViT-S at 322 pixels, as training sees them, but without dropout."""
    with torch.no_grad():
        seen: Sight = vits14(network_input(np.concatenate([photos_of(f"{prefix}-train{p}") for p in (0, 1)])))
    return seen


def photos_of(name: str, side: int = 322) -> np.ndarray[Any, Any]:
    """Rule 3 of the README beside the files, and the pair once more, shifted."""
    first = grid(name, side)
    second = np.roll(first, (14, 28), (0, 1))
    second[:, side // 2 :] = grid(f"{name}/other", side)[:, side // 2 :]
    noise = np.random.default_rng(zlib.crc32(f"{name}/noise".encode())).integers(-24, 25, size=second.shape)
    second = np.clip(second + noise, 0, 255)
    photos = [first, second, np.roll(first, 28, 1), np.roll(second, 14, 0)]
    return np.stack(photos).astype(np.uint8)


def grid(name: str, side: int) -> np.ndarray[Any, Any]:
    total = np.zeros((side, side, 3), dtype=np.int64)
    for cell, amplitude in ((56, 96), (14, 96), (7, 64)):
        cells = -(-side // cell)
        steps = np.random.default_rng(zlib.crc32(f"{name}/grid{cell}".encode())).integers(0, amplitude, size=(cells, cells, 3))
        total += steps.repeat(cell, axis=0).repeat(cell, axis=1)[:side, :side]
    return total


def test_end_to_end_the_same_photos_are_seen_and_mined(sight: Sight, reference: Arrays):
    places = torch.from_numpy(reference["e2e_labels"])
    loss = multi_similarity(sight.descriptors, places, mine_pairs(sight.descriptors, places))

    assert_close(sight.descriptors[:, :300], reference["e2e_desc_head"])
    assert_close(loss, reference["e2e_ms_loss"], rtol=1e-4)
    np.testing.assert_array_equal(batch_hard_triplets(sight.descriptors, places).T, reference["e2e_triplets"])


def test_end_to_end_the_released_alignment_agrees_and_ours_is_a_thousand_times_stronger(sight: Sight, reference: Arrays):
    """With its weight of 5e-3, beside a global loss of 1.7: 3e-7 as released, 2e-3 as ours."""
    theirs = released.alignment(sight.confidence, sight.attention)

    assert_close(theirs.confidence, reference["e2e_kl1"], rtol=1e-2)
    assert_close(theirs.attention, reference["e2e_kl2"], rtol=1e-2)
    assert alignment(sight.mass, sight.attention) > 1000 * reference["e2e_kl1"]


def released_mask_score(sight: Sight) -> Tensor:
    return sum(released.clipped(values).softmax(dim=1) for values in (sight.confidence, sight.attention))  # type: ignore[return-value]


def test_end_to_end_the_released_foreground_and_background_term_agrees(sight: Sight, reference: Arrays):
    score = released_mask_score(sight).view(8, 1, 23, 23)
    M = functional.interpolate(score, size=89, mode="bilinear", align_corners=True).flatten(1)
    features = functional.normalize(sight.local, dim=1).flatten(2)

    loss = released.contrast(features, M, torch.tensor([1, 0, 0, 0, 5, 4, 4, 4]))

    assert_close(loss, reference["e2e_sep_loss"], rtol=1e-3)


def test_end_to_end_the_local_loss_agrees(sight: Sight, reference: Arrays):
    triplets, rows = torch.from_numpy(reference["e2e_triplets"]).T.long(), patch_of_row(23, 1)
    masks = most_confident(released_mask_score(sight), 225).view(-1, 23, 23)
    packed = [pack(dense, mask, rows).features for dense, mask in zip(sight.local, masks, strict=True)]

    loss = local_loss(pad_sequence(packed, batch_first=True), triplets)

    assert_close(loss, reference["e2e_local_loss"], atol=1e-5)


def test_end_to_end_the_released_rules_find_no_correspondence_and_ours_do(sight: Sight, reference: Arrays):
    """Of this network hardly a patch has an attention of 0.1, and what has is passed over if it is the photo's first. We try
    every patch, so something is learnt from the first step on."""
    pairs = photos_of_a_place(torch.from_numpy(reference["e2e_labels"]))
    patches, plan = sight.patches.flatten(2), sight.plan[:, :-1]
    by_guide = torch.cat([in_raster_order(guide)[:1] for guide in torch.from_numpy(reference["e2e_mask_guide"])])

    theirs = pseudo_correspondences(patches, plan, by_guide, pairs, CorrespondenceRules(second_needed=True, most=5))
    ours = pseudo_correspondences(patches, plan, released_mask_score(sight), pairs, CorrespondenceRules())

    assert len(theirs.photo) == len(reference["e2e_ws_pairs"]) == 0
    assert len(ours.photo) > 10
