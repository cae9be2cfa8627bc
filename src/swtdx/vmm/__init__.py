"""The untrusted hypervisor."""
