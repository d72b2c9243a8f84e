"""The door for pipelines: what comes out, that it does not depend on company or threads, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from safetensors.torch import save_file

from fol_model.config import PoolConfig, RerankConfig
from fol_model.inference import DRAWN_PAIRS, EncodedPhoto, Encoder, Reranked, Reranker, as_stored, open_encoder, use_threads
from fol_model.recipes import fol_vits14, tiny
from fol_model.weights import seeded_weights
from schemas.local_features import LocalFeatures

PROJECT = Path(__file__).parents[2]

Photo = UInt8[np.ndarray, "_ _ 3"]


def photo(seed: int, height: int = 120, width: int = 160) -> Photo:
    """Coloured noise in blocks of 8 pixels."""
    cells = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return cells.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def digest(encoded: list[EncodedPhoto]) -> str:
    parts = [part for one in encoded for part in (one.descriptor, one.features, one.patch, one.reliability)]
    return sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    use_threads(3)
    yield
    use_threads(before)


def test_a_photo_becomes_a_descriptor_and_103_local_features(tiny_encoder: Encoder):
    [encoded] = tiny_encoder.encode([photo(0)])

    assert encoded.descriptor.shape == (tiny_encoder.descriptor_dim,) == (8448,)
    assert np.linalg.norm(encoded.descriptor) == pytest.approx(1, abs=1e-5)
    assert encoded.features.shape == (tiny_encoder.max_local_features, tiny_encoder.local_dim) == (103, 128)
    assert encoded.features.dtype == np.int8
    assert (np.abs(encoded.features).max(axis=1) == 127).all()
    assert len(np.unique(encoded.patch, axis=0)) == 103
    assert encoded.patch.max() < tiny_encoder.grid_side == 16


def test_the_most_reliable_patch_has_all_of_255(tiny_encoder: Encoder):
    """More than a tenth of the patches are kept, and all those reach the 90th percentile."""
    [encoded] = tiny_encoder.encode([photo(0)])

    assert encoded.reliability.max() == 255
    assert (encoded.reliability == 255).sum() >= 25
    assert encoded.reliability.min() > 0


def test_a_photo_is_encoded_the_same_alone_and_in_company(tiny_encoder: Encoder):
    photos = [photo(seed, height=100 + 10 * seed) for seed in range(5)]

    together = tiny_encoder.encode(photos)

    assert digest(together) == digest([tiny_encoder.encode([one])[0] for one in photos])


def test_the_number_of_threads_does_not_change_a_bit(tiny_encoder: Encoder, three_threads: None):
    photos = [photo(seed) for seed in range(4)]
    with_three = digest(tiny_encoder.encode(photos))
    use_threads(1)

    assert digest(tiny_encoder.encode(photos)) == with_three


def test_encoding_leaves_the_callers_thread_count_alone(tiny_encoder: Encoder, three_threads: None):
    tiny_encoder.encode([photo(0)])

    assert torch.get_num_threads() == 3


def test_several_threads_may_share_an_encoder(tiny_encoder: Encoder):
    photos = [photo(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        digests = set(pool.map(lambda _: digest(tiny_encoder.encode(photos)), range(6)))

    assert digests == {digest(tiny_encoder.encode(photos))}


def test_another_process_encodes_the_same(tiny_encoder: Encoder):
    """A fresh interpreter without type checks, on two threads."""
    program = (
        "import torch; from fol_model.inference import *; from tests.fol_model.test_inference import *; use_threads(2);"
        "print(digest(open_encoder('tiny', weights=None, device='cpu').encode([photo(0), photo(1)])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)

    assert done.stdout.strip() == digest(tiny_encoder.encode([photo(0), photo(1)]))


def test_photos_of_any_shape_are_taken(tiny_encoder: Encoder):
    encoded = tiny_encoder.encode([photo(0, 1, 1), photo(0, 3, 500), photo(0, 224, 224)])

    assert all(np.isfinite(one.descriptor).all() for one in encoded)
    assert [len(one.features) for one in encoded] == [103, 103, 103]


def test_a_photo_of_one_colour_is_encoded_without_a_fault(tiny_encoder: Encoder):
    [encoded] = tiny_encoder.encode([np.full((50, 50, 3), 128, np.uint8)])

    assert np.isfinite(encoded.descriptor).all()
    assert np.isfinite(encoded.features).all()


def test_no_photos_give_no_descriptions(tiny_encoder: Encoder):
    assert tiny_encoder.encode([]) == []


def test_the_settings_are_plain_json(tiny_encoder: Encoder):
    settings = tiny_encoder.settings()

    assert json.loads(json.dumps(settings)) == settings
    assert settings["name"] == "tiny"
    assert settings["backbone"]["embed_dim"] == 96


def test_seeded_weights_are_said_to_be_untrained_and_given_ones_trained(tiny_encoder: Encoder, tmp_path: Path):
    path = tmp_path / "tiny.safetensors"
    save_file({name: torch.from_numpy(weight) for name, weight in seeded_weights(tiny()).items()}, path)

    given = open_encoder("tiny", weights=path, device="cpu")

    assert not tiny_encoder.trained
    assert given.trained
    assert given.recipe.seed is None


def test_a_recipe_without_a_seed_says_how_to_give_weights():
    with pytest.raises(ValueError, match=r"fol_vits14 has no weights of its own: give them with --weights FILE\.safetensors"):
        open_encoder("fol_vits14", weights=None)
    with pytest.raises(ValueError, match="fol_vits14 has no seed"):
        Encoder(fol_vits14())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"sees no GPU\. Use cpu or auto"):
        open_encoder("tiny", weights=None, device="cuda")


def similar_photos(encoder: Encoder) -> list[EncodedPhoto]:
    """A photo, itself moved by one patch, and two others."""
    first = photo(0, 224, 224)
    return encoder.encode([first, np.roll(first, 14, axis=1), photo(1, 224, 224), photo(2, 224, 224)])


def rerank(encoder: Encoder, config: RerankConfig) -> Reranked:
    """The moved photo comes last in the pool."""
    query, moved, *others = similar_photos(encoder)
    return Reranker(config).rerank(query, [*others, moved], np.array([0.6, 0.6, 0.6, 0.1, 0.0]))


@pytest.mark.parametrize("mode", ["adaptive", "count", "paper"])
def test_the_candidate_that_shows_the_same_comes_first(tiny_encoder: Encoder, mode: Any):
    reranked = rerank(tiny_encoder, RerankConfig(mode=mode))

    assert reranked.order[0] == 2
    assert reranked.matches[2] > max(reranked.matches[:2])
    assert (np.diff(reranked.scores[reranked.order]) <= 0).all()


def test_matched_patches_are_the_pairs_that_count_each_once(tiny_encoder: Encoder):
    """In mode `paper` all matches count; in mode `adaptive` those that the other candidates have not."""
    for mode, share in (("paper", 1.0), ("adaptive", 0.5)):
        reranked = rerank(tiny_encoder, RerankConfig(mode=mode))
        drawn, matches = len(reranked.matched_patches), reranked.matches[reranked.order[0]]

        assert share * min(matches, DRAWN_PAIRS) <= drawn <= min(matches, DRAWN_PAIRS)
        assert len(np.unique(reranked.matched_patches, axis=0)) == drawn


def test_of_the_pairs_of_a_candidate_those_are_drawn_that_others_do_not_have(tiny_encoder: Encoder):
    """The other candidates show the left half of the query, so the first alone has the right one, and that is why it is first."""
    pixels = photo(0)
    half = pixels.shape[1] // 2
    other = [np.concatenate([pixels[:, :half], photo(seed)[:, half:]], axis=1) for seed in (7, 8, 9)]
    query, same, *others = tiny_encoder.encode([pixels, pixels, *other])

    reranked = Reranker(RerankConfig()).rerank(query, [*others, same], np.full(4, 0.5))

    assert reranked.order[0] == 3
    assert reranked.matches[:3].min() > 20
    assert (reranked.matched_patches[:, 1] >= 8).mean() > 0.8


def test_a_photo_moved_by_one_patch_matches_one_patch_further(tiny_encoder: Encoder):
    """Columns wrap around: the photo was rolled by 14 pixels."""
    patches = rerank(tiny_encoder, RerankConfig()).matched_patches.astype(int)

    moved_by_one = (patches[:, 0] == patches[:, 2]) & ((patches[:, 1] + 1) % 16 == patches[:, 3])
    assert moved_by_one.mean() > 0.5


def test_equal_candidates_keep_their_global_order(tiny_encoder: Encoder):
    query, moved, *_ = similar_photos(tiny_encoder)

    reranked = Reranker(RerankConfig(mode="paper")).rerank(query, [moved, moved, moved], np.array([0.9, 0.9, 0.9]))

    assert reranked.order.tolist() == [0, 1, 2]


def test_reranking_does_not_depend_on_the_number_of_threads(tiny_encoder: Encoder, three_threads: None):
    with_three = rerank(tiny_encoder, RerankConfig())
    use_threads(1)
    with_one = rerank(tiny_encoder, RerankConfig())

    assert with_one.scores.tobytes() == with_three.scores.tobytes()
    assert with_one.order.tolist() == with_three.order.tolist()


def test_an_empty_pool_and_photos_without_features_are_fine(tiny_encoder: Encoder):
    query, other = tiny_encoder.encode([photo(0), photo(1)])
    blank = replace(other, features=other.features[:0], patch=other.patch[:0], reliability=other.reliability[:0])
    reranker = Reranker(RerankConfig())

    assert reranker.rerank(query, [], np.empty(0)).order.shape == (0,)
    reranked = reranker.rerank(query, [blank], np.array([0.5]))
    assert (reranked.matches.tolist(), reranked.local_scores.tolist()) == ([0], [0])
    assert reranked.matched_patches.shape == (0, 4)


def test_stored_local_features_are_taken_as_they_are(tiny_encoder: Encoder):
    def stored(one: EncodedPhoto) -> LocalFeatures:
        return LocalFeatures(features=one.features, patch=one.patch, reliability=one.reliability)

    query, *pool = similar_photos(tiny_encoder)
    cosines = np.array([0.3, 0.2, 0.1])

    from_store = Reranker(RerankConfig()).rerank(stored(query), [stored(one) for one in pool], cosines)

    assert from_store.scores.tobytes() == Reranker(RerankConfig()).rerank(query, pool, cosines).scores.tobytes()


@pytest.mark.parametrize(
    ("query_form", "stored_form"), [("int8", "float16"), ("int8", "int4"), ("float32", "int8"), ("float32", "int4")]
)
def test_features_stored_in_another_precision_are_compared_all_the_same(tiny_encoder: Encoder, query_form: Any, stored_form: Any):
    """As in a map that an earlier Folio began. Rounding to four bits costs some matches, the others next to none."""

    def stored(one: EncodedPhoto, precision: Any) -> LocalFeatures:
        floats = one.features / np.linalg.norm(one.features.astype(np.float32), axis=1, keepdims=True)
        return LocalFeatures(features=as_stored(floats, precision), patch=one.patch, reliability=one.reliability)

    query, *pool = similar_photos(tiny_encoder)
    cosines = np.array([0.3, 0.2, 0.1])

    same = Reranker(RerankConfig()).rerank(query, pool, cosines)
    mixed = Reranker(RerankConfig()).rerank(stored(query, query_form), [stored(one, stored_form) for one in pool], cosines)

    assert mixed.order.tolist() == same.order.tolist()
    np.testing.assert_allclose(mixed.local_scores, same.local_scores, atol=0.1 if stored_form == "int4" else 0.01)


def test_more_candidates_than_cosines_are_refused(tiny_encoder: Encoder):
    query, *candidates = similar_photos(tiny_encoder)

    with pytest.raises(ValueError, match="3 candidates but only 2 cosines"):
        Reranker(RerankConfig()).rerank(query, candidates, np.array([0.5, 0.4]))


def test_the_pool_is_the_schedulers():
    assert Reranker(RerankConfig(pool=PoolConfig(fixed_size=3))).pool_size(np.array([0.9, 0.8, 0.7, 0.6])) == 3


def test_candidates_are_matched_a_stage_at_a_time_as_if_all_at_once(tiny_encoder: Encoder):
    """The same photo is among the first twenty of a hundred; the rest is never asked for, and no score depends on the stages."""
    query, moved, *others = similar_photos(tiny_encoder)
    candidates = [*others * 9, moved, *others * 40][:100]
    cosines = np.linspace(0.5, 0.4, 100)
    reranker = Reranker(RerankConfig())
    ranking = reranker.begin(query, cosines)
    asked = []
    while wanted := ranking.wanted:
        asked.append(wanted)
        ranking.add(candidates[wanted.start : wanted.stop])
    everything = reranker.rerank(query, candidates, cosines)

    assert asked == [range(20)]
    assert ranking.result().order[0] == everything.order[0] == 9 * len(others)
    assert ranking.result().scores.tobytes() == everything.scores[:20].tobytes()


def test_where_nothing_is_found_all_candidates_are_asked_for(tiny_encoder: Encoder):
    query, _, *others = similar_photos(tiny_encoder)
    reranker = Reranker(RerankConfig())

    found = reranker.rerank_as_needed(query, (others * 50)[:100], np.linspace(0.5, 0.4, 100))

    assert len(found.order) == 100
    assert found.scores.tobytes() == reranker.rerank(query, (others * 50)[:100], np.linspace(0.5, 0.4, 100)).scores.tobytes()
