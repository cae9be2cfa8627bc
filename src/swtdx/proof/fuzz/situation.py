"""What a caller can choose operands from: the pages, keys, TDs and addresses that there are at a moment.

Everything is drawn through a :data:`Choose`, so that a random generator and Hypothesis can both be behind
it; the same answers give the same operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from swtdx.arch import sept_bits
from swtdx.arch.leaf import Leaf
from swtdx.arch.metadata import NULL_ID, TABLES, Context
from swtdx.arch.states import Lifecycle, OpState
from swtdx.arch.units import LARGE_PAGE, MASK64, PAGE
from swtdx.proof.conformance.stages import td_params
from swtdx.proof.conformance.world import OUTSIDE, PAMT_4K, TDMR, World
from swtdx.proof.invariants import Picture, TdView, read

#: Called with n > 0, it answers a number from 0 to n - 1.
Choose = Callable[[int], int]
T = TypeVar("T")

#: 4-KiB pages, 2-MiB pages and HKIDs that the caller has for TDs.
POOL: Final = tuple(TDMR + number * PAGE for number in range(160))
LARGES: Final = tuple(TDMR + (256 << 20) + number * LARGE_PAGE for number in range(4))
HKIDS: Final = 3
#: GPAs: small pages below two Secure EPT pages, two large ones, and places with no tree at all.
SMALL_GPAS: Final = (0x1000, 0x2000, 0x3000, 0x7000, 0x1FF000, LARGE_PAGE + 0x1000, LARGE_PAGE + 0x5000)
LARGE_GPAS: Final = (0, LARGE_PAGE, 2 * LARGE_PAGE)
FAR_GPAS: Final = (1 << 30, 1 << 39, 1 << 46, 1 << 47, 1 << 51, (1 << 47) - PAGE)
#: Values that upset code that was not written with them in mind.
ODD_VALUES: Final = (
    0, 1, 2, 7, 8, 0xFFF, 0x1000, 0x1001, 1 << 12 | 3, 1 << 20, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 46,
    1 << 47, 1 << 51, 1 << 52, 1 << 62, 1 << 63, MASK64, MASK64 - 7, 0x8000_0000_0000_0001,
    0x0123_4567_89AB_CDEF, 0xFFFF_8000_0000_0000, 0x7FFF_FFFF_FFFF_F000,
)  # fmt: skip


def pick(choose: Choose, values: Sequence[T]) -> T:
    """One of ``values``."""
    return values[choose(len(values))]


class Situation:
    """A machine whose module is ready, and what may be chosen on it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hkids = tuple(range(world.first_hkid + 1, world.first_hkid + 1 + HKIDS))
        self.shift = world.platform.host.keyid_shift
        self.sources = tuple(world.buffer(bytes([number]) * PAGE) for number in range(1, 4))
        good = (td_params(world), td_params(world, attributes=1 << 28), td_params(world, max_vcpus=1))
        bad = (
            td_params(world, attributes=1 << 5),
            td_params(world, xfam=0),
            td_params(world, max_vcpus=0),
            td_params(world, eptp_controls=6 | 2 << 3),
            td_params(world, tsc_frequency=3),
            td_params(world, config_flags=1 << 20),
            bytes(range(256)) * 4,
        )
        self.params = tuple(world.buffer(each) for each in good)
        self.bad_params = tuple(world.buffer(each) for each in bad)
        self.scratch = tuple(world.buffer(bytes(PAGE)) for _ in range(4))
        self.picture = Picture(False)
        self.look()

    def look(self, picture: Picture | None = None) -> None:
        """Take the present state of the machine as the one to choose from."""
        self.picture = read(self.world.machine) if picture is None else picture
        used = self.picture.pages
        self.free = tuple(hpa for hpa in POOL if hpa not in used)
        taken = {hpa & -LARGE_PAGE for hpa in used}
        self.free_large = tuple(hpa for hpa in LARGES if hpa not in taken)
        self.owned = tuple(used)
        self.tds = tuple(self.picture.tds.values())
        self.vcpus = tuple(vcpu for td in self.tds for vcpu in td.vcpus)

    # ------------------------------------------------------------------ objects
    def td(self, choose: Choose, leaf: Leaf | None = None) -> TdView | None:
        """A TD, rather one in a state that the leaf allows; None if there is none."""
        if not self.tds:
            return None
        if leaf is not None and leaf.op_states is not None and choose(8):
            allowed = [td for td in self.tds if td.op_state is not None and leaf.op_states >> td.op_state & 1]
            if allowed:
                return pick(choose, allowed)
        return pick(choose, self.tds)

    def new_page(self, choose: Choose) -> int:
        """A free 4-KiB page (HPA), or 0 when none is left."""
        return pick(choose, self.free) if self.free else 0

    def wrong_page(self, choose: Choose) -> int:
        """A page operand that is not a free page, mostly."""
        kinds: tuple[Callable[[], int], ...] = (
            lambda: pick(choose, self.owned) if self.owned else 0,
            lambda: pick(choose, POOL) | 1 << choose(12),
            lambda: OUTSIDE,
            lambda: PAMT_4K,
            lambda: self.world.seam_range,
            lambda: pick(choose, POOL) | (1 + choose(63)) << self.shift,
            lambda: pick(choose, LARGES) + choose(512) * PAGE,
            lambda: TDMR + (1 << 30) - PAGE,
            lambda: pick(choose, ODD_VALUES),
            lambda: pick(choose, POOL),
        )
        return pick(choose, kinds)()

    # ------------------------------------------------------------------ addresses
    def gpa_level(self, choose: Choose, td: TdView | None, leaf: Leaf) -> int:
        """GPA | level of an entry that the leaf can work on, if there is one."""
        if td is not None and leaf.sept_states is not None:
            free = leaf.sept_states & 1
            there = [
                each.gpa | each.level
                for each in td.mappings
                if each.state is not None and leaf.sept_states >> each.state.index & 1
            ]
            if there and (not free or choose(2)):
                return pick(choose, there)
            if free:
                return self.free_entry(choose, td, leaf)
        return self.any_gpa_level(choose)

    def free_entry(self, choose: Choose, td: TdView, leaf: Leaf) -> int:
        """GPA | level of an entry that is free, or the tree above it if that is missing."""
        if leaf.name == "TDH.MEM.SEPT.ADD":
            missing = [
                gpa & -sept_bits.LEVEL_BYTES[level] | level
                for level in (3, 2, 1)
                for gpa in (*LARGE_GPAS, 1 << 30)
                if td.mapping(gpa & -sept_bits.LEVEL_BYTES[level], level) is None
            ]
            return pick(choose, missing) if missing else self.any_gpa_level(choose)
        if leaf.name == "TDH.MEM.PAGE.AUG" and choose(2):
            return pick(choose, LARGE_GPAS) | 1
        return pick(choose, SMALL_GPAS)

    def any_gpa_level(self, choose: Choose) -> int:
        """Any GPA and level, odd ones among them."""
        gpa = pick(choose, (*SMALL_GPAS, *SMALL_GPAS, *LARGE_GPAS, *FAR_GPAS))
        level = pick(choose, (0, 0, 0, 1, 1, 2, 3, 4, 5, 7))
        if choose(3):
            gpa &= -sept_bits.LEVEL_BYTES[min(level, 4)]
        return gpa | level | (pick(choose, (8, 0x800, 1 << 52, 1 << 63)) if not choose(12) else 0)

    def gpa(self, choose: Choose, td: TdView | None, alignment: int) -> int:
        """A GPA, rather one that is mapped."""
        if td is not None and td.mappings and choose(4):
            leaves = [each for each in td.mappings if each.state is not None and each.state.is_leaf]
            if leaves:
                each = pick(choose, leaves)
                return each.gpa + choose(sept_bits.LEVEL_BYTES[each.level] // alignment) * alignment
        return pick(choose, (*SMALL_GPAS, *LARGE_GPAS, *FAR_GPAS)) + choose(512) * 8

    # ------------------------------------------------------------------ other operands
    @staticmethod
    def field(choose: Choose, context: Context) -> int:
        """A metadata field identifier."""
        row = pick(choose, TABLES[context])
        identifier = row.id
        kind = choose(10)
        if kind == 0:
            return NULL_ID
        if kind == 1:
            return identifier ^ 1 << choose(64)
        if kind == 2:
            return pick(choose, ODD_VALUES)
        return identifier + choose(max(1, min(row.total, 8))) * row.stride

    @staticmethod
    def odd(choose: Choose) -> int:
        """An odd value, or 64 bits at random."""
        if choose(2):
            return pick(choose, ODD_VALUES)
        return choose(1 << 64)


def retired(td: TdView) -> bool:
    """Whether the TD is on its way to its end."""
    return td.lifecycle in (Lifecycle.BLOCKED, Lifecycle.TEARDOWN)


def runnable(td: TdView) -> bool:
    """Whether its vCPUs may be entered."""
    return td.keyed and td.op_state == OpState.RUNNABLE and not td.fatal
