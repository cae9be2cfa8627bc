"""The processor's registers and identity outside SEAM: MSRs, CPUID, PCONFIG, packages, fuses."""
