"""After a good INSTALL: what lies in the SEAM range, and what is entered there.

Places and values: structures.md §12, life-cycle.md §1, and ``seam_vmcs_setup.c`` and
``seam_memory_map.c`` of intel/seam-loader, at raw offsets.
"""

from __future__ import annotations

import hashlib

import pytest

from swtdx.firmware import seam_vmcs
from swtdx.firmware.image import SignedImage
from swtdx.firmware.signing import ModuleProperties, sign_module
from swtdx.platform import Platform

from .conftest import Boot
from .support import MIB, PAGE, SEAM, enter_root, u

BASE, SIZE = 192 * MIB, 32 * MIB
LIMIT = BASE + SIZE - 2 * MIB  # where the P-SEAMLDR's range begins
CODE = LIMIT - 2 * MIB
PROPERTIES = ModuleProperties(
    rip_offset=0x640, num_stack_pages=2, num_tls_pages=3, num_keyhole_pages=15, num_global_data_pages=31,
    module_hv=3, min_update_hv=2, no_downgrade=1, num_handoff_pages=7,
)  # fmt: skip


@pytest.fixture
def platform(boot: Boot, pages: bytes) -> Platform:
    """2 packages of 3 processors: x2APIC ids 0, 1, 2, 4, 5, 6 of 8 that could exist."""
    return boot(packages=2, cpus=3, module=sign_module(pages, properties=PROPERTIES))


def read(platform: Platform, pa: int, size: int) -> bytes:
    return platform.machine.memory.read(pa, size, SEAM)


def test_the_modules_pages(platform: Platform, pages: bytes) -> None:
    assert read(platform, CODE, len(pages)) == pages
    assert not any(read(platform, CODE + len(pages), 2 * MIB - len(pages)))
    # Data, stacks and page tables are clear.
    assert not any(read(platform, BASE + 9 * PAGE, CODE - BASE - 9 * PAGE))


def test_sys_info_table(platform: Platform) -> None:
    table = read(platform, BASE, PAGE)
    assert table[:2048] == read(platform, BASE + SIZE - PAGE, 2048)  # MCHECK's half
    regions = [u(table, 2056 + 8 * number, 8) for number in range(10)]
    code, code_size, data, data_size, stack, stack_size, keyhole, keyhole_size, edit, edit_size = regions
    assert len({region >> 34 & 0x1FFF for region in (code, data, stack, keyhole, edit)}) == 1
    assert [region & ~(0x1FFF << 34) for region in (code, stack, keyhole, data, edit)] == [
        0xFFFF800000000000, 0xFFFF800100000000, 0xFFFF800200000000, 0xFFFF800300000000, 0x0000000100000000,
    ]  # fmt: skip
    addressable = 8
    assert code_size == PAGE
    assert data_size == addressable * 4 * PAGE + 32 * PAGE
    assert stack_size == addressable * (3 + 1) * PAGE  # with a shadow stack page
    assert keyhole_size == addressable * 16 * PAGE
    assert edit_size == PAGE  # 128 entries of 8 bytes
    assert (u(table, 2136, 8), u(table, 2144, 8)) == (2, 3)
    assert (u(table, 2152, 2), u(table, 2154, 2), table[2156], u(table, 2158, 2)) == (3, 2, 1, 7)
    assert not any(table[2160:])


def test_a_seam_vmcs_for_every_addressable_processor(platform: Platform) -> None:
    table = read(platform, BASE, PAGE)
    code, data, stack = u(table, 2056, 8), u(table, 2072, 8), u(table, 2088, 8)
    aslr = code & 0x1FFF << 34
    fields = seam_vmcs.SEAM_VMCS.fields
    for x2apic_id in range(8):
        vmcs = read(platform, BASE + PAGE * (1 + x2apic_id), PAGE)

        def field(name: str, vmcs: bytes = vmcs) -> int:
            declared = fields[name]
            return u(vmcs, declared.offset, declared.size)

        assert u(vmcs, 0, 4) == platform.machine.processors[0].rdmsr(0x480) & 0x7FFFFFFF
        assert u(vmcs, 4, 4) == 0
        assert field("host_rip") == code + 0x640
        assert field("host_rsp") == stack + x2apic_id * 4 * PAGE + 3 * PAGE - 8
        assert field("host_ssp") == stack + (x2apic_id + 1) * 4 * PAGE - 8
        assert field("host_gs_base") == data + x2apic_id * 4 * PAGE
        assert field("host_fs_base") == 0xFFFF8003FFFF0000 | aslr
        # Not canonical, so that a SEAMRET before the first SEAMCALL faults.
        assert field("guest_rip") >> 47 not in (0, 0x1FFFF)
        assert field("host_cr0") & 0x80000021 == 0x80000021  # IA32_VMX_CR0_FIXED0
        assert field("host_cr4") & 0x2020 == 0x2020  # VMXE and PAE
        assert field("host_efer") & 0xD00 == 0xD00  # LME, LMA, NXE
        assert (field("host_cs_selector"), field("host_ss_selector"), field("host_tr_selector")) == (
            8,
            16,
            24,
        )
        assert BASE < field("host_cr3") < CODE
    assert not any(read(platform, BASE + 9 * PAGE, PAGE))


def test_seamextend(platform: Platform, pages: bytes) -> None:
    extend = platform.machine.seam.extend
    assert extend[24:72] == hashlib.sha384(pages).digest()
    assert (u(extend, 0, 8), u(extend, 8, 2), extend[128], extend[130]) == (0x1FF, 0x0105, 1, 1)


def test_the_module_is_entered_on_every_processor(platform: Platform) -> None:
    enter_root(platform)
    for lp in platform.machine.processors:
        lp.gpr[:] = [100 + lp.index] * 16
        lp.seamcall()
        assert not lp.cf
        assert lp.gpr == [101 + lp.index, *[100 + lp.index] * 15]
    module = platform.machine.seam.module
    assert module.calls == 6
    assert module.seam_range == (BASE, LIMIT - BASE)


def test_aslr_differs_between_seeds_and_not_within_one(boot: Boot) -> None:
    def code(seed: bytes) -> int:
        return u(read(boot(seed=seed), BASE, PAGE), 2056, 8)

    assert code(b"a" * 16) == code(b"a" * 16)
    assert len({code(bytes([number]) * 16) for number in range(8)}) > 1


def test_nothing_of_the_range_is_seen_from_outside(platform: Platform) -> None:
    host = platform.host.memory
    for pa in (BASE, BASE + PAGE, CODE, LIMIT, BASE + SIZE - 64):
        assert host.read(pa, 64) == b"\xff" * 64
        before = read(platform, pa, 64)
        host.write(pa, bytes(64))
        assert read(platform, pa, 64) == before


def test_the_buffers_of_the_firmware_are_given_back_clean(platform: Platform) -> None:
    assert platform.machine.memory.frames_are_zero(2 * MIB, 4 * MIB)
    for base, size in platform.host.memory_map():
        assert base + size <= BASE or base >= BASE + SIZE
    assert all(not lp.cr4 for lp in platform.machine.processors)
    assert all(lp.mode.value == "VMX off" for lp in platform.machine.processors)


def test_summary_says_what_is_there(platform: Platform, pages: bytes, image: SignedImage) -> None:
    summary = platform.summary()
    assert summary["module"]["mrseam"] == hashlib.sha384(pages).hexdigest()
    assert summary["module"]["name"] == "stand-in"
    assert summary["module"]["tee_tcb_svn"].startswith("050102")
    assert summary["memory"]["seamrr"] == {"base": BASE, "size": SIZE}
    assert summary["memory"]["cmrs"] == [{"base": MIB, "size": 191 * MIB}]
    assert summary["keyids"]["private"] == {"first": 32, "last": 63}
    ids = [[lp["x2apic_id"] for lp in package["processors"]] for package in summary["packages"]]
    assert ids == [[0, 1, 2], [4, 5, 6]]
    assert summary["p_seamldr"]["acm_x2apic_id"] == 0
