"""The errors of this room.  Each says what was wrong with which thing, and what to do about it."""

from __future__ import annotations


class AttestationError(ValueError):
    """Something given to the attestation tools cannot be used.  The message is fit for an end user."""


class QuoteFormatError(AttestationError):
    """Bytes that should be a quote are not one; says at which byte and why."""


class ReportRejected(AttestationError):
    """The quoting enclave does not sign this TDREPORT."""


class ScenarioError(AttestationError):
    """A scenario file describes no world."""


class PolicyError(AttestationError):
    """A policy file cannot be used."""


class EventLogError(AttestationError):
    """Bytes that should be an event log are not one."""


class QgsError(AttestationError):
    """A quote generation service could not be reached, or answered with an error or not in protocol."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        #: The service's error code (qgs_msg_error_t), 0 when there is none.
        self.code = code


class MissingDependency(AttestationError):
    """An optional package is not installed."""
