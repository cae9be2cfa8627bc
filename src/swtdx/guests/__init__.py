"""Where guests come from: kernels, initramfs images, the boot shim."""
