"""TD_PARAMS against the rules of TDH.MNG.INIT (structures.md section 5), for any module and any wish."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from swtdx.vmm.errors import ConfigError
from swtdx.vmm.sysinfo import CpuidConfig, SysInfo
from swtdx.vmm.td_params import TdConfig

DEBUG, SEPT_VE_DISABLE, MIGRATABLE, PKS, KL, PERFMON = (1 << bit for bit in (0, 28, 29, 30, 31, 63))
U32 = 0xFFFFFFFF
INFO = SysInfo(
    version="1.5.01", build_date=20240101, vendor_id=0x8086, features0=0, max_tdmrs=64,
    max_reserved_per_tdmr=16, pamt_entry_size=16, tdcs_pages=6, tdvps_pages=6,
    attributes_fixed0=DEBUG | SEPT_VE_DISABLE | PKS | PERFMON,
    attributes_fixed1=0, xfam_fixed0=0x6DBE7, xfam_fixed1=3, config_flags_fixed0=7, package_signature=0x806F8,
    cpuid_config=(
        CpuidConfig(1, None, 0x0FFF3FFF, 0x00FF0000, 0x31044D88, 0xB8440000),
        CpuidConfig(7, 0, 0, 0xDC2B9B18, 0x2417F65, 0x5411C),
        CpuidConfig(4, 0, U32, U32, U32, 0), CpuidConfig(4, 4, U32, U32, U32, U32),
        CpuidConfig(0x80000008, None, 0, 0x200, 0, 0),
    ),
    # 48 KiB for data, 32 KiB for code, 2 MiB that two ids share, 105 MiB that 256 do.
    caches=(
        (0x1C004121, 0x2C0003F, 63, 0), (0x1C004122, 0x1C0003F, 63, 0), (0x1C004143, 0x3C0003F, 2047, 0),
        (0x1C000163 | 255 << 14, 0x380003F, 114687, 4),
    ),
)  # fmt: skip


class Params:
    """TD_PARAMS, unpacked by the offsets of the document."""

    def __init__(self, data: bytes) -> None:
        assert len(data) == 1024
        self.attributes, self.xfam, self.vcpus, self.l2_vms, self.msr_flags = struct.unpack_from(
            "<QQHBB", data
        )
        assert data[20:24] == bytes(4)
        self.eptp_controls, self.config_flags, self.tsc = struct.unpack_from("<QQH", data, 24)
        assert data[42:80] == bytes(38)
        self.mrconfigid, self.mrowner, self.mrownerconfig = data[80:128], data[128:176], data[176:224]
        assert data[224:256] == bytes(32)
        self.cpuid = list(struct.iter_unpack("<4I", data[256:]))


def params(info: SysInfo = INFO, hz: float = 2.5e9, **config: Any) -> Params:
    return Params(TdConfig(**config).params(info, hz))


def test_defaults() -> None:
    made = params()
    assert made.attributes == SEPT_VE_DISABLE
    assert made.xfam == 0x2E7  # x87, SSE, AVX, AVX-512, PKRU
    assert (made.vcpus, made.l2_vms, made.msr_flags) == (1, 0, 0)
    assert made.eptp_controls == 0x1E  # write-back, four levels: what Linux writes
    assert made.config_flags == 1 << 2  # NO_RBP_MOD
    assert made.tsc == 100
    assert made.mrconfigid == made.mrowner == made.mrownerconfig == bytes(48)


def test_52_bits() -> None:
    made = params(gpaw=52)
    assert made.eptp_controls == 0x26
    assert made.config_flags == 0b101
    assert TdConfig(gpaw=52).shared_bit == 1 << 51
    assert TdConfig().shared_bit == 1 << 47


def test_a_module_without_five_levels() -> None:
    with pytest.raises(ConfigError, match="use gpaw 48"):
        params(dataclasses.replace(INFO, config_flags_fixed0=6), gpaw=52)


def test_a_module_without_no_rbp_mod() -> None:
    assert params(dataclasses.replace(INFO, config_flags_fixed0=1)).config_flags == 0


@pytest.mark.parametrize(
    ("bits", "names"), [(KL, "KL"), (MIGRATABLE, "MIGRATABLE"), (KL | 1 << 40, "KL, bit 40")]
)
def test_attributes_refused(bits: int, names: str) -> None:
    with pytest.raises(ConfigError, match=f"does not support ATTRIBUTES {names}$"):
        params(attributes=bits)


def test_attributes() -> None:
    assert params(attributes=DEBUG | PKS | PERFMON).attributes == DEBUG | PKS | PERFMON | SEPT_VE_DISABLE
    assert params(pending_ve=True).attributes == 0
    assert TdConfig(attributes=DEBUG).debug
    assert not TdConfig().debug


@pytest.mark.parametrize(
    ("xfam", "message"),
    [(1 << 3 | 3, "XFAM bits 0x8"), (2, "bits 0x1 "), (0, "bits 0x3 "), (1 << 63 | 3, "0x8000000000000000")],
)
def test_xfam_refused(xfam: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        params(xfam=xfam)


def test_a_processor_with_half_of_avx512_gets_none() -> None:
    assert params(dataclasses.replace(INFO, xfam_fixed0=0x6DBE7 & ~0x40)).xfam == 0x207


@pytest.mark.parametrize(
    ("machine", "wanted", "units"),
    [(2.5e9, None, 100), (2.512e9, None, 100), (2.513e9, None, 101), (1.0e8, None, 4), (9e7, None, 4),
     (5e10, None, 400), (2.5e9, 1e8, 4), (2.5e9, 1e10, 400), (2.5e9, 2.1e9, 84)],
)  # fmt: skip
def test_tsc_in_25_mhz(machine: float, wanted: float | None, units: int) -> None:
    assert params(hz=machine, tsc_hz=wanted).tsc == units


def test_cpuid_overrides() -> None:
    made = params(cpuid={(7, 0): (0, 1 << 3, 0, 0), (0x80000008, None): (0, 0x200, 0, 0)})
    assert made.cpuid[1] == (0, 1 << 3, 0, 0)
    assert made.cpuid[4] == (0, 0x200, 0, 0)
    with pytest.raises(ConfigError, match=r"CPUID\(0x80000008\).EBX: a host cannot configure the bits 0x100"):
        params(cpuid={(0x80000008, None): (0, 0x100, 0, 0)})


def test_cpuid_caches_by_the_sdm() -> None:
    """Leaf 4: ways * line * sets is the size."""
    eax, ebx, ecx, _ = params().cpuid[2]
    assert eax & 0x1F == 1  # a data cache
    assert eax >> 5 & 7 == 1
    assert ((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1) == 48 << 10
    assert params().cpuid[3] == (0, 0, 0, 0)  # the end of the list


@pytest.mark.parametrize(
    ("vcpus", "shared"), [(1, [1, 1, 1, 1]), (2, [2, 2, 2, 2]), (3, [2, 2, 2, 4]), (9, [2, 2, 2, 16])]
)
def test_who_shares_a_cache(vcpus: int, shared: list[int]) -> None:
    """The processor's caches by the guest's numbers: the last is all vCPUs', none is more than theirs."""
    entries = tuple(CpuidConfig(4, subleaf, U32, U32, U32, U32) for subleaf in range(5))
    made = params(dataclasses.replace(INFO, cpuid_config=entries), vcpus=vcpus)
    assert [(eax >> 14 & 0xFFF) + 1 for eax, _, _, _ in made.cpuid[:4]] == shared
    assert [(eax >> 26, eax & 0x3FFF) for eax, _, _, _ in made.cpuid[:4]] == [
        (0, eax & 0x3FFF) for eax, _, _, _ in INFO.caches
    ]
    assert [rest for _, *rest in made.cpuid[:4]] == [rest for _, *rest in INFO.caches]
    assert made.cpuid[4] == (0, 0, 0, 0)


@pytest.mark.parametrize(("vcpus", "htt"), [(1, 0), (2, 1), (300, 1)])
def test_cpuid_of_several_vcpus(vcpus: int, htt: int) -> None:
    _, ebx, _, edx = params(vcpus=vcpus).cpuid[0]
    assert edx >> 28 & 1 == htt
    assert ebx >> 16 & 0xFF == min(vcpus, 255)


U64 = some.integers(0, 2**64 - 1)


@settings(max_examples=60)
@given(
    fixed0=U64, fixed1=U64, xfam0=U64, xfam1=U64, flags=some.integers(0, 7),
    masks=some.lists(U64, max_size=5), attributes=U64,
    xfam=some.one_of(some.none(), U64), gpaw=some.sampled_from([48, 52]),
    vcpus=some.integers(1, 65535), signature=some.integers(0, U32),
)  # fmt: skip
def test_never_what_the_module_would_refuse(
    fixed0: int, fixed1: int, xfam0: int, xfam1: int, flags: int, masks: list[int], attributes: int,
    xfam: int | None, gpaw: int, vcpus: int, signature: int,
) -> None:  # fmt: skip
    """FIXED0: bits that may be 1; FIXED1: bits that must be 1; CPUID: only bits that are configurable."""
    entries = tuple(
        CpuidConfig(leaf, None, mask & U32, mask >> 32, mask & U32, mask >> 32)
        for leaf, mask in zip((1, 4, 7, 0x14, 0x80000008), masks, strict=False)
    )
    info = dataclasses.replace(
        INFO, attributes_fixed0=fixed0 | fixed1, attributes_fixed1=fixed1, xfam_fixed0=xfam0 | xfam1,
        xfam_fixed1=xfam1, config_flags_fixed0=flags, cpuid_config=entries, package_signature=signature,
    )  # fmt: skip
    try:
        made = params(info, attributes=attributes & 7 << 28, xfam=xfam, gpaw=gpaw, vcpus=vcpus)
    except ConfigError:
        return
    assert not made.attributes & ~info.attributes_fixed0
    assert made.attributes & fixed1 == fixed1
    assert not made.xfam & ~info.xfam_fixed0
    assert made.xfam & xfam1 == xfam1
    assert xfam is None or made.xfam == xfam
    assert not made.config_flags & ~info.config_flags_fixed0
    for values, entry in zip(made.cpuid, entries, strict=False):
        for value, mask in zip(values, dataclasses.astuple(entry)[2:], strict=True):
            assert not value & ~mask
    assert all(values == (0, 0, 0, 0) for values in made.cpuid[len(entries) :])
