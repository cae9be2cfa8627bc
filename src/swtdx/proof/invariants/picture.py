"""What the TDX Module's structures say, as plain values: pages, TDs, vCPUs, mappings, keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from swtdx.arch.sept import SeptState
from swtdx.arch.states import PAGE_BYTES, Lifecycle, PageType


class Page(NamedTuple):
    """A PAMT entry that is not all zero.  ``size``: 0 4 KiB, 1 2 MiB, 2 1 GiB; ``owner``: HPA of a TDR."""

    hpa: int
    size: int
    kind: int
    owner: int
    bepoch: int
    lock: int

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return PAGE_BYTES[self.size]

    def __str__(self) -> str:
        kind = PageType(self.kind).name if self.kind in PageType.__members__.values() else hex(self.kind)
        return f"{kind} page {self.hpa:#x} (size {self.size})"


class Mapping(NamedTuple):
    """A Secure EPT entry that is not free.  ``state`` is None if its bits name none."""

    gpa: int
    level: int
    raw: int
    hpa: int
    state: SeptState | None


class Translation(NamedTuple):
    """A translation that a processor has cached.  ``low`` and ``high``: KeyIDs of the frames' lines."""

    gpa: int
    hpa: int
    bytes: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class VcpuView:
    """A vCPU: what page 0 of its TDVPS says.  ``pages`` are the HPAs that it lists."""

    tdvpr: int
    state: int
    index: int
    holder: int
    epoch: int
    pages: tuple[int, ...]


@dataclass(slots=True)
class TdView:
    """A TD.  What only its key can tell is None or empty while it has none, and after it has lost it."""

    tdr: int
    hkid: int
    lifecycle: int
    fatal: bool
    children: int
    packages: int
    tdcx: tuple[int, ...]
    op_state: int | None = None
    attributes: int = 0
    epoch: int = 0
    running: tuple[int, int] = (0, 0)
    num_vcpus: int = 0
    num_held: int = 0
    max_vcpus: int = 0
    mrtd: bytes = b""
    eptp: int = 0
    locks: dict[str, int] = field(default_factory=dict)
    vcpus: list[VcpuView] = field(default_factory=list)
    #: Every Secure EPT entry that is not free, by GPA and level.
    mappings: list[Mapping] = field(default_factory=list)
    #: HPAs of the Secure EPT pages that the walk found, the root not counted.
    tables: list[int] = field(default_factory=list)

    @property
    def keyed(self) -> bool:
        """Whether its key works."""
        return self.lifecycle == Lifecycle.KEYS_CONFIGURED

    @property
    def initialised(self) -> bool:
        """Whether TDH.MNG.INIT was done, as far as can be seen."""
        return bool(self.op_state)

    @property
    def private_bits(self) -> int:
        """The width of its private GPAs."""
        return 47 if self.top_level == 3 else 51

    @property
    def top_level(self) -> int:
        """The level of the Secure EPT root's entries: 3, or 4 with five levels of tables."""
        return self.eptp >> 3 & 7

    def mapping(self, gpa: int, level: int) -> Mapping | None:
        """The entry for ``gpa`` at ``level``, if it is not free."""
        return next((each for each in self.mappings if each.gpa == gpa and each.level == level), None)


class KeyView(NamedTuple):
    """An HKID in the key ownership table.  ``flushes``: packages that have yet to write back."""

    state: int
    flushes: int


@dataclass(slots=True)
class Picture:
    """The whole."""

    ready: bool
    global_hkid: int = 0
    first_private: int = 1
    packages: int = 1
    processors: int = 1
    #: (base, end) of what the PAMTs describe so far.
    covered: tuple[tuple[int, int], ...] = ()
    reserved: list[Page] = field(default_factory=list)
    pages: dict[int, Page] = field(default_factory=dict)
    #: Two entries for one HPA, of different sizes: (kept, other).
    doubles: list[tuple[Page, Page]] = field(default_factory=list)
    #: NDA entries that say when they were blocked.
    leftovers: list[Page] = field(default_factory=list)
    locked: list[Page] = field(default_factory=list)
    tds: dict[int, TdView] = field(default_factory=dict)
    keys: dict[int, KeyView] = field(default_factory=dict)
    #: Pages that could not be read: (HPA, why).
    poisoned: list[tuple[int, str]] = field(default_factory=list)
    system_locks: dict[str, int] = field(default_factory=dict)
    #: By processor: TDVPR that ran there last, and cached translations by (EPTP, HKID).
    last_vcpu: list[int] = field(default_factory=list)
    translations: list[dict[tuple[int, int], list[Translation]]] = field(default_factory=list)
    guests_running: int = 0

    def of_kind(self, kind: int) -> list[Page]:
        """Owned pages of one type."""
        return [page for page in self.pages.values() if page.kind == kind]
