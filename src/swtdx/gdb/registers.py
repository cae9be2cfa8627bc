"""The registers that GDB is told of, with the metadata fields that hold them.

Source: GDB's manual, appendix G (target descriptions): features ``org.gnu.gdb.i386.core``, ``.sse`` and
``.segments``; names and order are those of ``features/i386/64bit-*.xml``.  The feature
``org.swtdx.system`` is ours: what GDB has no names for.  Extended state is in the XSAVE area (SDM volume 1,
section 13.4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Register:
    """One register.

    Args:
        name: GDB's.
        bits: its size.
        kind: GDB's type of it.
        field: the metadata field of the vCPU that holds it, or
        xsave: where in the XSAVE area it is, and how many bytes of it.
        group: GDB's, for ``info registers``.
    """

    name: str
    bits: int
    kind: str
    field: str = ""
    xsave: tuple[int, int] | None = None
    group: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.bits // 8


def _core() -> list[Register]:
    general = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    kinds = {"rbp": "data_ptr", "rsp": "data_ptr"}
    found = [
        Register(name, 64, kinds.get(name, "int64"), "GUEST_RSP" if name == "rsp" else name.upper())
        for name in general
    ]
    found += [
        Register("rip", 64, "code_ptr", "GUEST_RIP"),
        Register("eflags", 32, "i386_eflags", "GUEST_RFLAGS"),
    ]
    found += [
        Register(name, 32, "int32", f"GUEST_{name.upper()}_SELECTOR")
        for name in ("cs", "ss", "ds", "es", "fs", "gs")
    ]
    found += [Register(f"st{n}", 80, "i387_ext", xsave=(32 + 16 * n, 10)) for n in range(8)]
    places = {
        "fctrl": (0, 2), "fstat": (2, 2), "ftag": (4, 1), "fiseg": (12, 2), "fioff": (8, 4), "foseg": (20, 2),
        "fooff": (16, 4), "fop": (6, 2),
    }  # fmt: skip
    found += [Register(name, 32, "int", xsave=place, group="float") for name, place in places.items()]
    return found


def _sse() -> list[Register]:
    found = [Register(f"xmm{n}", 128, "vec128", xsave=(160 + 16 * n, 16)) for n in range(16)]
    return [*found, Register("mxcsr", 32, "int", xsave=(24, 4), group="vector")]


def _segments() -> list[Register]:
    return [Register(f"{name}_base", 64, "int", f"GUEST_{name.upper()}_BASE") for name in ("fs", "gs")]


def _system() -> list[Register]:
    fields = {
        "cr0": "GUEST_CR0", "cr2": "CR2", "cr3": "GUEST_CR3", "cr4": "GUEST_CR4", "efer": "GUEST_EFER",
        "xcr0": "XCR0", "gdtr_base": "GUEST_GDTR_BASE", "gdtr_limit": "GUEST_GDTR_LIMIT",
        "idtr_base": "GUEST_IDTR_BASE", "idtr_limit": "GUEST_IDTR_LIMIT", "tr": "GUEST_TR_SELECTOR",
        "tr_base": "GUEST_TR_BASE", "ldtr": "GUEST_LDTR_SELECTOR", "lstar": "IA32_LSTAR", "star": "IA32_STAR",
        "kernel_gs_base": "IA32_KERNEL_GS_BASE", "dr0": "DR0", "dr1": "DR1", "dr2": "DR2", "dr3": "DR3",
        "dr6": "DR6", "dr7": "GUEST_DR7",
    }  # fmt: skip
    return [Register(name, 64, "int64", field, group="system") for name, field in fields.items()]


_FEATURES: Final = {
    "org.gnu.gdb.i386.core": _core(),
    "org.gnu.gdb.i386.sse": _sse(),
    "org.gnu.gdb.i386.segments": _segments(),
    "org.swtdx.system": _system(),
}
#: By GDB's numbers.
REGISTERS: Final[tuple[Register, ...]] = tuple(one for each in _FEATURES.values() for one in each)
BY_NAME: Final = {register.name: number for number, register in enumerate(REGISTERS)}
#: How many of them the answer to ``g`` has: those that GDB wants with every stop.
GENERAL: Final = len(_FEATURES["org.gnu.gdb.i386.core"])

#: EFLAGS by name and bit.
_FLAGS: Final = {
    "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16,
    "AC": 18, "ID": 21,
}  # fmt: skip
#: The views of a vector register: GDB's name of the view, the element's type, how many.
_VECTORS: Final = (
    ("v4_float", "ieee_single", 4), ("v2_double", "ieee_double", 2), ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8), ("v4_int32", "int32", 4), ("v2_int64", "int64", 2),
)  # fmt: skip


def _flags() -> str:
    fields = (f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS.items())
    return f'<flags id="i386_eflags" size="4">{"".join(fields)}</flags>'


def _vectors() -> str:
    types = (f'<vector id="{name}_t" type="{kind}" count="{count}"/>' for name, kind, count in _VECTORS)
    views = (f'<field name="{name}" type="{name}_t"/>' for name, _, _ in _VECTORS)
    union = f'<union id="vec128">{"".join(views)}<field name="uint128" type="uint128"/></union>'
    return "".join(types) + union


_TYPES: Final = {"org.gnu.gdb.i386.core": _flags, "org.gnu.gdb.i386.sse": _vectors}


def target_xml() -> bytes:
    """The description that GDB fetches as ``target.xml``."""
    parts = ['<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>']
    parts.append("<architecture>i386:x86-64</architecture>")
    for feature, registers in _FEATURES.items():
        parts.append(f'<feature name="{feature}">{_TYPES.get(feature, str)()}')
        for one in registers:
            group = f' group="{one.group}"' if one.group else ""
            parts.append(f'<reg name="{one.name}" bitsize="{one.bits}" type="{one.kind}"{group}/>')
        parts.append("</feature>")
    parts.append("</target>")
    return "".join(parts).encode()
