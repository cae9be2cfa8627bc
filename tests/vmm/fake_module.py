"""The TDX module of :mod:`tests.vmm.fake_machine`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from swtdx.arch import status as st

if TYPE_CHECKING:
    from tests.vmm.fake_machine import FakeMachine, FakeProcessor, FakeVcpu

PAGE = 4096
BLOCK = 2 << 20
GIB = 1 << 30
U64 = (1 << 64) - 1
Program = Callable[[], Generator[tuple[Any, ...], Any, None]]
INVALID = st.TDX_OPERAND_INVALID
STATE = st.TDX_EPT_ENTRY_STATE_INCORRECT
WALK = st.TDX_EPT_WALK_FAILED
NV, PID, EPTP, PIN = 0x0024000100000002, 0x0024000300002016, 0x002400030000203C, 0x0024000200004000


class Entry:
    """A leaf of a Secure EPT."""

    def __init__(self, level: int, hpa: int, state: str) -> None:
        self.level, self.hpa, self.state, self.bepoch = level, hpa, state, 0


class FakeTd:
    """What the module knows of a TD."""

    def __init__(self, tdr: int, hkid: int) -> None:
        self.tdr, self.hkid = tdr, hkid
        self.lifecycle = "HKID_ASSIGNED"
        self.op_state = "UNINITIALIZED"
        self.packages: set[int] = set()
        self.tdcx = 0
        self.params = b""
        self.leaves: dict[int, Entry] = {}
        self.tables: dict[tuple[int, int], list[Any]] = {}  # (level, gpa) -> [hpa, blocked epoch or None]
        self.epoch = 1
        self.running: dict[int, int] = {}
        self.mr = hashlib.sha384()
        self.vcpus: list[FakeVcpu] = []
        self.flushed_packages: set[int] = set()
        self.children = 0

    def running_in(self, epoch: int) -> bool:
        return any(entered == epoch for entered in self.running.values())

    def tracked(self, bepoch: int) -> bool:
        if self.op_state != "RUNNABLE" or bepoch < self.epoch - 1:
            return True
        return bepoch == self.epoch - 1 and not self.running_in(bepoch)


class FakeModule:
    """Answers SEAMCALLs.  ``programs`` are the guests, by vCPU index; ``log`` every call (leaf, GPRs)."""

    def __init__(self, machine: FakeMachine, cmrs: list[tuple[int, int]]) -> None:
        self.machine = machine
        self.cmrs = cmrs
        self.sys = "SYSINIT_PENDING"
        self.lps: set[int] = set()
        self.keyed: set[int] = set()
        self.tdmrs: list[tuple[int, ...]] = []
        self.progress: dict[int, int] = {}
        self.pamt: dict[int, tuple[str, int]] = {}
        self.blocks: dict[int, int] = {}
        self.tds: dict[int, FakeTd] = {}
        self.dirty: dict[int, int] = {}
        self.hkids: dict[int, str] = {}
        self.global_hkid = 0
        self.programs: dict[int, Program] = {}
        self.log: list[tuple[int, tuple[int, ...]]] = []
        self.busy: dict[int, int] = {}
        self.fail: dict[tuple[int, int], int] = {}
        self.seen: dict[int, int] = {}

    # ------------------------------------------------------------------ pages
    def owns(self, pa: int) -> bool:
        return (pa & -PAGE) in self.pamt or (pa & -BLOCK) in self.blocks

    def managed(self, page: int) -> bool:
        for words in self.tdmrs:
            base, size = words[0], words[1]
            if not base <= page < base + size or page >= self.progress.get(base, 0):
                continue
            areas = zip(words[8::2], words[9::2], strict=True)
            return not any(base + at <= page < base + at + length for at, length in areas if length)
        return False

    def take(self, page: int, kind: str, td: FakeTd, operand: int) -> int:
        if page % PAGE or page >> self.machine.keyid_shift:
            return st.with_operand(INVALID, operand)
        if not self.managed(page):
            return st.with_operand(st.TDX_OPERAND_ADDR_RANGE_ERROR, operand)
        if self.owns(page):
            return st.with_operand(st.TDX_PAGE_METADATA_INCORRECT, operand)
        self.pamt[page] = (kind, td.tdr)
        td.children += kind != "TDR"
        return 0

    def drop(self, page: int) -> None:
        kind, tdr = self.pamt.pop(page)
        if kind != "TDR":
            self.tds[tdr].children -= 1
            self.dirty[page] = self.tds[tdr].hkid

    # ------------------------------------------------------------------ dispatch
    def seamcall(self, lp: FakeProcessor) -> bool:
        g = lp.gpr
        leaf = g[0] & 0xFFFF
        self.log.append((leaf, tuple(g)))
        self.seen[leaf] = self.seen.get(leaf, 0) + 1
        if (leaf, self.seen[leaf]) in self.fail:
            g[0] = self.fail[leaf, self.seen[leaf]]
            return True
        if self.busy.get(leaf):
            self.busy[leaf] -= 1
            g[0] = st.TDX_OPERAND_BUSY
            g[1] = g[2] = 0xBAD
            return True
        handler = getattr(self, f"leaf_{leaf}", None)
        if handler is None or g[0] >> 24:
            g[0] = INVALID
            return True
        if self.sys != "READY" and leaf not in (31, 32, 33, 34, 35, 37, 45):
            g[0] = st.TDX_SYS_NOT_READY
            return True
        g[0] = handler(lp, g)
        return True

    def td(self, page: int) -> FakeTd:
        assert page in self.tds, f"{page:#x} is no TDR"
        return self.tds[page]

    # ------------------------------------------------------------------ SYS
    def leaf_33(self, lp: FakeProcessor, g: list[int]) -> int:
        if self.sys != "SYSINIT_PENDING":
            return st.TDX_SYS_INIT_NOT_PENDING
        self.sys = "SYSINIT_DONE"
        g[1] = g[2] = g[8] = g[9] = g[10] = 0
        return 0

    def leaf_35(self, lp: FakeProcessor, g: list[int]) -> int:
        if self.sys != "SYSINIT_DONE" or lp.index in self.lps:
            return st.TDX_SYS_LP_INIT_NOT_PENDING
        self.lps.add(lp.index)
        return 0

    def leaf_32(self, lp: FakeProcessor, g: list[int]) -> int:
        assert g[1] % 1024 == 0
        assert g[2] >= 1024
        assert g[8] % 512 == 0
        assert g[9] >= 32
        info = bytearray(1024)
        struct.pack_into("<IIIHHHB", info, 0, 0, 0x8086, 0x20240101, 1, 5, 1, 1)
        struct.pack_into("<HHH", info, 32, 64, 16, 16)
        struct.pack_into("<HxxH", info, 48, 6 * PAGE, 6 * PAGE)
        struct.pack_into("<QQQQ", info, 64, 0x8000000070000001, 0, 0x602E7, 3)
        struct.pack_into("<I", info, 128, 2)
        struct.pack_into("<6I", info, 132, 1, 0xFFFFFFFF, 0x0FFF3FFF, 0xFF0000, 0x31044D88, 0xB8440000)
        struct.pack_into("<6I", info, 156, 7, 0, 0, 0xDC2B9B18, 0x2417F65, 0x5411C)
        self.machine.memory.write(g[1], bytes(info))
        table = b"".join(struct.pack("<QQ", *cmr) for cmr in self.cmrs).ljust(512, b"\0")
        self.machine.memory.write(g[8], table)
        g[2], g[9] = 1024, 32
        return 0

    def leaf_34(self, lp: FakeProcessor, g: list[int]) -> int:
        fields = {0x0A00000300000008: 1 << 18, 0x9900000300000006: 7, 0x0000000200000001: 0x806F8}
        value = fields.get(g[2])
        g[2], g[8] = U64, value or 0
        return 0 if value is not None else st.TDX_METADATA_FIELD_ID_INCORRECT

    def leaf_45(self, lp: FakeProcessor, g: list[int]) -> int:
        if self.sys != "SYSINIT_DONE" or len(self.lps) != len(self.machine.processors):
            return st.TDX_SYS_CONFIG_NOT_PENDING
        assert g[1] % 512 == 0
        read = self.machine.memory.read
        for (pa,) in struct.iter_unpack("<Q", read(g[1], 8 * g[2])):
            assert pa % 512 == 0
            self.tdmrs.append(struct.unpack("<40Q", read(pa, 320)))
        first = self.machine.shared_keyids + 1
        if not first <= g[8] < first + self.machine.private_keyids:
            return st.with_operand(INVALID, 8)
        self.global_hkid = g[8]
        self.hkids[g[8]] = "RESERVED"
        self.sys = "SYSCONFIG_DONE"
        return 0

    def leaf_31(self, lp: FakeProcessor, g: list[int]) -> int:
        if self.sys != "SYSCONFIG_DONE":
            return st.TDX_SYS_KEY_CONFIG_NOT_PENDING
        assert self.machine.wbinvds >= self.machine.packages, "the caches were not flushed"
        self.keyed.add(lp.package)
        if len(self.keyed) == self.machine.packages:
            self.sys = "READY"
        return 0

    def leaf_36(self, lp: FakeProcessor, g: list[int]) -> int:
        words = next(words for words in self.tdmrs if words[0] == g[1])
        base, size = words[0], words[1]
        at = self.progress.get(base, base)
        if at >= base + size:
            return st.TDX_TDMR_ALREADY_INITIALIZED
        # A quarter of a GiB a call, told in whole GiBs.
        self.progress[base] = at + GIB // 4
        g[2] = self.progress[base] & -GIB
        return 0

    # ------------------------------------------------------------------ MNG
    def leaf_9(self, lp: FakeProcessor, g: list[int]) -> int:
        if self.hkids.get(g[2], "FREE") != "FREE" or g[2] <= self.machine.shared_keyids:
            return st.TDX_HKID_NOT_FREE
        td = FakeTd(g[1], g[2])
        status = self.take(g[1], "TDR", td, 1)
        if not status:
            self.tds[g[1]] = td
            self.hkids[g[2]] = "ASSIGNED"
        return status

    def leaf_8(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.lifecycle != "HKID_ASSIGNED":
            return st.TDX_LIFECYCLE_STATE_INCORRECT
        td.packages.add(lp.package)
        if len(td.packages) == self.machine.packages:
            td.lifecycle = "KEYS_CONFIGURED"
        return 0

    def leaf_1(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[2])
        if td.lifecycle != "KEYS_CONFIGURED":
            return st.TDX_TD_KEYS_NOT_CONFIGURED
        if td.tdcx == 6:
            return st.TDX_TDCX_NUM_INCORRECT
        status = self.take(g[1], "TDCX", td, 1)
        td.tdcx += not status
        return status

    def leaf_21(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.tdcx != 6:
            return st.TDX_TDCS_NOT_ALLOCATED
        if td.op_state != "UNINITIALIZED":
            return st.TDX_OP_STATE_INCORRECT
        assert g[2] % 1024 == 0
        td.params = self.machine.memory.read(g[2], 1024)
        td.op_state = "INITIALIZED"
        g[1] = 0
        return 0

    def leaf_11(self, lp: FakeProcessor, g: list[int]) -> int:
        g[8] = {0x111000030000000A: (-1_000_000) & U64, 0x111000030000000B: 1 << 48}[g[2]]
        return 0

    def leaf_19(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.lifecycle not in ("HKID_ASSIGNED", "KEYS_CONFIGURED"):
            return st.TDX_LIFECYCLE_STATE_INCORRECT
        if any(vcpu.lp is not None for vcpu in td.vcpus):
            return st.TDX_FLUSHVP_NOT_DONE
        td.lifecycle = "BLOCKED"
        return 0

    def leaf_40(self, lp: FakeProcessor, g: list[int]) -> int:
        waiting = [td for td in self.tds.values() if td.lifecycle == "BLOCKED"]
        for td in waiting:
            td.flushed_packages.add(lp.package)
            if len(td.flushed_packages) == self.machine.packages:
                self.dirty = {page: hkid for page, hkid in self.dirty.items() if hkid != td.hkid}
        return 0 if waiting else st.TDX_NO_HKID_READY_TO_WBCACHE

    def leaf_20(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.lifecycle != "BLOCKED":
            return st.TDX_LIFECYCLE_STATE_INCORRECT
        if len(td.flushed_packages) != self.machine.packages:
            return st.TDX_WBCACHE_NOT_COMPLETE
        td.lifecycle = "TEARDOWN"
        self.hkids[td.hkid] = "FREE"
        return 0

    # ------------------------------------------------------------------ VP
    def vcpu(self, tdvpr: int) -> FakeVcpu:
        return next(vcpu for td in self.tds.values() for vcpu in td.vcpus if vcpu.tdvpr == tdvpr)

    def associate(self, vcpu: FakeVcpu, lp: FakeProcessor) -> int:
        if vcpu.lp not in (None, lp):
            return st.TDX_VCPU_ASSOCIATED
        vcpu.lp = lp
        return 0

    def leaf_10(self, lp: FakeProcessor, g: list[int]) -> int:
        from tests.vmm.fake_machine import FakeVcpu

        td = self.td(g[2])
        if td.op_state != "INITIALIZED":
            return st.TDX_OP_STATE_INCORRECT
        status = self.take(g[1], "TDVPR", td, 1)
        if not status:
            td.vcpus.append(FakeVcpu(g[1], td))
        return status

    def leaf_4(self, lp: FakeProcessor, g: list[int]) -> int:
        vcpu = self.vcpu(g[2])
        if vcpu.pages == 6:
            return st.TDX_TDCX_NUM_INCORRECT
        status = self.take(g[1], "TDCX", vcpu.td, 1)
        vcpu.pages += not status
        return status

    def leaf_22(self, lp: FakeProcessor, g: list[int]) -> int:
        vcpu = self.vcpu(g[1])
        if vcpu.pages != 6:
            return st.TDX_TDCX_NUM_INCORRECT
        vcpu.state = "READY"
        vcpu.index = sum(other.index >= 0 for other in vcpu.td.vcpus)
        if vcpu.index in self.programs:
            vcpu.program = self.programs[vcpu.index]()
        return self.associate(vcpu, lp)

    def leaf_18(self, lp: FakeProcessor, g: list[int]) -> int:
        vcpu = self.vcpu(g[1])
        if vcpu.lp is not lp:
            return st.TDX_VCPU_NOT_ASSOCIATED
        vcpu.lp = None
        return 0

    def leaf_26(self, lp: FakeProcessor, g: list[int]) -> int:
        vcpu = self.vcpu(g[1])
        g[8] = int(bool(vcpu.virr)) if g[2] == 0x9120000300000100 else vcpu.fields[g[2]]
        g[2] = g[9] = 0
        return self.associate(vcpu, lp)

    def leaf_43(self, lp: FakeProcessor, g: list[int]) -> int:
        vcpu = self.vcpu(g[1])
        if g[2] == 0x202000000000000B:
            vcpu.nmis += g[8] & 1
        else:
            assert g[2] in (NV, PID, EPTP, PIN), f"VP.WR of {g[2]:#x}"
            vcpu.fields[g[2]] = vcpu.fields.get(g[2], 0) & ~g[9] | g[8] & g[9]
        g[8] = 0
        return self.associate(vcpu, lp)

    def leaf_0(self, lp: FakeProcessor, g: list[int]) -> int:
        from tests.vmm.fake_guest import enter

        if g[1] % PAGE or g[1] >> 52:
            return st.with_operand(INVALID, 1)
        vcpu = self.vcpu(g[1])
        if vcpu.td.op_state != "RUNNABLE":
            return st.TDX_OP_STATE_INCORRECT
        status = self.associate(vcpu, lp)
        return status or enter(self, lp, vcpu)

    # ------------------------------------------------------------------ MEM
    def table(self, td: FakeTd, gpa: int, level: int) -> list[Any] | None:
        """The table that holds the entry of ``gpa`` at ``level``; None if a table above is missing."""
        levels = 5 if td.params[24] >> 3 & 7 == 4 else 4
        found: list[Any] | None = ["root", None]
        for above in range(levels - 1, level, -1):
            found = td.tables.get((above, gpa & -(PAGE << 9 * above)))
            if found is None or found[1] is not None:
                return None
        return found

    def leaf_3(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level = g[1] & -PAGE, g[1] & 7
        td = self.td(g[2])
        if not 1 <= level <= td.params[24] >> 3 & 7 or gpa % (PAGE << 9 * level):
            return st.with_operand(INVALID, 1)
        if self.table(td, gpa, level) is None:
            return st.with_operand(WALK, 1)
        if (level, gpa) in td.tables or (level == 1 and gpa in td.leaves):
            return st.with_operand(STATE, 1)
        status = self.take(g[8], "EPT", td, 8)
        if not status:
            td.tables[level, gpa] = [g[8], None]
        g[1] = g[2] = 0
        return status

    def entry(self, td: FakeTd, gpa: int, level: int) -> Entry | int:
        """The leaf at exactly this place, or a status."""
        if self.table(td, gpa, level) is None:
            return st.with_operand(WALK, 1)
        found = td.leaves.get(gpa)
        if found is None or found.level != level:
            return st.with_operand(STATE, 1)
        return found

    def put(self, td: FakeTd, gpa: int, level: int, page: int, state: str) -> int:
        if gpa % (PAGE << 9 * level):
            return st.with_operand(INVALID, 1)
        if self.table(td, gpa, level) is None:
            return st.with_operand(WALK, 1)
        above = td.leaves.get(gpa & -BLOCK)
        covered = above is not None and above.level == 1
        if gpa in td.leaves or covered or (level == 1 and (1, gpa) in td.tables):
            return st.with_operand(STATE, 1)
        if level == 0:
            status = self.take(page, "REG", td, 8)
        else:
            assert page % BLOCK == 0
            used = any(self.owns(part) or not self.managed(part) for part in range(page, page + BLOCK, PAGE))
            status = st.with_operand(st.TDX_PAGE_METADATA_INCORRECT, 8) if used else 0
            if not status:
                self.blocks[page] = td.tdr
                td.children += 512
        if not status:
            td.leaves[gpa] = Entry(level, page, state)
        return status

    def leaf_2(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[2])
        if td.op_state != "INITIALIZED":
            return st.TDX_OP_STATE_INCORRECT
        source = self.machine.memory.read(g[9], PAGE)
        status = self.put(td, g[1], 0, g[8], "MAPPED")
        if not status:
            td.leaves[g[1]].__dict__["data"] = source
            td.mr.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + struct.pack("<Q", g[1]) + bytes(104))
        return status

    def leaf_16(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[2])
        entry = td.leaves[g[1] & -PAGE]
        at = g[1] % PAGE
        td.mr.update(b"MR.EXTEND".ljust(16, b"\0") + struct.pack("<Q", g[1]) + bytes(104))
        td.mr.update(entry.__dict__["data"][at : at + 256])
        return 0

    def leaf_17(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.op_state != "INITIALIZED":
            return st.TDX_OP_STATE_INCORRECT
        if not td.vcpus:
            return st.TDX_NO_VCPUS
        td.op_state = "RUNNABLE"
        return 0

    def leaf_6(self, lp: FakeProcessor, g: list[int]) -> int:
        level = g[1] & 7
        return self.put(self.td(g[2]), g[1] & -PAGE, level, g[8], "PENDING")

    def leaf_7(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level, td = g[1] & -PAGE, g[1] & 7, self.td(g[2])
        if (level, gpa) in td.tables:
            td.tables[level, gpa][1] = td.epoch
            return 0
        entry = self.entry(td, gpa, level)
        if isinstance(entry, int):
            return entry
        if entry.state.startswith("BLOCKED"):
            return st.TDX_GPA_RANGE_ALREADY_BLOCKED
        entry.state, entry.bepoch = f"BLOCKED {entry.state}", td.epoch
        return 0

    def leaf_39(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level, td = g[1] & -PAGE, g[1] & 7, self.td(g[2])
        td.tables[level, gpa][1] = None
        return 0

    def leaf_38(self, lp: FakeProcessor, g: list[int]) -> int:
        td = self.td(g[1])
        if td.running_in(td.epoch - 1):
            return st.TDX_PREVIOUS_TLB_EPOCH_BUSY
        td.epoch += 1
        return 0

    def ready(self, td: FakeTd, state: str, bepoch: int | None) -> int:
        if td.op_state == "RUNNABLE":
            if not state.startswith("BLOCKED") or bepoch is None:
                return st.with_operand(st.TDX_GPA_RANGE_NOT_BLOCKED, 1)
            if not td.tracked(bepoch):
                return st.with_operand(st.TDX_TLB_TRACKING_NOT_DONE, 1)
        return 0

    def leaf_29(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level, td = g[1] & -PAGE, g[1] & 7, self.td(g[2])
        entry = self.entry(td, gpa, level)
        if isinstance(entry, int):
            return entry
        status = self.ready(td, entry.state, entry.bepoch)
        if not status:
            del td.leaves[gpa]
            g[1], g[2] = entry.hpa, 0
            self.release(td, entry)
        return status

    def release(self, td: FakeTd, entry: Entry) -> None:
        if entry.level == 0:
            self.drop(entry.hpa)
            return
        del self.blocks[entry.hpa]
        td.children -= 512
        for page in range(entry.hpa, entry.hpa + BLOCK, PAGE):
            self.dirty[page] = td.hkid

    def leaf_15(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level, td = g[1] & -PAGE, g[1] & 7, self.td(g[2])
        entry = self.entry(td, gpa, level)
        if isinstance(entry, int):
            return entry
        status = self.ready(td, entry.state, entry.bepoch) or self.take(g[8], "EPT", td, 8)
        if status:
            return status
        state = entry.state.removeprefix("BLOCKED ")
        del td.leaves[gpa], self.blocks[entry.hpa]
        td.tables[1, gpa] = [g[8], None]
        for at in range(0, BLOCK, PAGE):
            td.leaves[gpa + at] = Entry(0, entry.hpa + at, state)
            self.pamt[entry.hpa + at] = ("REG", td.tdr)
        return 0

    def leaf_23(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, td = g[1] & -PAGE, self.td(g[2])
        table = td.tables[1, gpa]
        status = self.ready(td, "" if table[1] is None else "BLOCKED", table[1])
        if status:
            return status
        entries = [td.leaves.get(gpa + at) for at in range(0, BLOCK, PAGE)]
        first = entries[0]
        bad = any(
            entry is None or first is None or entry.state != first.state or entry.hpa != first.hpa + at * PAGE
            for at, entry in enumerate(entries)
        )
        if first is None or bad or first.hpa % BLOCK:
            return st.with_operand(st.TDX_EPT_INVALID_PROMOTE_CONDITIONS, 1)
        for at in range(0, BLOCK, PAGE):
            del td.leaves[gpa + at], self.pamt[first.hpa + at]
        td.leaves[gpa] = Entry(1, first.hpa, first.state)
        self.blocks[first.hpa] = td.tdr
        del td.tables[1, gpa]
        self.drop(table[0])
        g[1] = table[0]
        return 0

    def leaf_30(self, lp: FakeProcessor, g: list[int]) -> int:
        gpa, level, td = g[1] & -PAGE, g[1] & 7, self.td(g[2])
        table = td.tables[level, gpa]
        status = self.ready(td, "" if table[1] is None else "BLOCKED", table[1])
        if status:
            return status
        if any(gpa <= leaf < gpa + (PAGE << 9 * level) for leaf in td.leaves):
            return st.with_operand(st.TDX_EPT_PAGE_NOT_FREE, 1)
        del td.tables[level, gpa]
        self.drop(table[0])
        g[1] = table[0]
        return 0

    # ------------------------------------------------------------------ PHYMEM
    def leaf_28(self, lp: FakeProcessor, g: list[int]) -> int:
        page = g[1]
        if page in self.blocks:
            td = self.td(self.blocks[page])
            if td.lifecycle != "TEARDOWN":
                return st.TDX_LIFECYCLE_STATE_INCORRECT
            del self.blocks[page]
            td.children -= 512
            return 0
        if page not in self.pamt:
            return st.with_operand(st.TDX_PAGE_METADATA_INCORRECT, 1)
        kind, tdr = self.pamt[page]
        td = self.td(tdr)
        if td.lifecycle != "TEARDOWN":
            return st.TDX_LIFECYCLE_STATE_INCORRECT
        if kind == "TDR":
            if td.children:
                return st.TDX_TD_ASSOCIATED_PAGES_EXIST
            del self.tds[tdr]
            self.dirty[page] = self.global_hkid
        else:
            td.children -= 1
        del self.pamt[page]
        return 0

    def leaf_41(self, lp: FakeProcessor, g: list[int]) -> int:
        page, hkid = g[1] & (1 << self.machine.keyid_shift) - 1, g[1] >> self.machine.keyid_shift
        if self.owns(page):
            return st.with_operand(st.TDX_PAGE_METADATA_INCORRECT, 1)
        if self.dirty.get(page) == hkid:
            del self.dirty[page]
        return 0
