"""What `folio geotag` takes beside photos, as a person writes it."""

import msgspec
import pytest
from click.testing import CliRunner

from pipelines.cli import _TimeOffset, main
from pipelines.geotag.geotag import GeotagRequest


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("0", 0.0), ("90", 90.0), ("-1.5", -1.5), ("+02:00", 7200.0), ("-3:30", -12_600.0), ("+00:00", 0.0)],
)
def test_an_offset_is_a_time_zone_or_seconds(written: str, seconds: float):
    assert _TimeOffset().convert(written, None, None) == seconds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time-offset", "two hours"], "needed a time zone, as +02:00, or seconds"),
        (["--time-offset", "nan"], "needed seconds"),
        (["--time-offset", "-02:00"], "are for --gpx"),
        (["--use-track"], "are for --gpx"),
        (["--max-speed", "0"], "Invalid value for '--max-speed'"),
        (["--precision", "0.999"], "Invalid value for '--precision'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(options: list[str], said: str):
    done = CliRunner().invoke(main, ["geotag", "nowhere.map", "nothing/", "--out", "never", *options])

    assert done.exit_code == 2
    assert said in done.output


def test_a_request_survives_the_way_into_a_flow_and_back():
    request = GeotagRequest(
        map_url="m", photos=("p",), out="o", gpx=("a.gpx", "b.gpx"), time_offset_s=-90.0, never_in="home.geojson", redact=True
    )

    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(request)), GeotagRequest, strict=False) == request
