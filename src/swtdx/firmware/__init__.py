"""What brings the machine up: BIOS, MCHECK, the SEAM loaders, the signed module image."""
