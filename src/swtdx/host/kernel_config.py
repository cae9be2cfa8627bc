"""The configuration of the host kernel that ``swtdx host prepare`` builds.

What Linux needs to be a TDX host with KVM on this machine, and to run QEMU in an initramfs: fewer than 1,400
files to compile.  Everything else is off (``make allnoconfig``).  KVM is a set of modules, so that parameters
can be given when they are loaded.
"""

from __future__ import annotations

from typing import Final

#: Options that are on: the processor, and what the TDX support depends on; KVM; the board; time; the
#: initramfs, its files and programs, of which QEMU asks for most; and what it takes to look into it all.
_ON: Final = """
64BIT SMP CPU_SUP_INTEL HYPERVISOR_GUEST PARAVIRT X86_X2APIC X86_MCE X86_MCE_INTEL MTRR X86_PAT X86_MSR
X86_CPUID COMPACTION MIGRATION CMA SPARSEMEM_VMEMMAP TRANSPARENT_HUGEPAGE INTEL_TDX_HOST KVM_INTEL_TDX
VIRTUALIZATION
ACPI PCI PCI_MSI RTC_CLASS HPET_TIMER TTY SERIAL_8250 SERIAL_8250_CONSOLE SERIAL_EARLYCON VIRTIO_MENU
VIRTIO VIRTIO_PCI VIRTIO_BLK VIRTIO_CONSOLE HW_RANDOM HW_RANDOM_VIRTIO BLOCK BLK_DEV
HIGH_RES_TIMERS NO_HZ_IDLE HZ_100
BLK_DEV_INITRD RD_GZIP KERNEL_GZIP BINFMT_ELF BINFMT_SCRIPT PROC_FS SYSFS DEVTMPFS DEVTMPFS_MOUNT TMPFS
SHMEM MEMFD_CREATE FUTEX EPOLL EVENTFD SIGNALFD TIMERFD AIO POSIX_TIMERS FILE_LOCKING MULTIUSER
ADVISE_SYSCALLS MEMBARRIER NET UNIX VSOCKETS UNIX98_PTYS DEVMEM
MODULES MODULE_UNLOAD PRINTK PRINTK_TIME BUG KALLSYMS MAGIC_SYSRQ DYNAMIC_DEBUG DEBUG_FS DEBUG_INFO_NONE
UNWINDER_FRAME_POINTER
"""
_MODULES: Final = ("KVM", "KVM_INTEL")
#: Off although something would switch them on; the last ones would keep TDX off.
_OFF: Final = """
PROCESSOR_SELECT MICROCODE CPU_MITIGATIONS X86_KERNEL_IBT INET IO_URING STRICT_DEVMEM RD_ZSTD KVM_AMD
KVM_WERROR UNWINDER_ORC RANDOMIZE_BASE EFI KEXEC KEXEC_FILE CRASH_DUMP HIBERNATION
"""
_VALUES: Final = {
    "LOCALVERSION": '"-swtdx-host"',
    "NR_CPUS": "16",
    "SERIAL_8250_NR_UARTS": "4",
    "SERIAL_8250_RUNTIME_UARTS": "4",
}
#: What must be in the result: a kernel source without them cannot be a TDX host.
REQUIRED: Final = ("CONFIG_INTEL_TDX_HOST=y", "CONFIG_KVM_INTEL_TDX=y", "CONFIG_KVM_INTEL=m")


def fragment() -> str:
    """The lines that ``KCONFIG_ALLCONFIG`` names."""
    lines = [f"CONFIG_{name}=y" for name in _ON.split()]
    lines += [f"CONFIG_{name}=m" for name in _MODULES]
    lines += [f"CONFIG_{name}=n" for name in _OFF.split()]
    lines += [f"CONFIG_{name}={value}" for name, value in _VALUES.items()]
    return "\n".join(lines) + "\n"
