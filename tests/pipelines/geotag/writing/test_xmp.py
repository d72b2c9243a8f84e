"""A packet that something is put into keeps everything else it says, to the byte where nothing gives way."""

from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.geotag.writing.statement import EXIF_NS, FOLIO_NS, NotWritten, statement_of
from pipelines.geotag.writing.xmp import EMPTY, RDF_NS, is_replaced, merge, read_properties
from tests.pipelines.geotag.writing.archives import geotag_row

DARKTABLE = b"""\xef\xbb\xbf<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment of mine -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="uuid:7&amp;7"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc='http://purl.org/dc/elements/1.1/'
    xmlns:darktable="http://darktable.sf.net/" xmlns:e="http://ns.adobe.com/exif/1.0/" xmlns:mine="urn:of:nobody"
   xmp:Rating="4" mine:note="two&#10;lines &gt; one" darktable:history_end="2"
   e:GPSDOP="9" e:GPSAltitude="512/10">
   <dc:subject><rdf:Bag><rdf:li>Lund</rdf:li><rdf:li>k\xc3\xb6ksstol &lt;3</rdf:li></rdf:Bag></dc:subject>
   <e:GPSLatitude>1,2.5S</e:GPSLatitude>
   <e:GPSLongitude>3,4.5W</e:GPSLongitude>
   <darktable:history><rdf:Seq>
     <rdf:li darktable:num="0" darktable:params="gz02eJx"/>
   </rdf:Seq></darktable:history>
   <mine:nested rdf:parseType="Resource"><e:GPSLatitude>not a position of this photo</e:GPSLatitude></mine:nested>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
RATED = DARKTABLE.replace(b'   e:GPSDOP="9" e', b"   e")
for gone in (b"   <e:GPSLatitude>1,2.5S</e:GPSLatitude>\n", b"   <e:GPSLongitude>3,4.5W</e:GPSLongitude>\n"):
    RATED = RATED.replace(gone, b"")


def said(**changes: Any) -> dict[tuple[str, str], str]:
    return statement_of(geotag_row("a.jpg", "/", **changes), map_version=42, run_id="run").xmp()


def others(packet: bytes) -> Counter[str]:
    """Every property that does not give way, in canonical XML, by another parser than the one that edits."""
    found: Counter[str] = Counter()
    for description in ElementTree.fromstring(packet).iter(f"{{{RDF_NS}}}RDF"):
        for each in description:
            for tag, value in each.attrib.items():
                found[f"{tag}={value!r}"] += 1
            for child in each:
                child.tail = None
                found[ElementTree.canonicalize(ElementTree.tostring(child, "unicode"))] += 1
    return Counter({text: count for text, count in found.items() if not _gives_way(text)})


def _gives_way(text: str) -> bool:
    namespace, _, local = text.partition("=")[0].removeprefix("{").rpartition("}")
    return is_replaced((namespace, local)) or "GPSDOP" in text or text.startswith(("<ns0:GPSL", f"{{{RDF_NS}}}about"))


def test_a_packet_that_says_nothing_of_a_position_keeps_every_byte():
    merged = merge(RATED, said())

    place = RATED.index(b"\n </rdf:RDF>")
    assert merged.startswith(RATED[:place])
    assert merged.endswith(RATED[place:])
    assert read_properties(merged) == said()


def test_ratings_keywords_history_and_unknown_namespaces_stay_and_the_old_position_goes():
    merged = merge(DARKTABLE, said())

    assert others(merged) == others(DARKTABLE)
    assert sum(others(merged).values()) >= 7
    assert read_properties(merged) == said()
    for kept in (b'xmp:Rating="4"', b"two&#10;lines", b"not a position of this photo", b"<!-- a comment of mine -->", b"512/10"):
        assert kept in merged
    for gone in (b"1,2.5S", b"3,4.5W", b"GPSDOP"):
        assert gone not in merged


def test_the_description_added_is_about_the_same_photo():
    merged = merge(DARKTABLE, said())

    about = {each.attrib[f"{{{RDF_NS}}}about"] for each in ElementTree.fromstring(merged).iter(f"{{{RDF_NS}}}Description")}
    assert about == {"uuid:7&7"}


def test_written_again_it_replaces_what_it_wrote_and_nothing_piles_up():
    once = merge(RATED, said())
    twice = merge(once, said(lat_deg=-33.0, status="corrected", expected_error_m=None))

    assert merge(merge(twice, said()), said()) == once
    assert read_properties(twice)[EXIF_NS, "GPSLatitude"] == "33,0.000000S"
    assert (EXIF_NS, "GPSHPositioningError") not in read_properties(twice)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(EMPTY, id="none yet"),
        pytest.param(b'<rdf:RDF xmlns:rdf="%s"/>' % RDF_NS.encode(), id="closes itself"),
        pytest.param(b'<RDF xmlns="%s"></RDF>' % RDF_NS.encode(), id="rdf without a prefix"),
        pytest.param(b'<r:RDF xmlns:r="%s"><r:Description/></r:RDF>' % RDF_NS.encode(), id="another prefix"),
        pytest.param(EMPTY.replace(b"\n", b"\r\n") + b" " * 2000, id="padding behind"),
        pytest.param(EMPTY + b"\0", id="ends like a C string"),
    ],
)
def test_packets_of_any_build_take_it(packet: bytes):
    merged = merge(packet, said())

    assert read_properties(merged.rstrip(b"\0")) == said()


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="empty"),
        pytest.param(DARKTABLE[:-30], id="cut off"),
        pytest.param(b"<html/>", id="no RDF"),
        pytest.param(DARKTABLE.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(DARKTABLE.replace(b"UTF-8", b"latin-1").removeprefix(b"\xef\xbb\xbf"), id="latin-1"),
        pytest.param(b'<!DOCTYPE a [<!ENTITY b "c">]>' + EMPTY, id="entities"),
        pytest.param(
            EMPTY.replace(b"</rdf:RDF>", b"</rdf:RDF>" + EMPTY[EMPTY.index(b"<rdf:RDF") : EMPTY.index(b"</x:")]), id="two"
        ),
        pytest.param(b"\xff\xd8\xff" * 100, id="no XML"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused(packet: bytes):
    with pytest.raises(NotWritten, match="cannot be edited safely"):
        merge(packet, said())


@given(st.text())
def test_any_name_of_a_matched_photo_can_be_said(name: str):
    properties = said(matched_uri=name)

    assert read_properties(merge(RATED, properties)) == properties
    assert name == "" or (FOLIO_NS, "MatchedPhoto") in properties
