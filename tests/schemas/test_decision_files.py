"""Files of decisions: what was once saved is read for ever, and what this version writes it reads again."""

from schemas.decisions import Decision, Decisions, decode_decisions
from schemas.manifest import encode_json

SAVED = """{
 "format_version": 1,
 "map_version": 7,
 "decisions": [
  {"query_id": "00ff", "uri": "lund/ö 2.jpg", "decision": "accept", "lat_deg": 55.7, "lon_deg": 13, "note": ""},
  {"query_id": "01ff", "uri": "a.jpg", "decision": "refuse"}
 ]
}"""
"""Format 1, as the review page and as a person writes it."""

DECISIONS = Decisions(
    map_version=7,
    decisions=[
        Decision(query_id="00ff", uri="lund/ö 2.jpg", decision="accept", lat_deg=55.7, lon_deg=13.0),
        Decision(query_id="01ff", uri="a.jpg", decision="refuse"),
    ],
)


def test_a_file_of_format_1_is_read():
    assert decode_decisions(SAVED.encode(), where="here") == (DECISIONS, [])


def test_what_is_written_is_read_again():
    assert decode_decisions(encode_json(DECISIONS), where="here") == (DECISIONS, [])
