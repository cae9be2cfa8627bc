"""Where verifiers legitimately differ from a vector's verdict: which way, why, and by which document.

A vector's verdict is dcap-qvl's.  An entry here says that another verifier may decide otherwise about the
same bytes and be right, too.  What is not listed has one right answer.

"QVL" is Intel's quote verification library (intel/SGX-TDX-DCAP-QuoteVerificationLibrary), read at the file
that is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Latitude:
    """Another verdict that a verifier may give.

    Args:
        accepted: whether the other verdict is "accepted".
        status: the TCB status that the other one then gives, "" for the same or for none.
        why: what the verifier does differently.
        document: what leaves it the choice.
    """

    accepted: bool
    status: str
    why: str
    document: str

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "verdict": "accepted" if self.accepted else "rejected",
            "status": self.status or None,
            "why": self.why,
            "document": self.document,
        }


_ENTRIES: Final[tuple[tuple[str, Latitude], ...]] = (
    (
        r"scenario/qe-configuration-needed",
        Latitude(
            False,
            "",
            "the QE identity has a TCB status that is not one of an enclave's",
            "Intel PCS API v4, Get Quoting Enclave Identity: tcbStatus is UpToDate, OutOfDate or Revoked",
        ),
    ),
    (
        r"collateral/(tcb-info|qe-identity)-(space|newline|pretty)",
        Latitude(
            True,
            "",
            "the verifier takes the signed member out of the response and writes it anew without white space "
            "before it checks the signature",
            "Intel PCS API v4: the signature is over the body without white space; QVL Json/TcbInfo.cpp",
        ),
    ),
    (
        r"scenario/td-(debug|migratable|reserved-attribute|sept-ve-enabled|service-td)",
        Latitude(
            True,
            "",
            "the verifier leaves the TD's attributes to the relying party's policy",
            "Intel TDX DCAP Quoting Library API, appraisal: TD attributes belong to the tenant's TD policy",
        ),
    ),
    (
        r"scenario/(tcb-info|qe-identity)-future",
        Latitude(
            True,
            "",
            "the verifier looks at nextUpdate only, and at no issueDate",
            "Intel PCS API v4 asks for no check of issueDate; QVL Verifiers/TCBInfoVerifier.cpp",
        ),
    ),
    (
        r"scenario/td-relaunch-current-revoked",
        Latitude(
            True,
            "OutOfDate",
            "the verifier rates the module that the TD was launched on, and the current one only when that "
            "could make a relaunch advisable",
            "QVL Verifiers/Checks/TDRelaunchCheck.cpp: a current level that is behind changes nothing",
        ),
    ),
    (
        r"scenario/processor-ca",
        Latitude(
            False,
            "",
            "the PCK certificate has the SGX type scalable, which has a platform instance, and comes from "
            "the Processor CA, which certifies platforms without one",
            "Intel SGX PCK Certificate and CRL Profile Specification: platform instance id and configuration "
            "are in certificates of the Platform CA",
        ),
    ),
    (
        r"chain/ca-first-.*",
        Latitude(
            True,
            "",
            "the verifier finds each certificate by its subject, in whatever order they come",
            "QVL CertVerification/CertificateChain.cpp; the quote format names the order leaf, CA, root",
        ),
    ),
    (
        r"chain/(root-before-ca|leaf-twice|without-root|crlf|outer-type-5)-.*",
        Latitude(
            False,
            "",
            "the verifier wants exactly leaf, CA and root in PEM, as the certification data's type says",
            "Intel TDX DCAP Quoting Library API, quote format, certification data types 5 and 6",
        ),
    ),
    (
        r"scenario/td-relaunch-advised.*",
        Latitude(
            True,
            "OutOfDate",
            "the verifier knows no TEE_TCB_SVN2 and rates the launch alone",
            "body 1.5 came with quote version 5; verifiers of version 4's body have no such status",
        ),
    ),
)


def latitude(name: str) -> list[Latitude]:
    """The other verdicts that a verifier may give on the vector called ``name`` (``group/name``)."""
    return [entry for pattern, entry in _ENTRIES if re.fullmatch(pattern, name)]
