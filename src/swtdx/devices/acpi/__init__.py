"""ACPI tables for a hardware-reduced platform, and the little AML that they need."""

from swtdx.devices.acpi.build import AcpiBlob, AcpiConfig, build_acpi

__all__ = ["AcpiBlob", "AcpiConfig", "build_acpi"]
