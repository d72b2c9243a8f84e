"""The light and the weather that a photo of the sample city is taken in.

`Conditions` holds plain numbers for `render`; the functions below it are named sets of them. The sun stands where it stands at
that time of day, so that the shadows of a photo agree with its time stamp.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

Light = tuple[float, float, float]
"""Red, green, blue; 1 leaves a colour as it is painted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Light and weather of one visit."""

    sun_azimuth_deg: float
    """Clockwise from north."""
    sun_elevation_deg: float
    sun: Light
    """What direct sunlight adds on a wall that it hits squarely."""
    ambient: Light
    """What reaches everything, shadows included."""
    sky_top: Light
    sky_horizon: Light
    """Also the colour of the haze."""
    cloud_cover: float
    """From 0, clear, to 1, overcast."""
    haze_m: float
    """Distance at which 37 % of the contrast is left."""
    wetness: float
    """From 0, dry, to 1: dark ground that mirrors the sky, and streaks of rain."""
    window_glow: float
    """From 0 to 1: how much of the lamps indoors and on the street is seen."""
    noise: float
    """Standard deviation of the sensor noise, of 255."""

    @property
    def to_sun(self) -> tuple[float, float, float]:
        """Unit vector to the sun: east, north, up."""
        azimuth, elevation = np.deg2rad(self.sun_azimuth_deg), np.deg2rad(self.sun_elevation_deg)
        level = np.cos(elevation)
        return float(level * np.sin(azimuth)), float(level * np.cos(azimuth)), float(np.sin(elevation))


def sun_position(taken_at: datetime, *, lat_deg: float, lon_deg: float) -> tuple[float, float]:
    """Azimuth and elevation of the sun in degrees, to about two degrees (a circular orbit is assumed).

    Args:
        taken_at: when, with its time zone.
        lat_deg: where.
        lon_deg: where.
    """
    moment = taken_at.astimezone(UTC)
    hours = moment.hour + moment.minute / 60 + moment.second / 3600
    declination = np.deg2rad(-23.44 * np.cos(2 * np.pi * (moment.timetuple().tm_yday + 10) / 365))
    hour_angle, lat = np.deg2rad(15 * (hours - 12) + lon_deg), np.deg2rad(lat_deg)
    up = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(hour_angle)
    north = np.cos(lat) * np.sin(declination) - np.sin(lat) * np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    return float(np.rad2deg(np.arctan2(east, north)) % 360), float(np.rad2deg(np.arcsin(up)))


def sunny(sun_position_deg: tuple[float, float]) -> Conditions:
    """Blue sky, hard shadows."""
    return Conditions(
        sun_azimuth_deg=sun_position_deg[0],
        sun_elevation_deg=sun_position_deg[1],
        sun=(0.66, 0.60, 0.48),
        ambient=(0.66, 0.70, 0.77),
        sky_top=(0.30, 0.50, 0.82),
        sky_horizon=(0.74, 0.83, 0.92),
        cloud_cover=0.25,
        haze_m=900.0,
        wetness=0.0,
        window_glow=0.0,
        noise=2.0,
    )


def fair(sun_position_deg: tuple[float, float]) -> Conditions:
    """Clouds and a weak sun."""
    return Conditions(
        sun_azimuth_deg=sun_position_deg[0],
        sun_elevation_deg=sun_position_deg[1],
        sun=(0.36, 0.34, 0.30),
        ambient=(0.78, 0.80, 0.84),
        sky_top=(0.46, 0.60, 0.80),
        sky_horizon=(0.80, 0.85, 0.90),
        cloud_cover=0.55,
        haze_m=600.0,
        wetness=0.0,
        window_glow=0.0,
        noise=2.0,
    )


def overcast(sun_position_deg: tuple[float, float]) -> Conditions:
    """A grey lid and no shadows."""
    return Conditions(
        sun_azimuth_deg=sun_position_deg[0],
        sun_elevation_deg=sun_position_deg[1],
        sun=(0.0, 0.0, 0.0),
        ambient=(0.92, 0.93, 0.94),
        sky_top=(0.68, 0.71, 0.74),
        sky_horizon=(0.84, 0.85, 0.86),
        cloud_cover=1.0,
        haze_m=350.0,
        wetness=0.15,
        window_glow=0.1,
        noise=3.0,
    )


def dusk(sun_position_deg: tuple[float, float]) -> Conditions:
    """Little light, a low red sun or none, lamps lit."""
    return Conditions(
        sun_azimuth_deg=sun_position_deg[0],
        sun_elevation_deg=sun_position_deg[1],
        sun=(0.30, 0.18, 0.08),
        ambient=(0.48, 0.45, 0.56),
        sky_top=(0.22, 0.25, 0.44),
        sky_horizon=(0.88, 0.58, 0.42),
        cloud_cover=0.45,
        haze_m=400.0,
        wetness=0.0,
        window_glow=0.75,
        noise=5.0,
    )


def rain(sun_position_deg: tuple[float, float]) -> Conditions:
    """Grey, wet and dim; far things fade."""
    return Conditions(
        sun_azimuth_deg=sun_position_deg[0],
        sun_elevation_deg=sun_position_deg[1],
        sun=(0.0, 0.0, 0.0),
        ambient=(0.70, 0.73, 0.77),
        sky_top=(0.50, 0.54, 0.58),
        sky_horizon=(0.66, 0.69, 0.72),
        cloud_cover=1.0,
        haze_m=140.0,
        wetness=1.0,
        window_glow=0.3,
        noise=4.0,
    )
