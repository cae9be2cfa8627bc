"""What must be true of the TDX Module's structures between any two SEAMCALLs.

Each rule yields sentences about what is wrong; nothing if all is well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from swtdx.arch import sept_bits as bits
from swtdx.arch.control_structs import TDCS_MIN_PAGES
from swtdx.arch.states import NO_LP, KotState, Lifecycle, OpState, PageType, VcpuState
from swtdx.proof.invariants.picture import Mapping, Picture, TdView, Translation

_OWNED: Final = frozenset({PageType.REG, PageType.TDR, PageType.TDCX, PageType.TDVPR, PageType.EPT})
PRIORITY: Final = 2  # host-priority bit of a lock: left behind by a refusal, for the guest to see
_VCPU_STATES: Final = frozenset(VcpuState)


def violations(picture: Picture) -> list[str]:
    """Everything that is wrong in a picture."""
    if not picture.ready:
        return []
    found = [*_pages(picture), *_keys(picture), *_locks(picture)]
    for td in picture.tds.values():
        found.extend(f"TD {td.tdr:#x}: {what}" for what in _td(picture, td))
    found.extend(_mapped_once(picture))
    found.extend(_translations(picture))
    return found


# ------------------------------------------------------------------ PAMT
def _pages(picture: Picture) -> Iterator[str]:
    for page in picture.leftovers:
        yield f"the free page {page.hpa:#x} (size {page.size}) was blocked in epoch {page.bepoch}"
    for kept, other in picture.doubles:
        yield f"{kept} and {other} are the same memory"
    in_order = sorted(picture.pages.values())
    for below, above in pairwise(in_order):
        if below.hpa + below.bytes > above.hpa:
            yield f"{below} and {above} overlap"
    for page in in_order:
        if page.kind not in _OWNED:
            yield f"{page} has a type that does not exist"
            continue
        if page.size and page.kind != PageType.REG:
            yield f"{page} is larger than 4 KiB"
        if page.kind == PageType.TDR:
            if page.owner:
                yield f"{page} has an owner, {page.owner:#x}"
            continue
        owner = picture.pages.get(page.owner)
        if owner is None or owner.kind != PageType.TDR:
            yield f"{page} belongs to {page.owner:#x}, which is no TDR"


# ------------------------------------------------------------------ keys
def _keys(picture: Picture) -> Iterator[str]:
    holders: Counter[int] = Counter()
    expected: dict[int, int] = {picture.global_hkid: KotState.RESERVED}
    for td in picture.tds.values():
        if td.lifecycle == Lifecycle.TEARDOWN:
            continue
        holders[td.hkid] += 1
        blocked = td.lifecycle == Lifecycle.BLOCKED
        expected[td.hkid] = KotState.FLUSHED if blocked else KotState.ASSIGNED
    for hkid, count in holders.items():
        if count > 1:
            yield f"HKID {hkid} belongs to {count} TDs"
        if hkid == picture.global_hkid or hkid not in picture.keys:
            yield f"a TD has HKID {hkid}, which is not there for TDs"
    unread = len(picture.of_kind(PageType.TDR)) - len(picture.tds)
    for hkid, key in picture.keys.items():
        if key.state != expected.get(hkid, KotState.FREE) and not unread:
            yield f"HKID {hkid} is in state {key.state}, and its TD says {expected.get(hkid, 0)}"
        if key.flushes and key.state != KotState.FLUSHED:
            yield f"HKID {hkid} waits for caches in state {key.state}"
        if key.flushes >> picture.packages:
            yield f"HKID {hkid} waits for packages {key.flushes:#b} of {picture.packages}"


# ------------------------------------------------------------------ locks
def _locks(picture: Picture) -> Iterator[str]:
    """While no guest runs, no lock is held; guests hold some shared."""
    held = [(f"the PAMT entry of {page}", page.lock) for page in picture.locked]
    held += [
        (f"the lock of {name}", value & 1 | value << 1 & ~3) for name, value in picture.system_locks.items()
    ]
    for td in picture.tds.values():
        for name, value in td.locks.items():
            plain = name in ("secure_ept_lock", "epoch_lock")
            held.append((f"{name} of TD {td.tdr:#x}", (value & 1 | value << 1 & ~3) if plain else value))
    for name, value in held:
        if value & 1:
            yield f"{name} is held exclusively"
        if value & ~(PRIORITY | 1) and not picture.guests_running:
            yield f"{name} is held shared ({value:#x}), and no guest runs"


# ------------------------------------------------------------------ a TD
def _td(picture: Picture, td: TdView) -> Iterator[str]:
    owned = [page for page in picture.pages.values() if page.owner == td.tdr]
    small = sum(page.bytes // 4096 for page in owned)
    if small != td.children:
        yield f"CHLDCNT is {td.children}, and it owns {small} pages"
    if td.lifecycle not in tuple(Lifecycle):
        yield f"life cycle {td.lifecycle}"
    all_packages = (1 << picture.packages) - 1
    if td.packages & ~all_packages or (td.keyed and td.packages != all_packages):
        yield f"its key is on packages {td.packages:#b}, life cycle {td.lifecycle}"
    if not td.keyed:
        return
    by_kind: dict[int, set[int]] = {kind: set() for kind in _OWNED}
    for page in owned:
        by_kind.setdefault(page.kind, set()).add(page.hpa)
    yield from _control_pages(td, by_kind)
    if td.op_state is None:
        return
    if td.op_state not in tuple(OpState):
        yield f"operation state {td.op_state}"
    if len(td.vcpus) == len(by_kind[PageType.TDVPR]):  # else one is poisoned
        yield from _vcpus(picture, td)
    if td.initialised:
        yield from _secure_ept(picture, td, by_kind)
    elif by_kind[PageType.EPT] or by_kind[PageType.REG] or by_kind[PageType.TDVPR]:
        yield "it has pages although it is not initialised"


def _control_pages(td: TdView, by_kind: dict[int, set[int]]) -> Iterator[str]:
    listed = list(td.tdcx)
    for vcpu in td.vcpus:
        if not vcpu.pages or vcpu.pages[0] != vcpu.tdvpr:
            yield f"the vCPU {vcpu.tdvpr:#x} does not list its TDVPR page first: {vcpu.pages}"
        listed.extend(vcpu.pages[1:])
    twice = [f"{hpa:#x}" for hpa, count in Counter(listed).items() if count > 1]
    if twice:
        yield f"control pages listed twice: {', '.join(twice)}"
    if set(listed) != by_kind[PageType.TDCX] and len(td.vcpus) == len(by_kind[PageType.TDVPR]):
        different = ", ".join(f"{hpa:#x}" for hpa in set(listed) ^ by_kind[PageType.TDCX])
        yield f"the TDCX pages that it lists are not those that the PAMT says it has: {different}"


def _vcpus(picture: Picture, td: TdView) -> Iterator[str]:
    ready = [vcpu for vcpu in td.vcpus if vcpu.state != VcpuState.UNINITIALIZED]
    for vcpu in td.vcpus:
        if vcpu.state not in _VCPU_STATES:
            yield f"the vCPU {vcpu.tdvpr:#x} is in state {vcpu.state}"
        if vcpu.state == VcpuState.ACTIVE and not picture.guests_running and not td.fatal:
            yield f"the vCPU {vcpu.tdvpr:#x} is active, and no guest runs"
        if vcpu.holder != NO_LP and vcpu.holder >= picture.processors:
            yield f"the vCPU {vcpu.tdvpr:#x} is held by processor {vcpu.holder}, which does not exist"
        if vcpu.epoch > td.epoch:
            yield f"the vCPU {vcpu.tdvpr:#x} is in epoch {vcpu.epoch} of {td.epoch}"
    if not td.initialised:
        return
    if sorted(vcpu.index for vcpu in ready) != list(range(td.num_vcpus)):
        yield f"the indices of its {td.num_vcpus} vCPUs are {[vcpu.index for vcpu in ready]}"
    if td.num_vcpus > td.max_vcpus:
        yield f"it has {td.num_vcpus} vCPUs of at most {td.max_vcpus}"
    held = sum(vcpu.holder != NO_LP for vcpu in td.vcpus)
    if held != td.num_held:
        yield f"{held} vCPUs are held by processors, and it counts {td.num_held}"
    if any(td.running) and not picture.guests_running and not td.fatal:
        yield f"it counts vCPUs that run: {td.running}"


# ------------------------------------------------------------------ Secure EPT
def _secure_ept(picture: Picture, td: TdView, by_kind: dict[int, set[int]]) -> Iterator[str]:
    poisoned = {hpa for hpa, _ in picture.poisoned}
    if len(td.tdcx) < TDCS_MIN_PAGES or poisoned & {*td.tdcx, *td.tables}:
        return
    tables: list[Mapping] = []
    leaves: list[Mapping] = []
    for each in td.mappings:
        where = f"the entry {each.raw:#x} for {each.gpa:#x} at level {each.level}"
        if each.state is None:
            yield f"{where} is in no state"
            continue
        (leaves if each.state.is_leaf else tables).append(each)
        yield from (f"{where} {what}" for what in _entry(picture, td, each))
    for name, found, kind in (
        ("Secure EPT pages", [each.hpa for each in tables], PageType.EPT),
        ("private pages", [each.hpa for each in leaves], PageType.REG),
    ):
        twice = [f"{hpa:#x}" for hpa, count in Counter(found).items() if count > 1]
        if twice:
            yield f"{name} mapped twice: {', '.join(twice)}"
        different = set(found) ^ by_kind[kind]
        if different:
            pages = ", ".join(f"{hpa:#x}" for hpa in sorted(different))
            yield f"{name} in the Secure EPT and in the PAMT are not the same: {pages}"


def _entry(picture: Picture, td: TdView, each: Mapping) -> Iterator[str]:
    state = each.state
    assert state is not None
    if each.gpa >> td.private_bits:
        yield "maps memory that is not private"
    if each.raw & bits.TDEL and not picture.guests_running:
        yield "is locked"
    rights = each.raw & bits.RWX
    visible = state.flags & 2 if state.is_leaf else state.name == "NL_MAPPED"
    if bool(rights) != bool(visible):
        yield f"is {state.name} with the rights {rights:#o}"
    page = picture.pages.get(each.hpa)
    wanted = (PageType.REG, each.level) if state.is_leaf else (PageType.EPT, 0)
    if page is None or (page.kind, page.size) != wanted or page.owner != td.tdr:
        yield f"points to {each.hpa:#x}, of which the PAMT says {page}"
    elif state.blocked and page.bepoch > td.epoch:
        yield f"was blocked in epoch {page.bepoch} of {td.epoch}"


def _mapped_once(picture: Picture) -> Iterator[str]:
    """No private page in two TDs, nor parts of one."""
    spans = [
        (each.hpa, each.hpa + bits.LEVEL_BYTES[each.level], td)
        for td in picture.tds.values()
        for each in td.mappings
        if each.state is None or each.state.is_leaf
    ]
    spans.sort(key=lambda span: span[0])
    for (_, end, td), (start, _, other) in pairwise(spans):
        if start < end:
            yield f"{start:#x} is mapped by TD {td.tdr:#x} and by TD {other.tdr:#x}"


def _translations(picture: Picture) -> Iterator[str]:
    """A processor's cached translations that its next guest would use agree with the Secure EPT."""
    by_hkid = {td.hkid: td for td in picture.tds.values() if td.keyed and td.initialised and not td.fatal}
    for lp, spaces in enumerate(picture.translations):
        for (eptp, hkid), held in spaces.items():
            bits_of_gpa = 51 if eptp >> 3 & 7 == 4 else 47
            yield from _isolation(picture, lp, hkid, bits_of_gpa, held)
            td = by_hkid.get(hkid)
            if td is None or not held:
                continue
            users = [
                vcpu
                for vcpu in td.vcpus
                if vcpu.holder == lp and vcpu.epoch == td.epoch and picture.last_vcpu[lp] == vcpu.tdvpr
            ]
            if users:
                yield from _stale(picture, td, lp, held)


def _isolation(
    picture: Picture, lp: int, hkid: int, private_bits: int, held: list[Translation]
) -> Iterator[str]:
    """Private memory is reached with the TD's key, shared memory with none of a TD's."""
    for each in held:
        shared = each.gpa >> private_bits
        if each.high >= picture.first_private if shared else (each.low, each.high) != (hkid, hkid):
            kind = "shared" if shared else "private"
            yield (
                f"processor {lp}: the {kind} GPA {each.gpa:#x} of HKID {hkid} reaches {each.hpa:#x},"
                f" whose lines have KeyID {each.low}..{each.high}"
            )


def _stale(picture: Picture, td: TdView, lp: int, held: list[Translation]) -> Iterator[str]:
    leaves = {(each.gpa, each.level): each for each in td.mappings if each.state and each.state.is_leaf}
    for gpa, hpa, *_ in held:
        if gpa >> td.private_bits:
            continue
        for level in (0, 1, 2):
            base = gpa & -bits.LEVEL_BYTES[level]
            each = leaves.get((base, level))
            if each is not None:
                break
        else:
            yield f"processor {lp} still translates {gpa:#x} of TD {td.tdr:#x} to {hpa:#x}: nothing is there"
            continue
        if each.hpa + gpa - base != hpa:
            yield f"processor {lp} translates {gpa:#x} of TD {td.tdr:#x} to {hpa:#x}, not {each.hpa:#x}"
            continue
        page = picture.pages.get(each.hpa)
        if each.state and each.state.blocked and page and page.bepoch < td.epoch:
            yield f"processor {lp} still translates {gpa:#x} of TD {td.tdr:#x}, blocked and tracked"
