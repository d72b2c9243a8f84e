"""The network against the reference implementation, run by its authors' code on the same made-up weights and images.

Tolerances are those of the README beside the files: what the reference in float32 differs from itself in float64, and a margin.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fol_model import count_mutual_matches
from fol_model.aggregation import Aggregation, guide_of
from fol_model.backbone import BackboneFeatures
from fol_model.matching import mutual_pairs
from fol_model.network import Extraction, FoL
from tests.fol_model.parity.rules import chained_crc32, network_input

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=[224, 308])
def reference(request: pytest.FixtureRequest, shared_fol: Path) -> Arrays:
    with np.load(shared_fol / "parity" / f"A_vits14_{request.param}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def images(reference: Arrays) -> Tensor:
    return network_input(reference["images_uint8"])


@pytest.fixture(scope="module")
def features(vits14: FoL, images: Tensor) -> BackboneFeatures:
    features: BackboneFeatures = vits14.backbone(images)
    return features


@pytest.fixture(scope="module")
def aggregation(vits14: FoL, features: BackboneFeatures) -> Aggregation:
    aggregation: Aggregation = vits14.aggregator(features, guide_of(features.attention, 0.01))
    return aggregation


@pytest.fixture(scope="module")
def extraction(vits14: FoL, images: Tensor) -> Extraction:
    return vits14.extract(images)


def assert_close(found: Tensor, expected: np.ndarray[Any, Any], atol: float) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


def test_the_made_up_weights_are_those_of_the_reference_bit_for_bit(
    vits14_weights: dict[str, np.ndarray[Any, Any]],
):
    assert len(vits14_weights) == 191
    assert sum(weight.size for weight in vits14_weights.values()) == 24_057_792
    assert chained_crc32(vits14_weights) == 3263973587


def test_tokens_enter_the_first_block_with_the_resampled_position_table(vits14: FoL, images: Tensor, reference: Arrays):
    tokens = vits14.backbone.embed(images)[:, reference["embed_rows_index"]]

    assert_close(tokens, reference["embed_rows"], atol=1e-5)


def test_patch_tokens_and_the_class_token_agree(features: BackboneFeatures, reference: Arrays):
    patches = features.patches.flatten(2).transpose(1, 2)[:, reference["feat_rows_index"]]

    assert_close(patches, reference["feat_rows"], atol=1e-4)
    assert_close(features.token, reference["cls_token_out"], atol=1e-4)


def test_the_class_attention_is_the_sum_over_the_heads_of_the_last_block(features: BackboneFeatures, reference: Arrays):
    assert_close(features.attention, reference["attn_cls_sum_heads"], atol=5e-6)


def test_the_same_patches_have_attention_above_the_floor(vits14: FoL, features: BackboneFeatures, reference: Arrays):
    guide = guide_of(features.attention, 0.01).numpy()

    np.testing.assert_array_equal(guide > 0, reference["mask_guide"] > 0)
    np.testing.assert_allclose(guide, reference["mask_guide"], rtol=0, atol=5e-6)


def test_cluster_scores_agree(vits14: FoL, features: BackboneFeatures, reference: Arrays):
    scores = vits14.aggregator.score(features.patches).flatten(2)[:, :, reference["feat_rows_index"]]

    assert_close(scores, reference["scores_rows"], atol=1e-4)


def test_the_transport_plan_and_its_dustbin_agree(aggregation: Aggregation, reference: Arrays):
    assert_close(aggregation.plan[:, :-1], reference["sinkhorn_p"], atol=1e-5)
    assert_close(aggregation.plan[:, -1], reference["sinkhorn_dustbin"], atol=1e-5)
    assert_close(aggregation.confidence, reference["confidence_raw"], atol=1e-6)


def test_global_descriptors_agree(extraction: Extraction, reference: Arrays):
    expected = reference["global_desc"]

    assert extraction.descriptors.shape == (2, 8448)
    assert_close(extraction.descriptors, expected, atol=1e-6)
    assert ((extraction.descriptors.numpy() * expected).sum(axis=1) > 1 - 1e-6).all()


def test_the_same_225_patches_keep_their_local_features(extraction: Extraction, reference: Arrays):
    np.testing.assert_array_equal(extraction.patch_mask.numpy(), reference["mask_patch"].astype(bool))
    chosen = [np.flatnonzero(mask) for mask in extraction.patch_mask.flatten(1).numpy()]
    np.testing.assert_array_equal(chosen, np.sort(reference["topk_sorted"], axis=1))


def test_the_dense_local_map_agrees(vits14: FoL, features: BackboneFeatures, reference: Arrays):
    dense = functional.normalize(vits14.decoder(features.patches), dim=1)
    rows = dense.flatten(2).transpose(1, 2)[:, reference["local_dense_index"]]

    assert_close(rows, reference["local_dense_rows"], atol=1e-5)


def test_local_features_come_in_the_references_order_without_its_padding(extraction: Extraction, reference: Arrays):
    for found, packed, count in zip(extraction.local_features, reference["local_packed"], reference["local_count"], strict=True):
        assert len(found) == count
        assert_close(found, packed[:count], atol=1e-5)
        assert not packed[count:].any()


def test_each_local_feature_lies_in_the_patch_that_the_upsampled_mask_says(extraction: Extraction, reference: Arrays):
    """The n-th feature is the n-th pixel of the upsampled mask; its patch is where nearest up-sampling took the pixel from."""
    g = extraction.patch_mask.shape[1]
    numbered = torch.arange(g * g, dtype=torch.float32).view(1, 1, g, g)
    patch_of_pixel = functional.interpolate(numbered, size=4 * g - 3, mode="nearest")[0, 0].long()
    for patches, mask in zip(extraction.patches, reference["mask_upsampled"], strict=True):
        expected = patch_of_pixel[torch.from_numpy(mask.astype(bool))]
        assert (patches[:, 0] * g + patches[:, 1]).tolist() == expected.tolist()


def test_match_counts_are_exactly_the_references(extraction: Extraction, reference: Arrays):
    features = extraction.local_features

    counts = [[count_mutual_matches(query, candidate) for candidate in features] for query in features]

    np.testing.assert_array_equal(counts, reference["match_scores"])


def test_the_same_features_choose_each_other(extraction: Extraction, reference: Arrays):
    pairs = mutual_pairs(*extraction.local_features)

    found = set(zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True))
    expected = set(zip(reference["mnn01_query_idx"].tolist(), reference["mnn01_cand_idx"].tolist(), strict=True))
    assert found == expected
    assert_close(pairs.cosine, reference["mnn01_cos"], atol=1e-5)
