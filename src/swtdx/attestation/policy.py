"""What a relying party wants of a TD: a policy file, and the check of a quote's claims against it.

The TCB half of a policy is dcap-qvl's own (its ``QuotePolicy``); the measurements half is compared
here, because dcap-qvl leaves measurements to its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from .collateral import TcbStatus
from .errors import PolicyError
from .oserrors import words
from .quote import TD_BODY_1_5_EX
from .tomlcheck import Reader

#: Body fields that a policy can pin, with their sizes in bytes.
PINNABLE: Final[dict[str, int]] = {name: member.span for name, member in TD_BODY_1_5_EX.fields.items()}

_TCB_KEYS: Final = {
    "accept",
    "reject_advisories",
    "minimum_evaluation_number",
    "platform_grace_days",
    "qe_grace_days",
}
_PLATFORM_KEYS: Final = {"allow_dynamic", "allow_cached_keys", "allow_smt", "sgx_types"}
_TD_KEYS: Final = {*PINNABLE, "attributes_required", "attributes_forbidden", "xfam_forbidden"}
_SECTIONS: Final = {"tcb": _TCB_KEYS, "platform": _PLATFORM_KEYS, "quote": {"versions"}, "td": _TD_KEYS}


@dataclass(frozen=True)
class Policy:
    """What is accepted.  The default asks for an up-to-date TCB and pins no measurement.

    ``pinned`` maps a body field (:data:`PINNABLE`) to the values that are accepted; the masks are
    64-bit numbers over TD attributes and XFAM.
    """

    accept: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    reject_advisories: tuple[str, ...] = ()
    minimum_evaluation_number: int = 0
    platform_grace_days: int = 0
    qe_grace_days: int = 0
    allow_dynamic: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    sgx_types: tuple[int, ...] = ()
    versions: frozenset[int] = frozenset({4, 5})
    pinned: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    attributes_required: int = 0
    attributes_forbidden: int = 0
    xfam_forbidden: int = 0
    #: Where the policy came from, for reports.
    name: str = "built-in: up-to-date TCB, no measurement pinned"

    def dcap(self, now: int) -> Any:
        """The TCB half as a dcap-qvl ``QuotePolicy``, judging at ``now`` (Unix seconds)."""
        import dcap_qvl

        policy = dcap_qvl.QuotePolicy.strict(now)
        for status in sorted(self.accept):
            policy = policy.allow_status(str(status))
        if self.reject_advisories:
            policy = policy.reject_advisories(list(self.reject_advisories))
        if self.minimum_evaluation_number:
            policy = policy.min_tcb_eval_data_number(self.minimum_evaluation_number)
        if self.platform_grace_days:
            policy = policy.platform_grace_period(self.platform_grace_days * 86400)
        if self.qe_grace_days:
            policy = policy.qe_grace_period(self.qe_grace_days * 86400)
        if self.allow_dynamic:
            policy = policy.allow_dynamic_platform(True)
        if self.allow_cached_keys:
            policy = policy.allow_cached_keys(True)
        if self.allow_smt:
            policy = policy.allow_smt(True)
        if self.sgx_types:
            policy = policy.accepted_sgx_types(list(self.sgx_types))
        return policy

    def mismatch(self, version: int, body: Mapping[str, bytes]) -> str:
        """The first way in which a quote's version and body fields break the policy, or ""."""
        if version not in self.versions:
            return f"quote version {version} is not among {sorted(self.versions)}"
        for name, accepted in self.pinned.items():
            value = body.get(name)
            if value is None:
                return f"{name} is pinned, but the quote has a body without it (it needs a newer one)"
            if value not in accepted:
                wanted = " or ".join(each.hex() for each in sorted(accepted))
                return f"{name} is {value.hex()}, the policy wants {wanted}"
        attributes = int.from_bytes(body["tdattributes"], "little")
        if missing := self.attributes_required & ~attributes:
            return f"TD attributes {attributes:#x} lack required bits {missing:#x}"
        if extra := self.attributes_forbidden & attributes:
            return f"TD attributes {attributes:#x} have forbidden bits {extra:#x}"
        if extra := self.xfam_forbidden & int.from_bytes(body["xfam"], "little"):
            return f"XFAM has forbidden bits {extra:#x}"
        return ""

    def with_reportdata(self, reportdata: bytes) -> Policy:
        """The policy that also pins REPORTDATA; shorter data is padded with zeros to 64 bytes.

        Raises:
            PolicyError: it is longer than 64 bytes.
        """
        if len(reportdata) > 64:
            raise PolicyError(f"REPORTDATA has 64 bytes; {len(reportdata)} do not fit")
        pinned = {**self.pinned, "reportdata": frozenset({reportdata.ljust(64, b"\0")})}
        return replace(self, pinned=pinned)


def _mask(reader: Reader, value: object, where: str) -> int:
    number = reader.typed(value, int, where)
    if number >= 1 << 64:
        raise PolicyError(f"{where} has 64 bits; {number:#x} does not fit")
    return number


def _pin(reader: Reader, name: str, value: object) -> frozenset[bytes]:
    where = f"[td] {name}"
    accepted = {reader.blob(text, PINNABLE[name], where) for text in reader.strings(value, where)}
    if not accepted:
        raise PolicyError(f"{where} accepts nothing: the list is empty")
    return frozenset(accepted)


def _statuses(reader: Reader, value: object) -> frozenset[TcbStatus]:
    where = "[tcb] accept"
    out = {reader.choice(text, TcbStatus, where) for text in reader.strings(value, where)}
    if TcbStatus.REVOKED in out:
        raise PolicyError(f"{where}: a revoked TCB is rejected whatever the policy says")
    if TcbStatus.UP_TO_DATE not in out:
        raise PolicyError(f"{where} must contain 'UpToDate'")
    return frozenset(out)


def parse_policy(text: str, name: str = "policy") -> Policy:
    """A policy from TOML.

    Sections and keys (all optional)::

        [tcb]
        accept = ["UpToDate", "SWHardeningNeeded"]
        reject_advisories = ["INTEL-SA-00837"]
        minimum_evaluation_number = 17
        platform_grace_days = 30
        qe_grace_days = 30

        [platform]
        allow_smt = true                # also allow_dynamic, allow_cached_keys
        sgx_types = [1, 2]

        [quote]
        versions = [4, 5]

        [td]
        mrtd = "<96 hex digits>"        # or a list of accepted values; likewise rtmr0..rtmr3,
                                        # mrseam, mrconfigid, mrowner, reportdata, ...
        attributes_required = 0x10000000
        attributes_forbidden = 0x1
        xfam_forbidden = 0x0

    Raises:
        PolicyError: no TOML, or an unknown or unusable key; the message names it.
    """
    reader = Reader(text, name, _SECTIONS, PolicyError)
    values: dict[str, Any] = {"name": name}
    for key, value in reader.section("tcb").items():
        if key == "accept":
            values[key] = _statuses(reader, value)
        elif key == "reject_advisories":
            values[key] = tuple(reader.strings(value, f"[tcb] {key}"))
        else:
            values[key] = reader.typed(value, int, f"[tcb] {key}")
    for key, value in reader.section("platform").items():
        where = f"[platform] {key}"
        if key == "sgx_types":
            values[key] = tuple(reader.numbers(value, where))
        else:
            values[key] = reader.typed(value, bool, where)
    for key, value in reader.section("quote").items():
        values[key] = frozenset(reader.numbers(value, f"[quote] {key}"))
    td = reader.section("td")
    values["pinned"] = {key: _pin(reader, key, value) for key, value in td.items() if key in PINNABLE}
    values |= {key: _mask(reader, value, f"[td] {key}") for key, value in td.items() if key not in PINNABLE}
    return Policy(**values)


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file.

    Raises:
        PolicyError: the file cannot be read or used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read the policy {path}: {words(error)}") from None
    return parse_policy(text, str(path))
