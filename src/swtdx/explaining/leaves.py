"""Explaining a leaf function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swtdx.arch import leaf as declared
from swtdx.arch import sept
from swtdx.arch.features import BASE_MODULE
from swtdx.arch.leaf import Input, Leaf, Output
from swtdx.arch.leaves import BY_NAME, GUEST_DISPATCH, HOST_DISPATCH
from swtdx.arch.states import OpState, SysState
from swtdx.explaining.model import Explanation, bits_text, table

_SIDES: Final = {
    declared.HOST: "SEAMCALL, by the hypervisor",
    declared.GUEST: "TDCALL, by the guest",
    declared.LOADER: "SEAMCALL with bit 63 of RAX, to the P-SEAMLDR",
}
_DISPATCH: Final = {declared.HOST: HOST_DISPATCH, declared.GUEST: GUEST_DISPATCH, declared.LOADER: ()}
_FEATURES: Final = {
    declared.MIGRATION: "TD migration",
    declared.SERVICE_TD: "service TDs",
    declared.PARTITIONING: "TD partitioning",
    declared.TD_PRESERVING: "TD-preserving updates",
}
_ON_ERROR: Final = {
    declared.ZERO: "0",
    declared.ONES: "all ones",
    declared.SEPT: "0, or what the Secure EPT walk found",
    declared.SAME: "its input",
    declared.LEAF: "see its meaning",
}
#: What the dispatchers leave behind; the outputs' "on error" is of the checks that come later.
_NOT_RUN: Final = "for its RAX or the module's state: no register but RAX changes"
_BUT_VERSION: Final = "; for a version that it has not: as on error"


def support_text(leaf: Leaf) -> str:
    """Whether swtdx has the leaf, and why not."""
    if BASE_MODULE.serves(leaf):
        return "implemented"
    if leaf.support == declared.RESERVED:
        return "a number without a function: answered with OPERAND_INVALID | RAX"
    return f"not served: part of {_FEATURES[leaf.support]}, which our TDX_FEATURES0 does not list"


def explain_leaf(leaf: Leaf) -> Explanation:
    """All that the tables say about a leaf."""
    number = f"{leaf.number & ~(1 << 63):d}"
    if leaf.side == declared.LOADER:
        number += f" (RAX = {leaf.number:#x})"
    facts = [("Number", number), ("Called by", _SIDES[leaf.side]), ("In swtdx", support_text(leaf))]
    if leaf.max_version:
        facts.append(("Versions", f"0 to {leaf.max_version}, in bits 23:16 of RAX"))
    if leaf.side == declared.HOST and leaf.sys_states != 1 << SysState.READY:
        facts.append(("Module states", _names(leaf.sys_states, [state.name for state in SysState])))
    if leaf.op_states is not None:
        facts.append(("TD states", _names(leaf.op_states, [state.name for state in OpState])))
    if leaf.sept_states is not None:
        facts.append(("SEPT entry states", _names(leaf.sept_states, [state.name for state in sept.STATES])))
    if leaf.locks:
        modes = {"S": "shared", "X": "exclusive"}
        facts.append(("Locks", ", ".join(f"{lock.object} {modes[lock.mode]}" for lock in leaf.locks)))
    if leaf.outputs and leaf.side != declared.LOADER:
        facts.append(("If not run", _NOT_RUN + (_BUT_VERSION if _judges_version(leaf) else "")))
    return Explanation(
        "leaf",
        leaf.name,
        leaf.name,
        leaf.summary,
        tuple(facts),
        (
            *table("Inputs", ("Register", "Meaning", "Bits"), [_input(each) for each in leaf.inputs]),
            *table("Outputs", ("Register", "Meaning", "On error"), [_output(each) for each in leaf.outputs]),
            *table(
                "Statuses in the order of the checks",
                ("Status", "Value", "What must hold"),
                [
                    (outcome.name, f"{outcome.value:#018x}", outcome.check)
                    for outcome in (*_DISPATCH[leaf.side], *leaf.outcomes)
                ],
            ),
        ),
    )


def _judges_version(leaf: Leaf) -> bool:
    """Whether the leaf itself refuses an unknown version: those with versions do, of the guest's VM.RD."""
    return bool(leaf.max_version) and (leaf.side == declared.HOST or leaf.name == "TDG.VM.RD")


def _names(mask: int, names: list[str]) -> str:
    chosen = [name for number, name in enumerate(names) if mask >> number & 1]
    return ", ".join(chosen) if len(chosen) < len(names) else "any"


def _since(version: int) -> str:
    return f" (version {version} on)" if version else ""


def _input(each: Input) -> tuple[str, str, str]:
    return each.register, each.meaning + _since(each.since), ", ".join(bits_text(*bits) for bits in each.bits)


def _output(each: Output) -> tuple[str, str, str]:
    return each.register, each.meaning + _since(each.since), _ON_ERROR[each.on_error]


def by_name(text: str) -> Leaf | None:
    """The leaf called so: ``TDH.MNG.INIT``, ``tdh_mng_init``, or without TDH if that is clear."""
    name = text.upper().replace("_", ".")
    if name in BY_NAME:
        return BY_NAME[name]
    # No two leaves differ in nothing but where a dot stands for an underscore.
    ends = [leaf for known, leaf in BY_NAME.items() if known.partition(".")[2] == name]
    return ends[0] if len(ends) == 1 else None


def by_number(number: int) -> Iterable[Leaf]:
    """Every leaf with this number: the host's, the guest's, the loader's."""
    return (leaf for leaf in BY_NAME.values() if leaf.number == number)
