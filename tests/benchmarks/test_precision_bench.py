from itertools import groupby

import numpy as np

from pipelines.catalog.sample_city.photos import plan_sample_city
from tests.benchmarks.geotag_precision import Row, table
from tests.benchmarks.walks import PACE_MPS, walks_in


def test_walks_go_along_streets_no_quicker_than_people_do_and_end_where_the_map_has_no_photo():
    city = walks_in(plan_sample_city(places=40), photos_each=20, unmapped_each=3)
    surveyed = np.array([(photo.pose.x_m, photo.pose.y_m) for photo in city.database])
    walks = [list(photos) for _, photos in groupby(city.queries, key=lambda photo: photo.visit)]

    assert [len(walk) for walk in walks] == [20] * 4
    for walk in walks:
        at = np.array([(photo.pose.x_m, photo.pose.y_m) for photo in walk])
        seconds = np.array([photo.taken_at.timestamp() for photo in walk])
        walked_m = np.hypot(*np.diff(at, axis=0).T)
        assert (walked_m <= PACE_MPS * np.diff(seconds) + 16).all()  # each photo is a few steps off its place
        apart_m = np.hypot(*(at[:, None] - surveyed).T).min(axis=0)
        assert (apart_m[:-3] < 12).all()
        assert (apart_m[-3:] > 25).all()


def test_the_table_says_what_was_not_proven_and_what_was_never_answered():
    row = Row(
        set="town",
        promise=0.95,
        proven=False,
        way="alone",
        photos=10,
        answered=0,
        right=0,
        median_error_m=float("nan"),
        within_expected=0,
        interpolated=4,
        interpolated_right=3,
        interpolated_within_expected=3,
        decided_per_s=9.0,
    )

    assert table([row]).splitlines()[-1] == "| town | 95%, not proven | alone | 0 of 10, 0.0% | none | nan m | none | 4: 75.0% |"
