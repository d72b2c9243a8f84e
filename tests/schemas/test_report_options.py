"""Options of a report: what was once kept is read for ever, and what this version keeps it reads again."""

from schemas.manifest import encode_json
from schemas.report_options import ReportOptions, decode_report_options

OPTIONS = ReportOptions(photos="s3://moved/photos", review=7)


def test_a_file_of_format_1_is_read():
    assert decode_report_options(b'{"format_version": 1, "photos": "s3://moved/photos", "review": 7}', where="here") == OPTIONS


def test_what_is_written_is_read_again():
    assert decode_report_options(encode_json(OPTIONS), where="here") == OPTIONS
