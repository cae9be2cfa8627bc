"""Real kernels as trust domains."""
