"""Depth, facade numbers, occluders and light of the sample city against geometry worked out by hand."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.conditions import dusk, overcast, sun_position, sunny
from pipelines.catalog.sample_city.facades import Face, GroundFloor, Roof, draw_style
from pipelines.catalog.sample_city.occluders import Car, StreetLife, draw_street_life
from pipelines.catalog.sample_city.render import NO_FACADE, Renderer, View
from pipelines.catalog.sample_city.shadows import Shadows
from pipelines.catalog.sample_city.town import Building, Facade, Figure, FigureKind, Street, Town, make_town

CAMERA = CameraConfig(width_px=200, height_px=150, fov_deg=90.0, horizon=0.5)  # a right angle: 100 pixels to the metre at 1 m
MIDDLE = (75, 100)
GREY_DAY = overcast((180.0, 40.0))
STYLE = replace(
    draw_style(np.random.default_rng(5)),
    storeys=3,
    roof=Roof.FLAT,
    roof_height_m=0.6,
    ground_height_m=3.5,
    storey_height_m=3.0,  # 3.5 + 2 x 3.0 + 0.5 = 10 m to the eaves
    ground_floor=GroundFloor.DOOR,
)


def town_of_one_wall(*, west_m: float = 35.0, east_m: float = 65.0) -> Town:
    """A building whose street wall runs from west to east at y = 60 m and looks south."""
    street = Street(centre_m=50.0, half_width_m=10.0, grey=100, lined=False)
    building = Building(west_m=west_m, south_m=60.0, east_m=east_m, north_m=70.0, style=STYLE)
    wall = Facade(facade_id=0, building_id=0, start_m=(west_m, 60.0), end_m=(east_m, 60.0), face=Face.STREET, style=STYLE)
    return Town(
        seed=1,
        width_m=100.0,
        depth_m=100.0,
        streets_ns=(street,),
        streets_ew=(street,),
        buildings=(building,),
        facades=(wall,),
        figures=(),
    )


def look(town: Town, *, x_m: float = 50.0, heading_deg: float = 0.0, street_life: StreetLife | None = None) -> View:
    """Photograph from 10 m before the wall at a height of 2 m."""
    pose = Pose(x_m=x_m, y_m=50.0, height_m=2.0, heading_deg=heading_deg)
    return Renderer(town).render(pose, GREY_DAY, CAMERA, rng=np.random.default_rng(0), street_life=street_life)


def test_a_wall_ten_metres_ahead_is_ten_metres_deep_in_every_column():
    view = look(town_of_one_wall())

    assert view.image.shape == (150, 200, 3)
    assert view.facade_id[MIDDLE] == 0
    assert view.depth_m[75] == pytest.approx(10.0, abs=1e-4)


def test_depth_is_measured_along_the_axis_of_a_turned_camera():
    """At 30° the ray of slope t meets the wall at 10 / (cos 30° - t sin 30°)."""
    view = look(town_of_one_wall(east_m=80.0), heading_deg=30.0)

    for column in (20, 100, 150):
        slope = (column + 0.5 - 100) / 100
        expected = 10 / (np.cos(np.pi / 6) - slope * np.sin(np.pi / 6))
        assert view.depth_m[75, column] == pytest.approx(expected, rel=1e-5)


def test_the_wall_stands_on_the_ground_and_ends_at_its_height():
    """Seen from 2 m, its foot lies 2/10 and its top 8.6/10 of 100 pixels from the horizon in row 75: rows 94 and above 0."""
    view = look(town_of_one_wall())

    assert view.facade_id[94, 100] == 0
    assert view.facade_id[95, 100] == NO_FACADE
    assert view.depth_m[95, 100] == pytest.approx(2.0 / 0.205, rel=1e-4)
    assert view.facade_id[0, 100] == 0


def test_above_a_low_wall_there_is_sky_and_it_is_infinitely_far():
    """From 50 m the top of the wall is 8.6/50 of 100 pixels above the horizon: row 58 is the first of the wall."""
    pose = Pose(x_m=50.0, y_m=10.0, height_m=2.0, heading_deg=0.0)
    view = Renderer(town_of_one_wall()).render(pose, GREY_DAY, CAMERA, rng=np.random.default_rng(0))

    assert view.facade_id[58, 100] == 0
    assert view.facade_id[57, 100] == NO_FACADE
    assert np.isinf(view.depth_m[57, 100])


@pytest.mark.parametrize(("x_m", "last_column"), [(50.0, 149), (51.0, 139), (49.0, 159)])
def test_the_edge_of_a_wall_moves_against_the_camera_as_perspective_says(x_m: float, last_column: int):
    """The edge at x = 55 m is 5 m to the right at 10 m: 50 pixels right of the middle, 10 pixels less for each metre."""
    seen = look(town_of_one_wall(east_m=55.0), x_m=x_m).facade_id[75] == 0

    assert seen[:last_column].all()
    assert np.flatnonzero(seen)[-1] == last_column


def test_a_wall_is_not_seen_from_behind():
    pose = Pose(x_m=50.0, y_m=80.0, height_m=2.0, heading_deg=180.0)
    view = Renderer(town_of_one_wall()).render(pose, GREY_DAY, CAMERA, rng=np.random.default_rng(0))

    assert (view.facade_id == NO_FACADE).all()


def test_a_car_and_a_person_hide_the_wall_and_are_nearer():
    car = Car(x_m=48.0, y_m=56.0, heading_deg=90.0, length_m=4.2, height_m=1.45, rgb=(200, 30, 30))
    person = Figure(FigureKind.PERSON, 52.0, 55.0, 1.8, 3)
    empty, busy = look(town_of_one_wall()), look(town_of_one_wall(), street_life=StreetLife(cars=(car,), people=(person,)))

    changed = empty.depth_m != busy.depth_m
    assert sorted(set(busy.depth_m[changed].tolist())) == pytest.approx([5.0, 6.0])
    assert (busy.facade_id[changed] == NO_FACADE).all()
    assert (empty.facade_id[changed] == 0).any()
    assert (busy.depth_m <= empty.depth_m).all()


def test_what_stands_behind_the_wall_is_not_seen():
    person = Figure(FigureKind.PERSON, 50.0, 62.0, 1.8, 3)
    empty, other = look(town_of_one_wall()), look(town_of_one_wall(), street_life=StreetLife(people=(person,)))

    assert (empty.image == other.image).all()


def test_a_person_stands_on_the_ground():
    """At 5 m the ground is 2/5 of 100 pixels below the horizon in row 75: feet in row 114."""
    person = Figure(FigureKind.PERSON, 50.0, 55.0, 1.8, 3)
    depth = look(town_of_one_wall(), street_life=StreetLife(people=(person,))).depth_m

    assert np.flatnonzero((depth == 5.0).any(axis=1))[-1] == 114


def test_a_shadow_falls_away_from_the_sun_and_loses_a_metre_each_metre_at_45_degrees():
    """The building is 10.3 m high (half of its parapet counts) and ends at y = 70 m; the sun is in the south."""
    shadows, noon = Shadows(town_of_one_wall()), sunny((180.0, 45.0))
    y_m = np.array([59.0, 73.0, 75.0, 85.0], np.float32)

    height_m = shadows.height_m(np.full(4, 50.0, np.float32), y_m, noon)

    assert height_m == pytest.approx([0.0, 7.3, 5.3, 0.0], abs=0.3)


def test_the_sun_lights_the_wall_that_faces_it():
    pose = Pose(x_m=50.0, y_m=50.0, height_m=2.0, heading_deg=0.0)
    before, behind = (
        Renderer(town_of_one_wall()).render(pose, sunny((azimuth, 40.0)), CAMERA, rng=np.random.default_rng(0))
        for azimuth in (180.0, 0.0)
    )

    wall = before.facade_id == 0
    assert before.image[wall].mean() > 1.2 * behind.image[wall].mean()


def test_the_sun_of_midsummer_noon_stands_in_the_south():
    """On the Greenwich meridian at 54.7° N: 90 - 54.7 + 23.44 = 58.7° high at 12:00 UTC."""
    noon = datetime(2025, 6, 21, 13, tzinfo=timezone(timedelta(hours=1)))
    azimuth, elevation = sun_position(noon, lat_deg=54.7, lon_deg=0.0)

    assert azimuth == pytest.approx(180.0, abs=0.1)
    assert elevation == pytest.approx(58.7, abs=0.1)


def test_a_photo_does_not_depend_on_the_photos_before_it():
    """A renderer that has forgotten its facades and one with other shadows give the same photo."""
    town = make_town(3, blocks=(1, 1))
    street = town.streets_ns[0]
    pose = Pose(x_m=street.centre_m, y_m=60.0, height_m=2.0, heading_deg=0.0)
    life = draw_street_life(town, np.random.default_rng(1))
    fresh, used = Renderer(town), Renderer(town, facade_texels=12_000_000)
    for heading in (90.0, 180.0):
        used.render(replace(pose, heading_deg=heading), dusk((280.0, 4.0)), CAMERA, rng=np.random.default_rng(0))

    views = [
        renderer.render(pose, sunny((120.0, 30.0)), CAMERA, rng=np.random.default_rng(7), street_life=life)
        for renderer in (fresh, used)
    ]

    assert (views[0].image == views[1].image).all()
    assert (views[0].facade_id == views[1].facade_id).all()


def test_too_little_room_for_the_facades_of_one_photo_is_refused():
    with pytest.raises(ValueError, match="facade_texels=1,000 is too small"):
        Renderer(town_of_one_wall(), facade_texels=1000).render(
            Pose(x_m=50.0, y_m=50.0, height_m=2.0, heading_deg=0.0), GREY_DAY, CAMERA, rng=np.random.default_rng(0)
        )


def test_in_a_town_no_column_slips_between_two_walls():
    """In the street the view ends at a wall in every direction: at the horizon no pixel is open."""
    town = make_town(3, blocks=(1, 1))
    renderer = Renderer(town)
    for heading in range(0, 360, 45):
        pose = Pose(x_m=town.streets_ns[0].centre_m, y_m=60.0, height_m=2.2, heading_deg=float(heading))
        view = renderer.render(pose, GREY_DAY, CAMERA, rng=np.random.default_rng(0))
        assert np.isfinite(view.depth_m[75]).all()


def test_equal_seeds_make_equal_towns_and_other_seeds_other_ones():
    assert make_town(1, blocks=(1, 1)) == make_town(1, blocks=(1, 1))
    assert make_town(1, blocks=(1, 1)) != make_town(2, blocks=(1, 1))


@pytest.mark.parametrize("blocks", [(0, 1), (2, -1)])
def test_a_town_without_blocks_is_refused(blocks: tuple[int, int]):
    with pytest.raises(ValueError, match="at least one block each way"):
        make_town(1, blocks=blocks)


def test_a_camera_that_sees_nothing_is_refused():
    with pytest.raises(ValueError, match="fov_deg must be between 0 and 170, got 180"):
        CameraConfig(fov_deg=180.0)
