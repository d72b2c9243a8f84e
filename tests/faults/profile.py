"""How much the fault suites do, and the table of what they did.

`make test` runs each with a few rounds. `make test-faults` sets FOLIO_FAULTS=full, runs the numbers that Folio promises, prints
the table and leaves it in out/faults.md.
"""

import json
import os
from pathlib import Path
from typing import Final

FULL: Final = os.environ.get("FOLIO_FAULTS") == "full"
"""Whether the numbers of the promises are wanted, not a quick look."""

RECORDS: Final = Path(__file__).parents[2] / "out" / "faults.jsonl"


def rounds(*, quick: int, full: int) -> int:
    """Choose the size of a suite."""
    return full if FULL else quick


def record(what: str, *, rounds: int, failures: int, seconds: float, note: str = "") -> None:
    """Add a line to the table.

    Args:
        what: kind of fault.
        rounds: how often it was made.
        failures: how often a promise did not hold; the test that records it must also fail then.
        seconds: the suite took.
        note: what was counted beside it.
    """
    if not FULL:
        return
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    line = {"what": what, "rounds": rounds, "failures": failures, "seconds": round(seconds, 1), "note": note}
    with RECORDS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table() -> str:
    """Lay the records out as Markdown."""
    lines = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    rows = [f"| {r['what']} | {r['rounds']:,} | {r['failures']} | {r['seconds']:,} | {r['note']} |" for r in lines]
    return "\n".join(["| fault | rounds | promises broken | seconds | |", "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
