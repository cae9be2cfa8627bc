"""Fuzzing the TDX Module from both sides; ``swtdx fuzz`` on the command line."""

from swtdx.proof.fuzz.harness import SIDES, Fuzzer
from swtdx.proof.fuzz.report import FuzzFailure, FuzzReport

__all__ = ["SIDES", "FuzzFailure", "FuzzReport", "Fuzzer"]
