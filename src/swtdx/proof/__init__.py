"""What shows that the TDX Module does as the ABI says: conformance suite, fuzzer and invariants."""
