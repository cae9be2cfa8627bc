"""What hardware does to software that asks for what it may not have."""

from __future__ import annotations


class ProcessorFault(Exception):
    """An exception that an instruction raises in the software that executed it."""

    vector = 0


class InvalidOpcode(ProcessorFault):
    """#UD: the instruction does not exist, or not in this mode."""

    vector = 6


class GeneralProtection(ProcessorFault):
    """#GP(0): the instruction exists, but not for this software or with these operands."""

    vector = 13
