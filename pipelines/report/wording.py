"""Numbers as a person says them. Used by the page and its drawings."""


def metres(distance_m: float) -> str:
    """`3.4 m`, `37 m`, `1.2 km`, `310 km`."""
    if distance_m < 9.95:
        return f"{distance_m:.1f} m"
    if distance_m < 999.5:
        return f"{distance_m:.0f} m"
    kilometres = distance_m / 1000
    return f"{kilometres:.1f} km" if kilometres < 9.95 else f"{kilometres:,.0f} km"


def size(count_bytes: float) -> str:
    """`812 bytes`, `14.2 kB`, `3.1 MB`."""
    if count_bytes < 1000:
        return f"{count_bytes:.0f} bytes"
    if count_bytes < 1_000_000:
        return f"{count_bytes / 1000:.1f} kB"
    return f"{count_bytes / 1_000_000:.1f} MB"


def percent(fraction: float) -> str:
    """`71.4 %`, and `100 %` or `0 %` only where that is exact."""
    return f"{fraction:.0%}".replace("%", " %") if fraction in (0, 1) else f"{100 * fraction:.1f} %"


def amount(number: float) -> str:
    """`0.83`, `12.5`, `1,240`: about three digits."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
