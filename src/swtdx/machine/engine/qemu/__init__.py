"""Stock QEMU as the machine's logical processors."""
