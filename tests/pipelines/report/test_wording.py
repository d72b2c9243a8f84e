"""Numbers as a person says them."""

from pipelines.report.wording import amount, metres, percent, size


def test_a_distance_keeps_two_or_three_digits():
    said = [metres(distance_m) for distance_m in (0.0, 3.42, 9.96, 37.4, 999.4, 999.6, 1_240, 9_960, 310_000)]

    assert said == ["0.0 m", "3.4 m", "10 m", "37 m", "999 m", "1.0 km", "1.2 km", "10 km", "310 km"]


def test_only_what_is_all_or_nothing_is_said_without_decimals():
    assert [percent(share) for share in (0.0, 0.714, 0.99, 1.0)] == ["0 %", "71.4 %", "99.0 %", "100 %"]


def test_sizes_and_amounts_keep_about_three_digits():
    assert [size(count) for count in (812, 48_213, 3_140_000)] == ["812 bytes", "48.2 kB", "3.1 MB"]
    assert [amount(number) for number in (0.834, 12.49, 1_240.4)] == ["0.83", "12.5", "1,240"]
