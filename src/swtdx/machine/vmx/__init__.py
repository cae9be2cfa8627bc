"""VMX: the microcode between an engine and the software that runs in SEAM."""
