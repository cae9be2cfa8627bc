"""An operating system, Linux with KVM, on the machine: loaded, started on all processors, and listened to."""
