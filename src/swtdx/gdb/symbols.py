"""A file that GDB takes symbols from, made of what a kernel says of itself in /proc/kallsyms.

Distributions' kernels have no symbol table; their own list of symbols is one.  It has the addresses of the
boot that it was read in: with ``nokaslr`` on the command line those are the same in every boot.

Source: System V ABI, chapter 4 (ELF header, sections, symbol table); x86-64 supplement.
"""

from __future__ import annotations

import itertools
import struct
from typing import Final

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_NOBITS, _SYMTAB, _STRTAB = 8, 2, 3
_FUNCTION, _LOCAL, _GLOBAL = 2, 0, 1
_NAMES: Final = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
#: Where a kernel's addresses begin: what is below is an offset, not an address.
_KERNEL: Final = 0xFFFF_8000_0000_0000


class SymbolsError(ValueError):
    """What was given is not a list of symbols with their addresses."""


def functions(kallsyms: bytes) -> list[tuple[int, str, bool]]:
    """(address, name, whether it is global) of the kernel's own functions, ascending; modules' are left out.

    Raises:
        SymbolsError: there are none with an address: an ordinary user has read the list, or it is another
            file.
    """
    found = []
    for line in kallsyms.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "tTwW":
            try:
                address = int(words[0], 16)
            except ValueError:
                continue
            if address >= _KERNEL:
                found.append((address, words[2], words[1].isupper()))
    if not found:
        raise SymbolsError("there is no function with an address: it takes /proc/kallsyms, read by root")
    return sorted(found)


def symbol_file(kallsyms: bytes) -> bytes:
    """An ELF file with these functions, and no code: GDB reads that out of the guest.

    Raises:
        SymbolsError: as :func:`functions`.
    """
    known = functions(kallsyms)
    start, end = known[0][0], known[-1][0] + 1
    strings, symbols = bytearray(b"\0"), bytearray(_SYMBOL.size)
    ordered = sorted(known, key=lambda one: one[2])
    following = {a[0]: b[0] for a, b in itertools.pairwise(known) if a[0] != b[0]}
    for address, name, is_global in ordered:
        info = (_GLOBAL if is_global else _LOCAL) << 4 | _FUNCTION
        size = following.get(address, end) - address
        symbols += _SYMBOL.pack(len(strings), info, 0, 1, address, size)
        strings += name.encode() + b"\0"
    locals_ = 1 + sum(not one[2] for one in known)
    at = _HEADER.size
    sections = [
        _SECTION.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        _SECTION.pack(_NAMES.index(b".text"), _NOBITS, 6, start, at, end - start, 0, 0, 16, 0),
        _SECTION.pack(_NAMES.index(b".symtab"), _SYMTAB, 0, 0, at, len(symbols), 3, locals_, 8, _SYMBOL.size),
        _SECTION.pack(_NAMES.index(b".strtab"), _STRTAB, 0, 0, at + len(symbols), len(strings), 0, 0, 1, 0),
        _SECTION.pack(
            _NAMES.index(b".shstrtab"),
            _STRTAB,
            0,
            0,
            at + len(symbols) + len(strings),
            len(_NAMES),
            0,
            0,
            1,
            0,
        ),
    ]
    body = bytes(symbols + strings) + _NAMES
    body += bytes(-len(body) % 8)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _HEADER.pack(
        identity, 2, 62, 1, start, 0, at + len(body), 0, _HEADER.size, 0, 0, _SECTION.size, len(sections), 4
    )
    return header + body + b"".join(sections)
