"""The conformance suite of the TDX Module: for each declared status, a call that provokes it.

``swtdx abi`` runs it and prints the table; the test suite runs the same cases.
"""
