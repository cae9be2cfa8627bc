"""A server of 9P2000.L for one folder of the host."""
