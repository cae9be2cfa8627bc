"""Explaining VM exit reasons and TDVMCALL sub-functions."""

from __future__ import annotations

from swtdx.arch import exits, ghci
from swtdx.arch.exit_policy import EXIT_POLICY, UNEXPECTED
from swtdx.arch.exits import ExitReason
from swtdx.explaining.model import Explanation, bits_text, table


def explain_exit(number: int) -> Explanation:
    """A basic VM exit reason.

    Raises:
        ValueError: there is no such reason.
    """
    reason = ExitReason(number)
    policy = EXIT_POLICY.get(number, UNEXPECTED)
    facts = [("Number", f"{number} ({number:#x})"), ("In a TD", policy.outcome.value)]
    if policy.note:
        facts.append(("Note", policy.note))
    call = ghci.CALLS.get(number)
    if call is not None:
        facts.append(("As a TDVMCALL", f"the guest asks with {call.name} (swtdx explain tdvmcall {number})"))
    bits = [(f"{each.high}:{each.low}" if each.high != each.low else str(each.high), each.name)
            for each in exits.QUALIFICATION_BITS.get(number, ())]  # fmt: skip
    return Explanation(
        "exit",
        str(number),
        f"exit reason {reason.name}",
        "why a processor left the guest (bits 15:0 of the exit reason)",
        tuple(facts),
        table("Exit qualification", ("Bits", "Meaning"), bits),
    )


def explain_call(call: ghci.Call) -> Explanation:
    """A sub-function of TDG.VP.VMCALL."""
    facts = [
        ("R11", f"{call.number:#x} ({call.number})"),
        ("Offered", "by every hypervisor" if call.base else "if GetTdVmCallInfo says so"),
        ("In swtdx", "served" if call.supported else "answered with SUBFUNC_UNSUPPORTED"),
    ]
    if not call.verified:
        facts.append(("Certainty", "operands not confirmed by any implementation"))
    return Explanation(
        "tdvmcall",
        f"{call.number:#x}",
        f"TDVMCALL {call.name}",
        call.summary,
        tuple(facts),
        (
            *table(
                "Inputs (besides R10 = 0)",
                ("Register", "Meaning", "Bits"),
                [
                    (each.register, each.meaning, ", ".join(bits_text(*bits) for bits in each.bits))
                    for each in call.inputs
                ],
            ),
            *table(
                "Outputs (besides the status in R10)",
                ("Register", "Meaning"),
                [(each.register, each.meaning) for each in call.outputs],
            ),
            *table(
                "Statuses in R10, in the order of the checks",
                ("Status", "Value", "What must hold"),
                [
                    (ghci.status_name(refusal.status), f"{refusal.status:#x}", refusal.check)
                    for refusal in call.refusals
                ],
            ),
        ),
    )


def exit_by_name(text: str) -> int | None:
    """The reason called so."""
    name = text.upper().replace(" ", "_").replace("-", "_")
    return int(ExitReason[name]) if name in ExitReason.__members__ else None


def call_by_name(text: str) -> ghci.Call | None:
    """The sub-function called so; ``Instruction.`` and ``#VE.`` may be left out."""
    wanted = text.lower()
    for call in ghci.CALLS.values():
        name = call.name.lower()
        if wanted in (name, name.removeprefix("instruction."), name.removeprefix("#ve.")):
            return call
    return None
