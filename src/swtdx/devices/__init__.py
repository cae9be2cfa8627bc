"""Device models of the hypervisor."""
