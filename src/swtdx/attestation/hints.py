"""Words around a verifier's message: real dates, and the key of a policy that would allow what it refuses."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from typing import Final

_DAY: Final = 86_400
_UNIX: Final = re.compile(r"UnixTime\((\d{1,12})\)|(?<=tcb_date_tag )(\d{9,12})|(?<=now )(\d{9,12})")


def with_dates(message: str) -> str:
    """A message of dcap-qvl with its Unix seconds as dates."""

    def date(match: re.Match[str]) -> str:
        seconds = int(next(group for group in match.groups() if group))
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    return _UNIX.sub(date, message)


def _days(match: re.Match[str]) -> int:
    tag, now = int(match[1]), int(match[2])
    return max(1, math.ceil((now - tag) / _DAY))


_KEYS: Final[tuple[tuple[str, Callable[[re.Match[str]], str]], ...]] = (
    (
        r"TCB status (?!Revoked)(\w+) is not acceptable",
        lambda m: f'[tcb] accept = ["UpToDate", "{m[1]}"]',
    ),
    (
        r"Platform TCB too old: tcb_date_tag (\d+) .* now (\d+)",
        lambda m: f"[tcb] platform_grace_days = {_days(m)}",
    ),
    (r"QE TCB too old: tcb_date_tag (\d+) .* now (\d+)", lambda m: f"[tcb] qe_grace_days = {_days(m)}"),
    (
        r"Advisory ID (\S+) is rejected",
        lambda m: f"{m[1]} taken out of [tcb] reject_advisories",
    ),
    (
        r"TCB eval data number (\d+) is below",
        lambda m: f"[tcb] minimum_evaluation_number = {m[1]} or less",
    ),
    (r"Dynamic platform is not allowed", lambda m: "[platform] allow_dynamic = true"),
    (r"Cached keys are not allowed", lambda m: "[platform] allow_cached_keys = true"),
    (r"SMT .*is not allowed", lambda m: "[platform] allow_smt = true"),
    (r"SGX type (\d+) is not in accepted", lambda m: f"[platform] sgx_types with {m[1]} in it"),
    (r"^quote version (\d+) is not among", lambda m: f"[quote] versions with {m[1]} in it"),
    (
        r"^(\w+) is ([0-9a-f]+), the policy wants",
        lambda m: f'[td] {m[1]} = "{m[2]}" (or a list with it)',
    ),
    (r"^(\w+) is pinned, but the quote", lambda m: f"no [td] {m[1]}"),
    (
        r"^TD attributes \S+ lack required bits (\S+)",
        lambda m: f"[td] attributes_required without {m[1]}",
    ),
    (
        r"^TD attributes \S+ have forbidden bits (\S+)",
        lambda m: f"[td] attributes_forbidden without {m[1]}",
    ),
    (r"^XFAM has forbidden bits (\S+)", lambda m: f"[td] xfam_forbidden without {m[1]}"),
)


def policy_key(message: str) -> str:
    """What a policy file would have to say for a refusal by a policy not to come; "" if none would help.

    ``message`` is dcap-qvl's own, or :meth:`.policy.Policy.mismatch`'s.
    """
    for pattern, key in _KEYS:
        match = re.search(pattern, message)
        if match:
            return key(match)
    return ""
