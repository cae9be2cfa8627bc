# ruff: noqa: E501  (a table: one row a line)
"""CPUID leaves that a TD sees, and the ones that the host configures, row by row.

Source: ``cpuid_configurations.c`` of the TDX module 1.5.01, and of later public versions for the topology
leaves 0xB and 0x1F of modules with TDX_FEATURES0.TOPOLOGY_ENUM.  Every mask is a tuple of four 32-bit
values in the order EAX, EBX, ECX, EDX.  :mod:`swtdx.arch.cpuid_policy` says how they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

#: EAX, EBX, ECX, EDX.
Quad = tuple[int, int, int, int]

#: Sub-leaf of a leaf that has none.
NA: Final = 0xFFFF_FFFF

_A: Final = 0xFFFF_FFFF
_0: Final[Quad] = (0, 0, 0, 0)
_ALL: Final[Quad] = (_A, _A, _A, _A)


@dataclass(frozen=True, slots=True)
class CpuidRow:
    """One leaf and sub-leaf.

    ``index`` is the row's place in the table: of TDCS.CPUID_VALUES and CPUID_VALID, and of
    TDVPS.CPUID_CONTROL.  ``faulting`` leaves always raise #VE.  TDH.SYS.INIT checks
    ``native & verify_mask == verify_value``, TDH.SYS.LP.INIT that ``native & verify_same`` agrees
    on all processors.  ``cleared`` bits of the native value become 0 (or are computed later),
    ``fixed1`` bits become 1.  ``config`` is the row's place in :data:`CONFIG_ROWS`, if it has one.
    """

    index: int
    leaf: int
    subleaf: int
    faulting: bool
    verify_mask: Quad
    verify_value: Quad
    verify_same: Quad
    cleared: Quad
    fixed1: Quad
    config: int | None


@dataclass(frozen=True, slots=True)
class CpuidConfigRow:
    """One leaf that the host configures in TD_PARAMS.

    ``direct`` bits take the host's value; ``allow`` bits take the native value where the host's is 1.
    """

    index: int
    leaf: int
    subleaf: int
    direct: Quad
    allow: Quad


ROWS: Final[tuple[CpuidRow, ...]] = (
    CpuidRow(0, 0x1, NA, False, (0, 0xff00, 0x47faa217, 0x1fa9fbff), (0, 0x800, 0x47faa217, 0x1fa9fbff), (0xf000c000, 0xffff, 0xf7ffff9f, _A), (0xf000c000, 0xff0000ff, 0x8010060, 0x40120400), (0, 0, 0x80000000, 0x200), 0),
    CpuidRow(1, 0x4, 0, False, (0, 0xfff, 0, 0), (0, 0x3f, 0, 0), _ALL, (0x3c00, 0, 0, 4), _0, 1),
    CpuidRow(2, 0x4, 1, False, (0, 0xfff, 0, 0), (0, 0x3f, 0, 0), _ALL, (0x3c00, 0, 0, 4), _0, 2),
    CpuidRow(3, 0x4, 2, False, (0, 0xfff, 0, 0), (0, 0x3f, 0, 0), _ALL, (0x3c00, 0, 0, 4), _0, 3),
    CpuidRow(4, 0x4, 3, False, (0xe0, 0xfff, 0, 1), (0x60, 0x3f, 0, 0), _ALL, (0x3c00, 0, 0, 0xfffffff8), _0, 4),
    CpuidRow(5, 0x7, 0, False, (_A, 0x219424c3, 0x99000000, 0xfc082600), (2, 0x219424c3, 0x99000000, 0xfc080400), (_A, 0xfffffffb, 0xbfc1ff6f, 0xffebffff), (0, 0x404006, 0x643e8010, 0x2298c3), _0, 5),
    CpuidRow(6, 0x7, 1, False, _0, _0, _ALL, (0xffffe2cf, _A, _A, _A), _0, 6),
    CpuidRow(7, 0xa, NA, False, (0xff00, 0, 0xffffff80, 0x8000), (0x800, 0, 0, 0x8000), _ALL, (0, 0, 0, 0xffff6000), _0, 7),
    CpuidRow(8, 0x1c, NA, False, _0, _0, _ALL, _0, _0, 8),
    CpuidRow(9, 0x80000008, NA, False, (0xff, 0x200, 0, 0), (0x34, 0x200, 0, 0), _ALL, (0xffff0000, 0xfffffdff, _A, _A), _0, 9),
    CpuidRow(10, 0x0, NA, False, (0, _A, _A, _A), (0, 0x756e6547, 0x6c65746e, 0x49656e69), _ALL, (0xffffffdc, 0, 0, 0), (0x23, 0, 0, 0), None),
    CpuidRow(11, 0x3, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(12, 0x4, 4, False, (0x1f, 0, 0, 0), _0, _ALL, _ALL, _0, None),
    CpuidRow(13, 0x6, NA, True, (0x800000, 0, 0, 0), _0, (0x800000, 0, 0, 0), _0, _0, None),
    CpuidRow(14, 0x7, 2, False, (0, 0, 0, 0x17), (0, 0, 0, 0x17), _ALL, (_A, _A, _A, 0xffffffc0), _0, 10),
    CpuidRow(15, 0x8, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(16, 0xd, 0, False, (3, 0, 0, 0), (3, 0, 0, 0), (_A, 0, _A, _A), (0xfff9fd18, _A, 0, _A), _0, None),
    CpuidRow(17, 0xd, 1, False, (0xf, 0, 0x1800, 0), (0xf, 0, 0x1800, 0), (_A, 0, _A, _A), (0xffffffe0, _A, 0xffff26ff, _A), _0, None),
    CpuidRow(18, 0xd, 2, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(19, 0xd, 3, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(20, 0xd, 4, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(21, 0xd, 5, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(22, 0xd, 6, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(23, 0xd, 7, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(24, 0xd, 8, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(25, 0xd, 9, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(26, 0xd, 10, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(27, 0xd, 11, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(28, 0xd, 12, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(29, 0xd, 13, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(30, 0xd, 14, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(31, 0xd, 15, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(32, 0xd, 16, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(33, 0xd, 17, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(34, 0xd, 18, False, _0, _0, _ALL, (0, 0, 0, _A), _0, None),
    CpuidRow(35, 0xe, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(36, 0x11, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(37, 0x12, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(38, 0x13, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(39, 0x14, 0, False, (_A, 0, 0, 0), (1, 0, 0, 0), _ALL, (0, 0xfffffe00, 0x7ffffff0, _A), _0, None),
    CpuidRow(40, 0x14, 1, False, _0, _0, _ALL, (0xfff8, 0, _A, _A), _0, None),
    CpuidRow(41, 0x15, NA, False, _0, _0, _ALL, (0xfffffffe, 0, 0xfe8287bf, _A), (1, 0, 0x17d7840, 0), None),
    CpuidRow(42, 0x19, NA, False, _0, _0, (_A, 0xfffffffe, _A, _A), (0xfffffff8, 0xffffffeb, 0xfffffffd, _A), _0, None),
    CpuidRow(43, 0x1d, 0, False, _0, _0, _ALL, _0, _0, None),
    CpuidRow(44, 0x1d, 1, False, _0, _0, _ALL, _0, _0, None),
    CpuidRow(45, 0x1e, NA, False, _0, _0, _ALL, _0, _0, None),
    CpuidRow(46, 0x1f, 0, True, _0, _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(47, 0x1f, 1, True, _0, _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(48, 0x1f, 2, True, _0, _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(49, 0x1f, 3, True, _0, _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(50, 0x1f, 4, True, _0, _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(51, 0x1f, 5, True, (0, 0, 0xff00, 0), _0, (_A, _A, _A, 0), _0, _0, None),
    CpuidRow(52, 0x20, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(53, 0x21, 0, False, _0, _0, _0, (_A, 0x9a8b91b6, 0xdfdfdfdf, 0xa7bbab93), (0, 0x65746e49, 0x20202020, 0x5844546c), None),
    CpuidRow(54, 0x80000000, NA, False, _0, _0, _ALL, (0x7ffffff7, _A, _A, _A), (0x80000008, 0, 0, 0), None),
    CpuidRow(55, 0x80000001, NA, False, (0, 0, 0x121, 0x2c100800), (0, 0, 0x121, 0x2c100800), _ALL, (_A, _A, 0xfffffede, 0xd3efffff), _0, None),
    CpuidRow(56, 0x80000006, NA, True, (0, 0, 0xff, 0), (0, 0, 0x40, 0), (0, 0, 0xff, 0), _0, _0, None),
    CpuidRow(57, 0x80000007, NA, False, (0, 0, 0, 0x100), (0, 0, 0, 0x100), (0, 0, 0, 0x100), (_A, _A, _A, 0xfffffeff), _0, None),
    CpuidRow(58, 0x22, NA, False, _0, _0, _0, _ALL, _0, None),
    CpuidRow(59, 0x23, 0, False, _0, _0, _ALL, (0xfffffff0, 0, _A, _A), _0, 11),
    CpuidRow(60, 0x23, 1, False, (0xffffff00, 0xfffffff0, 0, 0), _0, _ALL, (0, 0, _A, _A), _0, None),
    CpuidRow(61, 0x23, 2, False, _0, _0, _ALL, _ALL, _0, None),
    CpuidRow(62, 0x23, 3, False, _0, _0, _ALL, (0, _A, _A, _A), _0, None),
    CpuidRow(63, 0x5, NA, False, _0, _0, _ALL, (0xffff0000, 0xffff0000, 0xfffffffc, 0), _0, None),
)  # fmt: skip

CONFIG_ROWS: Final[tuple[CpuidConfigRow, ...]] = (
    CpuidConfigRow(0, 0x1, NA, (0xfff3fff, 0xff0000, 0, 0), (0, 0, 0x31044d88, 0xb8440000)),
    CpuidConfigRow(1, 0x4, 0, (0xffffc3ff, 0xfffff000, _A, 0xfffffffb), _0),
    CpuidConfigRow(2, 0x4, 1, (0xffffc3ff, 0xfffff000, _A, 0xfffffffb), _0),
    CpuidConfigRow(3, 0x4, 2, (0xffffc3ff, 0xfffff000, _A, 0xfffffffb), _0),
    CpuidConfigRow(4, 0x4, 3, (0xffffc3ff, 0xfffff000, _A, 7), _0),
    CpuidConfigRow(5, 0x7, 0, _0, (0, 0xdc2b9b18, 0x2417f65, 0x5411c)),
    CpuidConfigRow(6, 0x7, 1, _0, (0x1d30, 0, 0, 0)),
    CpuidConfigRow(7, 0xa, NA, _0, _0),
    CpuidConfigRow(8, 0x1c, NA, _0, (0xff, 0, 0, 0)),
    CpuidConfigRow(9, 0x80000008, NA, _0, (0, 0x200, 0, 0)),
    CpuidConfigRow(10, 0x7, 2, _0, (0, 0, 0, 0x28)),
    CpuidConfigRow(11, 0x23, 0, _0, (0xf, 0, 0, 0)),
)  # fmt: skip

#: The leaf that tells a TD's topology, which modules with TOPOLOGY_ENUM let the host configure, and how many
#: sub-leaves of it.
TOPOLOGY_LEAF: Final = 0x1F
TOPOLOGY_SUBLEAVES: Final = 6
#: The older leaf for the same, which such modules derive from it; and its sub-leaves.
OLD_TOPOLOGY_LEAF: Final = 0xB
OLD_TOPOLOGY_SUBLEAVES: Final = 3
_TOPOLOGY_CLEARED: Final[Quad] = (0xFFFFFFE0, 0xFFFF0000, 0xFFFF0000, _A)


def _topology_rows() -> tuple[CpuidRow, ...]:
    configs = {subleaf: len(CONFIG_ROWS) + subleaf for subleaf in range(TOPOLOGY_SUBLEAVES)}
    rows = [
        replace(row, faulting=False, cleared=_TOPOLOGY_CLEARED, config=configs[row.subleaf])
        if row.leaf == TOPOLOGY_LEAF
        else row
        for row in ROWS
    ]
    for subleaf in range(OLD_TOPOLOGY_SUBLEAVES):
        cleared = (_A, _A, 0xFFFFFF00, _A) if subleaf == 2 else _TOPOLOGY_CLEARED
        rows.append(CpuidRow(len(rows), OLD_TOPOLOGY_LEAF, subleaf, False, _0, _0, _0, cleared, _0, None))
    return tuple(rows)


@dataclass(frozen=True, eq=False)
class CpuidTable:
    """The leaves that one version of the module knows, and those that a host configures."""

    rows: tuple[CpuidRow, ...]
    configs: tuple[CpuidConfigRow, ...]

    @cached_property
    def _by_leaf(self) -> dict[tuple[int, int], CpuidRow]:
        return {(row.leaf, row.subleaf): row for row in self.rows}

    @cached_property
    def row_of_config(self) -> tuple[int, ...]:
        """The index of the row that each configurable leaf is."""
        found = {row.config: row.index for row in self.rows if row.config is not None}
        return tuple(found[index] for index in range(len(self.configs)))

    def lookup(self, leaf: int, subleaf: int) -> CpuidRow | None:
        """The row of a leaf and sub-leaf (as the guest gives them in EAX and ECX); None raises #VE."""
        return self._by_leaf.get((leaf, NA)) or self._by_leaf.get((leaf, subleaf))


#: Of the module 1.5.01.
BASE_CPUID: Final = CpuidTable(ROWS, CONFIG_ROWS)
#: Of a module with TOPOLOGY_ENUM.
TOPOLOGY_CPUID: Final = CpuidTable(
    _topology_rows(),
    CONFIG_ROWS
    + tuple(
        CpuidConfigRow(len(CONFIG_ROWS) + subleaf, TOPOLOGY_LEAF, subleaf, (0x1F, 0xFFFF, 0xFFFF, 0), _0)
        for subleaf in range(TOPOLOGY_SUBLEAVES)
    ),
)
