"""Recall on held-out photos."""

from pathlib import Path

import numpy as np

from fol_model.inference import Encoder
from fol_model.recipes import recipe_named
from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.train.loading import PhotoLoader
from pipelines.train.validation import plan_validation, search, validate
from tests.pipelines.train.photos import photo, write_photo


def test_search_orders_all_but_the_query_by_cosine_and_ties_by_row():
    descriptors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]], np.float32)

    order, cosines = search(descriptors, np.array([0]))

    assert order.tolist() == [[2, 1, 3]]
    assert np.allclose(cosines, [[0.6, 0, 0]])


def test_only_photos_with_an_answer_are_asked_about():
    photos = [photo("a.jpg", place="x"), photo("b.jpg", place="y"), photo("c.jpg", place="x"), photo("d.jpg")]

    plan = plan_validation(photos, [0, 1, 2, 3], max_queries=10)

    assert plan is not None
    assert plan.queries == [0, 2]
    assert plan.truth.tolist() == [[False, False, True, False], [True, False, False, False]]


def test_queries_are_taken_evenly():
    photos = [photo(f"{n}.jpg", place="x") for n in range(9)]

    plan = plan_validation(photos, list(range(9)), max_queries=3)

    assert plan is not None
    assert plan.queries == [0, 4, 8]


def test_nothing_to_look_up_is_no_plan():
    assert plan_validation([photo("a.jpg"), photo("b.jpg")], [0, 1], max_queries=10) is None


def test_copies_of_a_photo_are_found_and_an_unreadable_one_is_no_answer(tmp_path: Path):
    photos = []
    for place in range(3):
        for copy in range(2):
            write_photo(tmp_path / f"{place}-{copy}.jpg", place=place, number=0)
            photos.append(photo(f"{place}-{copy}.jpg", root=str(tmp_path), place=str(place)))
    (tmp_path / "2-1.jpg").write_bytes(b"")
    plan = plan_validation(photos, list(range(6)), max_queries=10)
    assert plan is not None

    with PhotoLoader(photos, Settings(threads=1), PhotoLimits()) as loader:
        recall = validate(plan, Encoder(recipe_named("tiny"), device="cpu"), loader, epoch=1)

    assert (recall.queries, recall.photos) == (5, 5)
    assert recall.global_ == recall.reranked == [0.8, 0.8, 0.8]
