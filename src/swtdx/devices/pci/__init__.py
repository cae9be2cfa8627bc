"""PCI: configuration space, a host bridge by configuration mechanism 1 and ECAM, MSI-X."""
