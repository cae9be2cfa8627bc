"""Bytes out of the text in which people keep and send them: hex, dumps, base64, JSON around it.

What a quote comes in is not what it is: ``xxd -p`` and ``od`` print hex with line ends, HTTP APIs carry
base64 or base64url, and evidence of confidential containers, dstack and others is JSON with the quote in
one of its members.  Or it is copied out of a program or a log, or packed.  Nothing here knows what the bytes
mean; the caller says what it is looking for.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

#: Text longer than this is not searched for other forms, in bytes: far above any quote or log.
MOST: Final = 64 << 20
#: How deep text is looked for in text (JSON in base64 in JSON ...).
_DEPTH: Final = 4

_HEX: Final = re.compile(rb"(?:0[xX])?(?:[0-9a-fA-F]{2}[\s:,]*)+")
#: A line of xxd (colon, groups, two blanks, characters), of hexdump -C (characters between bars) or of od.
_XXD: Final = re.compile(rb"^[0-9a-fA-F]{6,8}:\s+((?:[0-9a-fA-F]{2,8} )+?)(?: .*)?$")
_OTHER: Final = re.compile(rb"^[0-9a-fA-F]{7,8}((?:\s{1,2}[0-9a-fA-F]{2})+)\s*(?:\|.*)?$")
_OFFSET: Final = re.compile(rb"^[0-9a-fA-F]{6,8}$")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
#: The source of a byte array in C and its like: 0x12, 0x34 or \\x12\\x34.
_ARRAY: Final = re.compile(rb"(?:0[xX]|\\x)([0-9a-fA-F]{1,2})(?![0-9a-fA-F])")
_ARMOUR: Final = re.compile(rb"^-----(?:BEGIN|END)[^\n]*$", re.MULTILINE)
#: A long word of hex or base64 inside other text (a line of a log, YAML, a token), and how many are tried.
_WORD: Final = re.compile(rb"[A-Za-z0-9+/_\-]{600,}={0,2}")
_WORDS: Final = 16
#: Bytes as decimal numbers, as programs print arrays: [4, 0, 2] or [4 0 2].
_DECIMALS: Final = re.compile(rb"(?<![\w.])\d{1,3}(?:[,\s]{1,3}\d{1,3}){64,}(?![\w.])")
#: A line of a dump with something before it: what Linux's print_hex_dump prints, or gdb's x/8xb.
_PREFIXED: Final = re.compile(
    rb"(?:^|[^0-9a-fA-F])(?:0x)?[0-9a-fA-F]{8,16}:((?:\s(?:0x)?[0-9a-fA-F]{2}){1,16})(?:\s{2}.*)?$"
)
#: What a line of hex or of base64 among others consists of, without blanks around it.
_HEX_LINES: Final = re.compile(rb"(?:[0-9a-fA-F]{2}[\s:,]*){8,}")
_BASE64_LINES: Final = re.compile(rb"[A-Za-z0-9+/_\-]{48,}={0,2}|[A-Za-z0-9+/_\-]+={1,2}")
#: Lines one behind the other that are taken for one text.
_BLOCK: Final = 4
#: Not None, which JSON has.
_NOT_JSON: Final = object()
_GZIP: Final = b"\x1f\x8b"
_UTF16: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def candidates(data: bytes) -> Iterator[tuple[bytes, str]]:
    """What ``data`` may stand for, the likeliest first: (bytes, how they were written).

    The bytes themselves come first, as ``binary``.
    """
    yield data, "binary"
    if data[:2] == _GZIP:
        data = _unzip(data)
        yield data, "gzip"
    if len(data) <= MOST:
        yield from _text(data, _DEPTH)


def decode(data: bytes, wanted: Callable[[bytes], bool]) -> tuple[bytes, str] | None:
    """The first candidate that is ``wanted``, and how it was written; None if there is none."""
    for found, form in candidates(data):
        if wanted(found):
            return found, form
    return None


def looks_like_text(data: bytes) -> str:
    """``hex``, ``base64`` or ``JSON`` if ``data`` is one of these, whatever is in it; else ""."""
    for _, form in candidates(data):
        if form != "binary":
            return form.partition(" ")[0].rstrip(",")
    return ""


def _text(data: bytes, depth: int) -> Iterator[tuple[bytes, str]]:
    if not depth:
        return
    encoding = _UTF16.get(data[:2])
    if encoding:
        data = data[2:].decode(encoding, "ignore").encode()
    text = data.removeprefix(b"\xef\xbb\xbf").strip().strip(b"\0").strip()
    if not text:
        return
    if text[:1] in b'{["' and (document := _parsed(text)) is not _NOT_JSON:
        yield from _json(document, depth)
        return
    if text[:2] == b"\\x" and _HEX.fullmatch(text[2:]):
        text = text[2:]  # a bytea of PostgreSQL
    if text[:2] in (b"b'", b'b"') and (literal := _literal(text)):
        yield literal, "a Python literal"
    if _HEX.fullmatch(text):
        digits = re.sub(rb"[\s:,]", b"", text)
        digits = digits[2:] if digits[:2] in (b"0x", b"0X") else digits
        yield bytes.fromhex(digits.decode("ascii")), "hex"
    dump = _dump(text)
    if dump:
        yield dump, "hex dump"
    array = _ARRAY.findall(text)
    if len(array) > 64:
        yield bytes(int(digits, 16) for digits in array), "hex, byte by byte"
    if text.startswith(b"-----BEGIN"):
        text = _ARMOUR.sub(b"", text).strip()
    if not _BASE64.fullmatch(text):
        if text.isascii() and b"\0" not in text:
            yield from _numbers(text)
            yield from _words(text, depth)
            yield from _blocks(text, depth)
    else:
        joined = b"".join(text.split()).rstrip(b"=")
        name = "base64url" if b"-" in joined or b"_" in joined else "base64"
        try:
            plain = base64.b64decode(
                joined.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(joined) % 4), validate=True
            )
        except binascii.Error:
            return
        yield plain, name
        for inner, form in _text(plain, depth - 1):
            yield inner, f"{form} in {name}"


def _words(text: bytes, depth: int) -> Iterator[tuple[bytes, str]]:
    """What the longest words of a text stand for."""
    words = sorted(_WORD.findall(text), key=len, reverse=True)
    for word in words[:_WORDS]:
        for inner, form in _text(word, depth - 1):
            yield inner, f"{form} in other text"


def _numbers(text: bytes) -> Iterator[tuple[bytes, str]]:
    """Arrays of bytes that are printed as decimal numbers."""
    for match in _DECIMALS.finditer(text):
        values = [int(digits) for digits in re.findall(rb"\d+", match[0])]
        if max(values) <= 0xFF:
            yield bytes(values), "decimal numbers in other text"


def _blocks(text: bytes, depth: int) -> Iterator[tuple[bytes, str]]:
    """Lines of hex or of base64 one behind the other, with other lines before or after them, or indented."""
    for lines, any_line in ((_HEX_LINES, _HEX), (_BASE64_LINES, _BASE64)):
        block: list[bytes] = []
        for line in (*text.splitlines(), b"."):
            word = line.strip()
            if lines.fullmatch(word):
                block.append(word)
                continue
            if len(block) >= _BLOCK:
                # The last line is shorter, and may look like any word.
                tail = [word] if any_line.fullmatch(word) else []
                for whole in ([*block, *tail], block) if tail else (block,):
                    for inner, form in _text(b"\n".join(whole), depth - 1):
                        yield inner, f"{form} in other text"
            block = []


def _unzip(data: bytes) -> bytes:
    """What gzip has packed, or as much of it as is looked at; b"" if it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data, MOST)
    except zlib.error:
        return b""


def _dump(text: bytes) -> bytes:
    """The bytes of a dump by xxd, hexdump -C or od -tx1, b"" if ``text`` is none."""
    out = b""
    for line in text.splitlines():
        line = line.rstrip()
        if line == b"*":
            # Lines are left out here: how many, only the offsets would say.
            return b""
        match = _XXD.match(line + b"  ") or _OTHER.match(line) or _PREFIXED.search(line)
        if match is None:
            if not out or not _OFFSET.match(line):
                return b""
            continue
        digits = re.sub(rb"\s|0x", b"", match[1])
        if len(digits) % 2:
            return b""
        out += bytes.fromhex(digits.decode("ascii"))
    return out


def _literal(text: bytes) -> bytes:
    """The bytes that Python prints so, b"" if it does not."""
    try:
        value = ast.literal_eval(text.decode("ascii"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return b""
    return value if isinstance(value, bytes) else b""


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _json(document: Any, depth: int) -> Iterator[tuple[bytes, str]]:
    for path, value in _members(document, ""):
        where = f"JSON, member {path}" if path else "JSON"
        if isinstance(value, str):
            raw = value.encode("utf-8", "replace")
            for inner, form in _text(raw, depth - 1):
                yield inner, f"{where}, {form}"
        else:
            yield bytes(value), f"{where}, numbers"


def _is_array(value: dict[str, Any]) -> bool:
    """Whether it is what JavaScript makes of an array of bytes: {"0": 4, "1": 0, ...}."""
    return all(
        key == str(place) and type(each) is int and 0 <= each <= 255
        for place, (key, each) in enumerate(value.items())
    )


def _members(value: Any, path: str) -> Iterator[tuple[str, str | list[int]]]:
    """Every text and every list of bytes in a JSON document, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict) and len(value) > 64 and _is_array(value):
        yield path, list(value.values())
    elif isinstance(value, dict):
        # "quote" before what may be as long and is none, such as an event log.
        for key in sorted(value, key=lambda each: "quote" not in str(each).lower()):
            yield from _members(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if len(value) > 64 and all(isinstance(each, int) and 0 <= each <= 255 for each in value):
            yield path, value
            return
        for place, each in enumerate(value):
            yield from _members(each, f"{path}[{place}]")
