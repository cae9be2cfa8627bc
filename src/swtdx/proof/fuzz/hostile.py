"""What a hostile hypervisor does besides calling: it writes to memory that it may write to."""

from __future__ import annotations

from typing import Final

from swtdx.arch.leaves import BY_NAME
from swtdx.arch.platform_structs import TD_PARAMS
from swtdx.arch.regs import R8, R9, RAX, RCX, RDX
from swtdx.arch.units import MASK64
from swtdx.arch.vmcs import SHARED_EPTP
from swtdx.proof.fuzz.situation import Choose, Situation, pick

_TD_MEMORY: Final = 400  # one in so many acts breaks the integrity of a TD's page


def act(s: Situation, choose: Choose) -> bool:
    """One act; True if it broke the integrity of memory that belongs to the module or a TD."""
    kind = choose(_TD_MEMORY)
    memory = s.world.memory
    if kind == 0 and s.owned:
        memory.write(pick(choose, s.owned) + choose(64) * 64, b"attack".ljust(64, b"!"))
        return True
    if kind < _TD_MEMORY // 4:
        return _tables(s, choose)
    if kind < _TD_MEMORY // 2:
        _parameters(s, choose)
    elif kind < _TD_MEMORY * 3 // 4:
        _shared_ept(s, choose)
    elif s.free:
        page = pick(choose, s.free)
        memory.write(page, bytes([choose(256)]) * 4096)
        memory.clear(page, 4096)
    return False


def _tables(s: Situation, choose: Choose) -> bool:
    """EPT entries that lead to all kinds of places, in pages that a guest's shared EPT may use.

    True if one leads to a TD's page: a guest that writes there, through a shared KeyID, breaks it.
    """
    to_td = bool(s.owned) and not choose(20)
    targets = (
        pick(choose, s.scratch),
        pick(choose, s.owned) if to_td else 0x1000,
        pick(choose, (0, 1 << 40, 3 << 30, 1 << 33, s.world.machine.memory.size)),
        s.world.seam_range,
        _with_key(s, choose),
        pick(choose, s.scratch) | (1 + choose(63)) << s.shift,
    )
    page = pick(choose, s.scratch)
    for _ in range(1 + choose(8)):
        rights = pick(choose, (7, 7, 7, 3, 1, 2, 6, 0))
        entry = pick(choose, targets) | rights | 6 << 3 | choose(2) << 7 | choose(2) << 63
        s.world.memory.write_u64(page + pick(choose, (0, 0, 8, choose(512) * 8)), entry)
    return to_td


def _with_key(s: Situation, choose: Choose) -> int:
    """A TD's private page, with the TD's key in its address."""
    td = pick(choose, s.tds) if s.tds else None
    if td is None or not td.mappings:
        return 0x2000
    return pick(choose, td.mappings).hpa | td.hkid << s.shift


def _parameters(s: Situation, choose: Choose) -> None:
    """TD_PARAMS with a bit flipped, or with a field set to something."""
    page = pick(choose, s.bad_params)
    if choose(3):
        s.world.memory.write(page, s.world.memory.read(s.params[0], TD_PARAMS.size))
    at = choose(TD_PARAMS.size // 8) * 8 if choose(3) else choose(6) * 8
    old = s.world.memory.read_u64(page + at)
    s.world.memory.write_u64(page + at, old ^ 1 << choose(64) if choose(2) else choose(1 << 64))


def _shared_ept(s: Situation, choose: Choose) -> None:
    """Point a vCPU's shared EPT somewhere (TDH.VP.WR of SHARED_EPTP)."""
    if not s.vcpus:
        return
    vcpu = pick(choose, s.vcpus)
    processor = s.world.platform.host.processors[vcpu.holder if vcpu.holder < 2 else 0]
    root = pick(choose, s.scratch) if choose(4) else s.wrong_page(choose)
    operands = {RCX: vcpu.tdvpr, RDX: SHARED_EPTP, R8: root, R9: MASK64}
    for register, value in {RAX: BY_NAME["TDH.VP.WR"].number, **operands}.items():
        processor.gpr[register] = value
    processor.seamcall()
