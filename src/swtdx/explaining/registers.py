"""Explaining what a TD sees of an MSR or a CPUID leaf, and operand ids."""

from __future__ import annotations

from typing import Final

from swtdx.arch import cpuid_policy, msr_policy
from swtdx.arch.cpuid_table import TOPOLOGY_CPUID
from swtdx.arch.leaves import BY_NAME
from swtdx.arch.msr_policy import Access, Action
from swtdx.arch.operands import OPERAND_NAMES
from swtdx.arch.td_config import attribute_names, xfam_names
from swtdx.explaining.model import Explanation, table

_ACTIONS: Final = {
    Action.NATIVE: "native: no exit, the hardware answers",
    Action.VE: "#VE",
    Action.GP: "#GP(0)",
    Action.SPECIAL: "emulated by the module",
}
_FIRST_STRUCTURE_ID: Final = 64
_FIRST_OBJECT_ID: Final = 128


def explain_msr(address: int) -> Explanation:
    """What RDMSR and WRMSR of an MSR do in a TD."""
    rule = msr_policy.lookup(address) if msr_policy.covered(address) else None
    if rule is None:
        why = "not in the module's table" if msr_policy.covered(address) else "outside the MSR bitmaps"
        facts = (("RDMSR", f"#VE: {why}"), ("WRMSR", f"#VE: {why}"))
        title = f"MSR {address:#x}" + (f", {msr_name(address)}" if msr_name(address) else "")
        return Explanation("msr", f"{address:#x}", title, "left to the guest's #VE handler", facts)
    name = rule.name.strip("()")
    facts_list = [("RDMSR", _access(rule.read)), ("WRMSR", _access(rule.write))]
    if rule.first != rule.last:
        facts_list.insert(0, ("Addresses", f"{rule.first:#x} to {rule.last:#x}"))
    return Explanation(
        "msr", f"{address:#x}", f"MSR {address:#x}, {name}", "what it does in a TD", tuple(facts_list)
    )


def _access(access: Access) -> str:
    if not access.feature:
        return _ACTIONS[access.action]
    feature = msr_policy.FEATURE_NAMES[access.feature.bit_length() - 1]
    return f"{_ACTIONS[access.enabled]} if the TD has {feature}; else {_ACTIONS[access.action]}"


def msr_by_name(text: str) -> int | None:
    """The (first) address of the MSR called so."""
    wanted = text.upper()
    for rule in msr_policy.RULES:
        if rule.name.upper() == wanted:
            return rule.first
    return next((address for address, name in _MORE_MSRS.items() if name == wanted), None)


def msr_name(address: int) -> str:
    """The name of an MSR, "" if none is known."""
    if address in _MORE_MSRS:
        return _MORE_MSRS[address]
    rule = msr_policy.lookup(address) if msr_policy.covered(address) else None
    return "" if rule is None or rule.name[0] == "(" else rule.name


#: MSRs that the module checks on the host and of which its table of guests' MSRs has no row (Intel SDM,
#: volume 4).
_MORE_MSRS: Final = {
    0x3B: "IA32_TSC_ADJUST",
    0xCF: "IA32_CORE_CAPABILITIES",
    0x9FB: "IA32_TME_CLEAR",
    0x1400: "IA32_SEAMRR_PHYS_BASE",
    0x1401: "IA32_SEAMRR_PHYS_MASK",
}

_CPUID_NAMES: Final = {
    0x0: "highest leaf and vendor", 0x1: "family, model, stepping and features", 0x2: "caches and TLBs",
    0x4: "cache parameters", 0x5: "MONITOR/MWAIT", 0x6: "thermal and power", 0x7: "extended features",
    0xA: "performance monitoring", 0xB: "topology", 0xD: "extended state (XSAVE)", 0x14: "processor trace",
    0x15: "TSC and crystal clock", 0x16: "frequencies", 0x18: "address translation", 0x19: "key locker",
    0x1A: "hybrid information", 0x1C: "last branch records", 0x1D: "tiles", 0x1E: "TMUL",
    0x1F: "topology, version 2", 0x20: "HRESET", 0x21: "Intel TDX", 0x23: "performance monitoring, extended",
    0x80000000: "highest extended leaf", 0x80000001: "extended features", 0x80000007: "invariant TSC",
    0x80000008: "address sizes",
}  # fmt: skip


def cpuid_name(leaf: int) -> str:
    """What a CPUID leaf is about (Intel SDM, volume 2A, CPUID); "" if that is not known here."""
    return _CPUID_NAMES.get(leaf, "")


def explain_cpuid(leaf: int, subleaf: int | None) -> list[Explanation]:
    """What CPUID returns in a TD: one explanation for each sub-leaf, or for the one given."""
    leaf_title = f"CPUID {leaf:#x}"
    if leaf in cpuid_policy.RESERVED:
        fact = (("In a TD", "#VE: the range of hypervisors"),)
        return [Explanation("cpuid", f"{leaf:#x}", leaf_title, "left to the guest's #VE handler", fact)]
    effective = cpuid_policy.effective_leaf(leaf)
    rows = [row for row in TOPOLOGY_CPUID.rows if row.leaf == effective]
    if subleaf is not None:
        rows = [row for row in rows if row.subleaf in (subleaf, cpuid_policy.NA)]
    if not rows:
        fact = (("In a TD", "#VE: the module's table does not have it"),)
        key = f"{leaf:#x}" if subleaf is None else f"{leaf:#x}.{subleaf:#x}"
        return [Explanation("cpuid", key, f"CPUID {key}", "left to the guest's #VE handler", fact)]
    found = [_cpuid_row(row) for row in rows]
    if effective != leaf:
        note = ("Asked for", f"{leaf:#x}, beyond the last leaf: answered as {effective:#x}")
        found = [Explanation(e.kind, e.key, e.title, e.summary, (note, *e.facts), e.tables) for e in found]
    return found


def _cpuid_row(row: cpuid_policy.CpuidRow) -> Explanation:
    key = (row.leaf, row.subleaf)
    name = f"{row.leaf:#x}" + ("" if row.subleaf == cpuid_policy.NA else f".{row.subleaf:#x}")
    facts = [("Place in CPUID_VALUES", str(row.index))]
    if row.faulting:
        facts.append(("In a TD", "always #VE"))
        return Explanation("cpuid", name, f"CPUID {name}", "left to the guest's #VE handler", tuple(facts))
    condition = cpuid_policy.ZERO_UNLESS.get(key)
    if condition is not None:
        facts.append(("All zero unless", _condition(condition)))
    if row.config is not None:
        facts.append(("Configurable", f"entry {row.config} of TD_PARAMS.CPUID_CONFIG"))
    for text, source in (
        ("TDH.MNG.INIT computes", cpuid_policy.COMPUTED),
        ("Each CPUID computes", cpuid_policy.DYNAMIC),
    ):
        if key in source:
            facts.append((text, source[key][1]))
    for leaf, subleaf, xfam, bits in cpuid_policy.XFAM_BITS:
        if (leaf, subleaf) == key:
            masks = ", ".join(
                f"{register.upper()} {mask:#x}"
                for register, mask in zip(cpuid_policy.REGISTERS, bits, strict=True)
                if mask
            )
            facts.append((f"Needs XFAM {', '.join(xfam_names(xfam))}", masks))
    classes = cpuid_policy.bit_classes(row)
    rows = [
        (register.upper(), *(f"{getattr(classes, kind)[at]:#010x}" for kind in _CLASSES))
        for at, register in enumerate(cpuid_policy.REGISTERS)
    ]
    return Explanation(
        "cpuid",
        name,
        f"CPUID {name}",
        "how each bit comes about in a TD",
        tuple(facts),
        table("Bits", ("Register", *_CLASSES.values()), rows),
    )


#: The classes that share out the bits, and what to call them.
_CLASSES: Final = {
    "fixed0": "Always 0",
    "fixed1": "Always 1",
    "direct": "Host's value",
    "allow": "If host allows",
    "native": "Native",
}


def _condition(condition: cpuid_policy.ZeroUnless) -> str:
    if condition.what == "xfam":
        return f"XFAM has {', '.join(xfam_names(condition.mask))}"
    if condition.what == "attributes":
        return f"ATTRIBUTES has {', '.join(attribute_names(condition.mask))}"
    return {"monitor": "CPUID(1).ECX[3], MONITOR, is there", "never": "never: always zero"}[condition.what]


def explain_operand(number: int) -> Explanation | None:
    """An operand id, as in bits 31:0 of OPERAND_INVALID."""
    name = OPERAND_NAMES.get(number)
    if name is None:
        return None
    if number < _FIRST_STRUCTURE_ID:
        what = "a general-purpose register"
    elif number < _FIRST_OBJECT_ID:
        what = "a field of a structure in memory"
    else:
        what = "an object that a leaf reaches by itself"
    rows = [
        (leaf.name, outcome.name, outcome.check)
        for leaf in BY_NAME.values()
        for outcome in leaf.outcomes
        if outcome.details == number and outcome.name.endswith(f"| {name}")
    ]
    if number < _FIRST_STRUCTURE_ID:  # hundreds, and the leaf's own explanation says it better
        rows = []
    return Explanation(
        "operand",
        str(number),
        f"operand {name}",
        f"{what}, in bits 31:0 of a status",
        (("Id", f"{number} ({number:#x})"),),
        table("Named by", ("Leaf", "Status", "What must hold"), rows),
    )
