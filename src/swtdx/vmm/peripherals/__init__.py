"""What a TD has beside its console, and what stands behind it on the host: disks, networks, folders."""
