"""How the P-SEAMLDR divides the module's part of the SEAM range.

Physical layout, low to high (intel/seam-loader, ``seamldr_install.c`` and ``seam_memory_map.c``)::

    SEAMRR base   SYS_INFO_TABLE (4 KiB)
                  SEAM VMCSs, 4 KiB for each addressable processor, by x2APIC id
                  data region: TLS of each processor, then global data
                  ... page tables grow down from here
                  stacks, for each addressable processor: data stack, shadow stack
                  code: the module's pages, in the last 2 MiB
    P-SEAMLDR range

swtdx's module is Python and walks no page tables in SEAM root mode, so none are built; their space is
reserved and counted, so that what does not fit on hardware does not fit here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.arch.seam_structs import SEAM_SIGSTRUCT
from swtdx.arch.units import PAGE

#: P_SYS_INFO_TABLE and SEAMINFO are the two halves of one page.
HALF_PAGE: Final = PAGE // 2
CODE_REGION: Final = 2 << 20
SHADOW_STACK: Final = PAGE
#: Linear bases (``pseamldr_data_types.h``); address-space randomisation adds bits 46:34.
LINEAR_CODE: Final = 0xFFFF800000000000
LINEAR_STACK: Final = 0xFFFF800100000000
LINEAR_KEYHOLE: Final = 0xFFFF800200000000
LINEAR_DATA: Final = 0xFFFF800300000000
LINEAR_SYSINFO: Final = 0xFFFF8003FFFF0000
LINEAR_KEYHOLE_EDIT: Final = 0x0000000100000000
LINEAR_MODULE: Final = 0x0000000200000000
ASLR_MASK: Final = 0x7FFC


def aslr_bits(random: int) -> int:
    """Randomisation of linear addresses out of a 64-bit random number."""
    return (random & ASLR_MASK) << 32


def page_tables(size: int) -> int:
    """Pages of page tables that the loader reserves to map ``size`` bytes."""
    return sum(-(-(size // unit * 8) // PAGE) for unit in (PAGE, 2 << 20, 1 << 30))


@dataclass(frozen=True, slots=True)
class SeamLayout:
    """The module's part of the SEAM range, ``base`` to ``limit``; addresses and sizes in bytes.

    ``processors`` counts x2APIC ids that could exist, not those that do.
    """

    base: int
    limit: int
    processors: int
    pages: int
    tls: int
    global_data: int
    data_stack: int
    keyhole: int

    @classmethod
    def of(cls, sigstruct: bytes, base: int, limit: int, processors: int, pages: int) -> SeamLayout:
        """The layout that a module's SEAM_SIGSTRUCT asks for."""
        s = SEAM_SIGSTRUCT
        return cls(
            base,
            limit,
            processors,
            pages,
            tls=(s.num_tls_pages.get(sigstruct) + 1) * PAGE,
            global_data=(s.num_global_data_pages.get(sigstruct) + 1) * PAGE,
            data_stack=(s.num_stack_pages.get(sigstruct) + 1) * PAGE,
            keyhole=(s.num_keyhole_pages.get(sigstruct) + 1) * PAGE,
        )

    @property
    def vmcs(self) -> int:
        """Physical address of the SEAM VMCS of x2APIC id 0; the next ones follow page by page."""
        return self.base + PAGE

    @property
    def code(self) -> int:
        """Physical address of the module's pages."""
        return self.limit - CODE_REGION

    @property
    def code_size(self) -> int:
        """Bytes of the module's pages."""
        return self.pages * PAGE

    @property
    def data(self) -> int:
        """Physical address of the data region."""
        return self.vmcs + self.processors * PAGE

    @property
    def data_size(self) -> int:
        """Bytes of the data region."""
        return self.processors * self.tls + self.global_data

    @property
    def stack(self) -> int:
        """Physical address of the stacks."""
        return self.code - self.stack_size

    @property
    def lp_stack(self) -> int:
        """Bytes of one processor's data and shadow stack."""
        return self.data_stack + SHADOW_STACK

    @property
    def stack_size(self) -> int:
        """Bytes of all stacks."""
        return self.processors * self.lp_stack

    @property
    def keyhole_size(self) -> int:
        """Bytes of the linear keyhole region."""
        return self.processors * self.keyhole

    @property
    def keyhole_edit_size(self) -> int:
        """Bytes of the linear region in which the keyholes' page tables can be edited."""
        return -(-self.keyhole_size // PAGE * 8 // PAGE) * PAGE

    @property
    def paging_size(self) -> int:
        """Bytes of page tables, with the PML4."""
        mapped = (
            PAGE, self.stack_size, self.data_size, self.keyhole_size, self.keyhole_edit_size, self.code_size,
        )  # fmt: skip
        return PAGE * (sum(page_tables(size) for size in mapped) + 1)

    @property
    def needed(self) -> int:
        """Bytes that the module's part must have at least."""
        vmcss = self.processors * PAGE
        return PAGE + vmcss + self.stack_size + self.data_size + self.paging_size + CODE_REGION
