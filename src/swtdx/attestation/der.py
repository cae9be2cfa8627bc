"""The little DER that the SGX extension of a PCK certificate needs (ITU-T X.690)."""

from __future__ import annotations


def tlv(tag: int, content: bytes) -> bytes:
    """One element: tag byte, definite length in the shortest form, content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*elements: bytes) -> bytes:
    """SEQUENCE of already encoded elements."""
    return tlv(0x30, b"".join(elements))


def integer(value: int) -> bytes:
    """INTEGER, value not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def enumerated(value: int) -> bytes:
    """ENUMERATED, value not negative."""
    return tlv(0x0A, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def boolean(value: bool) -> bytes:
    """BOOLEAN."""
    return tlv(0x01, b"\xff" if value else b"\x00")


def octet_string(value: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(0x04, value)


def object_identifier(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return tlv(0x06, bytes(content))


def read(data: bytes) -> list[tuple[int, bytes]]:
    """The elements that ``data`` consists of: (tag byte, content).

    Raises:
        ValueError: it is not DER, or ends within an element.
    """
    elements = []
    at = 0
    while at < len(data):
        if len(data) < at + 2:
            raise ValueError("DER ends in a header")
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or len(data) < at + count:
                raise ValueError("DER has an unusable length")
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if len(data) < at + size:
            raise ValueError("DER ends in an element")
        elements.append((tag, data[at : at + size]))
        at += size
    return elements


def dotted(content: bytes) -> str:
    """An OBJECT IDENTIFIER's content in dotted form."""
    arcs, value = [], 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2) if arcs else 0
    return ".".join(str(arc) for arc in [first, arcs[0] - 40 * first, *arcs[1:]]) if arcs else ""
