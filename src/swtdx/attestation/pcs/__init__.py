"""The collateral service: Intel's PCS and PCCS paths, version 4, for the simulated maker."""
