"""The ISA and the TDX ABI as data: no behaviour, no imports of ours."""
