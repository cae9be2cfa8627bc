"""VIRTIO 1.2: split virtqueues, the PCI transport without legacy, and devices on it."""
