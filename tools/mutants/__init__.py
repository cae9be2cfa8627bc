"""Mutation testing of the TDX Module and of the memory: docs/mutation.md says how to use and read it."""
