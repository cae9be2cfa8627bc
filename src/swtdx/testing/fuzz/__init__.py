"""Fuzzing the TDX Module from both sides; ``swtdx fuzz`` on the command line."""

from swtdx.testing.fuzz.harness import SIDES, Fuzzer
from swtdx.testing.fuzz.report import FuzzFailure, FuzzReport

__all__ = ["SIDES", "FuzzFailure", "FuzzReport", "Fuzzer"]
