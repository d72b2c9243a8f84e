"""Put properties into an XMP packet and leave every other byte of it as it was.

Not parsed and written anew: a writer of XML or RDF forgets comments, prefixes, line breaks in attributes or what it does not
know. Here the bytes of the properties that are replaced are cut out, and one `rdf:Description` more goes in before the end; XMP
allows any number of them about the same photo. What came of it is read back by another reader (`read_properties`).

Source: XMP specification part 1 (ISO 16684-1), section 7.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import ParseError
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pipelines.geotag.writing.statement import EXIF_NS, FOLIO_NS, Name, NotWritten

RDF_NS: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

EMPTY: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f'<rdf:RDF xmlns:rdf="{RDF_NS}">\n'
    "</rdf:RDF>\n"
    "</x:xmpmeta>\n"
    '<?xpacket end="w"?>'
).encode()
"""A packet that says nothing yet."""

PREFIXES: Final = {EXIF_NS: "exif", FOLIO_NS: "folio"}

OF_A_FIX: Final = (
    *("GPSLatitude", "GPSLongitude", "GPSMapDatum", "GPSHPositioningError", "GPSProcessingMethod"),
    *("GPSStatus", "GPSMeasureMode", "GPSDOP", "GPSSatellites", "GPSDifferential"),
)
"""EXIF properties of a position and of how it was measured; with another position they would be wrong."""

START_TAG: Final = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
ATTRIBUTE: Final = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"[^"]*"|'[^']*')""")

MAX_BYTES: Final = 32 << 20
"""Of a packet; none that was ever seen comes near."""


def is_replaced(name: Name) -> bool:
    """Whether a property gives way to ours."""
    return name[0] == FOLIO_NS or (name[0] == EXIF_NS and name[1] in OF_A_FIX)


def read_properties(packet: bytes) -> dict[Name, str]:
    """Read the simple properties of a packet that `merge` would replace.

    Raises:
        NotWritten: it is no XMP.
    """
    try:
        found = fromstring(packet, forbid_dtd=True).iter(f"{{{RDF_NS}}}RDF")
        texts: dict[Name, str] = {}
        for description in (each for rdf in found for each in rdf):
            elements = {element.tag: (element.text or "").strip() for element in description}
            for tag, text in {**description.attrib, **elements}.items():
                namespace, _, local = tag.removeprefix("{").rpartition("}")
                if is_replaced((namespace, local)):
                    texts[namespace, local] = text
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise _broken(str(error)) from error
    return texts


def merge(packet: bytes, properties: Mapping[Name, str]) -> bytes:
    """Put properties into a packet in place of its own of the same kind.

    Args:
        packet: XMP in UTF-8.
        properties: of the namespaces in `PREFIXES`.

    Raises:
        NotWritten: it is no XMP, or not in a form that can be edited safely.
    """
    packet, filling = packet.rstrip(b"\0"), packet[len(packet.rstrip(b"\0")) :]  # some cameras end it like a C string
    outline = _outline(packet)
    cuts = [cut for description in outline.descriptions for cut in description.cuts(packet)]
    about = next((about for each in outline.descriptions if (about := each.about) is not None), "")
    written = _description(outline.rdf_prefix, about, properties)
    if outline.self_closing:
        cuts.append((outline.end, outline.end + len(b"/>"), b">" + written + f"</{outline.rdf_name}>".encode()))
    else:
        place = _with_blanks(packet, outline.end)
        cuts.append((place, place, written))
    merged = packet
    for start, stop, replacement in sorted(cuts, reverse=True):
        merged = merged[:start] + replacement + merged[stop:]
    if read_properties(merged) != dict(properties):
        raise _broken("what was put into it cannot be read back")
    return merged + filling


@dataclass(kw_only=True, slots=True)
class _Element:
    """A property, or a description with its properties, by where it stands."""

    name: Name
    start: int
    inner: int
    """Where its start tag ends."""
    stop: int = 0
    attributes: dict[str, tuple[Name, str]] = field(default_factory=dict)
    """Name as it stands there -> name and value."""
    children: "list[_Element]" = field(default_factory=list)

    @property
    def about(self) -> str | None:
        return next((value for name, value in self.attributes.values() if name in ((RDF_NS, "about"), ("", "about"))), None)

    def cuts(self, packet: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Give the parts of a description that say what is replaced: all of it where it says nothing else."""
        others = [child for child in self.children if not is_replaced(child.name)] + [
            name for raw, (name, _) in self.attributes.items() if not (is_replaced(name) or _says_nothing(raw, name))
        ]
        replaced = [child for child in self.children if is_replaced(child.name)]
        attributes = {raw for raw, (name, _) in self.attributes.items() if is_replaced(name)}
        if not others and (replaced or attributes):
            yield _with_blanks(packet, self.start), self.stop, b""
            return
        for child in replaced:
            yield _with_blanks(packet, child.start), child.stop, b""
        for found in ATTRIBUTE.finditer(packet, self.start, self.inner):
            if found[1].decode() in attributes:
                yield found.start(), found.end(), b""


@dataclass(kw_only=True, slots=True)
class _Outline:
    """Where things stand in a packet."""

    rdf_name: str = ""
    """Of the element, as it stands there: rdf:RDF."""
    end: int = -1
    """Where the end tag of that element begins, or, where it closes itself, its last two characters."""
    self_closing: bool = False
    descriptions: list[_Element] = field(default_factory=list)

    @property
    def rdf_prefix(self) -> str:
        return self.rdf_name.rpartition(":")[0]


def _outline(packet: bytes) -> _Outline:
    """Find the descriptions of a packet and their properties.

    Raises:
        NotWritten: it is no XMP, or not in a form that can be edited safely.
    """
    if len(packet) > MAX_BYTES:
        raise _broken(f"{len(packet):,} bytes, the limit is {MAX_BYTES:,}")
    outline, parser = _Outline(), expat.ParserCreate()
    scopes: list[dict[str, str]] = [{"xml": "http://www.w3.org/XML/1998/namespace"}]
    path: list[_Element] = []
    rdf_depth = 0

    def declared(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii", "ascii"):
            raise _broken(f"it is in {encoding}, not in UTF-8")

    def refuse(*_: object) -> None:
        raise _broken("it declares a document type, which no XMP does")

    def expanded(name: str, *, default: bool) -> Name:
        prefix, _, local = name.rpartition(":")
        return (scopes[-1].get(prefix, "") if prefix or default else ""), local

    def begins(name: str, attributes: dict[str, str]) -> None:
        nonlocal rdf_depth
        start = parser.CurrentByteIndex
        tag = START_TAG.match(packet, start)
        if tag is None:
            raise _broken(f"the tag at byte {start} cannot be read")
        new = {raw.partition(":")[2]: uri for raw, uri in attributes.items() if raw == "xmlns" or raw.startswith("xmlns:")}
        scopes.append({**scopes[-1], **new})
        values = {raw: (expanded(raw, default=False), value) for raw, value in attributes.items()}
        element = _Element(name=expanded(name, default=True), start=start, inner=tag.end(), attributes=values)
        path.append(element)
        if element.name == (RDF_NS, "RDF"):
            if outline.rdf_name:
                raise _broken("it has two rdf:RDF")
            outline.rdf_name, rdf_depth = name, len(path)
            outline.self_closing = tag[0].endswith(b"/>")
            outline.end = tag.end() - len(b"/>")
        elif rdf_depth and len(path) == rdf_depth + 1:
            outline.descriptions.append(element)
        elif rdf_depth and len(path) == rdf_depth + 2:
            path[-2].children.append(element)

    def ends(_name: str) -> None:
        nonlocal rdf_depth
        element, at = path.pop(), parser.CurrentByteIndex
        scopes.pop()
        closes_itself = packet[element.inner - 2 : element.inner] == b"/>"
        element.stop = element.inner if closes_itself else packet.index(b">", at) + 1
        if element.name == (RDF_NS, "RDF"):
            rdf_depth = 0
            if not outline.self_closing:
                outline.end = at

    parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = declared, refuse
    parser.StartElementHandler, parser.EndElementHandler = begins, ends
    try:
        packet.decode()
        parser.Parse(packet, True)
    except (expat.ExpatError, UnicodeDecodeError) as error:
        raise _broken(str(error)) from error
    if not outline.rdf_name:
        raise _broken("it has no rdf:RDF")
    return outline


def _description(rdf_prefix: str, about: str, properties: Mapping[Name, str]) -> bytes:
    rdf = f"{rdf_prefix}:" if rdf_prefix else ""
    # An attribute without a prefix has no namespace, also where rdf is the default one.
    named = f"rdf:about={quoteattr(about)}" + ("" if rdf_prefix == "rdf" else f' xmlns:rdf="{RDF_NS}"')
    namespaces = dict.fromkeys(namespace for namespace, _ in properties)
    lines = [
        f"<{rdf}Description {named}",
        *(f'  xmlns:{PREFIXES[namespace]}="{namespace}"' for namespace in namespaces),
        *(f"  {PREFIXES[namespace]}:{local}={quoteattr(value)}" for (namespace, local), value in properties.items()),
    ]
    return ("\n" + "\n".join(lines) + "/>").encode()


def _says_nothing(raw: str, name: Name) -> bool:
    return raw == "xmlns" or raw.startswith("xmlns:") or name in ((RDF_NS, "about"), ("", "about"))


def _with_blanks(packet: bytes, start: int) -> int:
    """Where the blanks before a tag begin, so that no empty line stays."""
    return len(packet[:start].rstrip(b" \t\r\n"))


def _broken(detail: str) -> NotWritten:
    return NotWritten("xmp-unreadable", f"its XMP cannot be edited safely: {detail}")
