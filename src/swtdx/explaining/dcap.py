# ruff: noqa: E501  (a table: one row a line)
"""Codes of Intel's DCAP libraries: not of the TDX ABI, but what people find in their logs beside it.

Numbers and names: intel/SGXDataCenterAttestationPrimitives, QuoteGeneration: ``sgx_ql_lib_common.h``
(quote3_error_t, 0xE0xx), ``sgx_default_qcnl_wrapper.h`` (0xB0xx), ``sgx_pce.h`` (0xF0xx), ``td_ql_wrapper.h``
(tee_att_error_t, 0x110xx), ``qgs_msg_lib.h`` (0x1200x), ``tdx_attest.h`` (1 to 12); QuoteVerification:
``sgx_qve_header.h`` (quote verification results, 0xA0xx).  The words are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from swtdx.explaining.model import Explanation

Row = tuple[int, str, str]

#: 0xE0xx and 0x110xx, which have the same names and low bytes: low byte, name behind the prefix, meaning.
_QUOTE: Final[tuple[Row, ...]] = (
    (0x01, "ERROR_UNEXPECTED", "something failed for which there is no code; the service's log says more"),
    (0x02, "ERROR_INVALID_PARAMETER", "a parameter of the call is wrong"),
    (0x03, "ERROR_OUT_OF_MEMORY", "not enough memory"),
    (0x04, "ERROR_ECDSA_ID_MISMATCH", "the stored key blob is for another ECDSA_ID"),
    (0x05, "PATHNAME_BUFFER_OVERFLOW_ERROR", "the path of the stored key blob is too long"),
    (0x06, "FILE_ACCESS_ERROR", "the stored key blob cannot be read or written"),
    (0x07, "ERROR_STORED_KEY", "the stored attestation key is damaged"),
    (0x08, "ERROR_PUB_KEY_ID_MISMATCH", "the stored attestation key is not the one asked for"),
    (0x09, "ERROR_INVALID_PCE_SIG_SCHEME", "the provisioning certification enclave signs in an unknown way"),
    (0x0A, "ATT_KEY_BLOB_ERROR", "the attestation key blob is damaged"),
    (0x0B, "UNSUPPORTED_ATT_KEY_ID", "no attestation key of that id is supported"),
    (0x0C, "UNSUPPORTED_LOADING_POLICY", "the enclave loading policy is not supported"),
    (0x0D, "INTERFACE_UNAVAILABLE", "the quoting or the certification enclave cannot be loaded"),
    (0x0E, "PLATFORM_LIB_UNAVAILABLE", "the quote provider library (QPL) was not found, or lacks a function"),
    (0x0F, "ATT_KEY_NOT_INITIALIZED", "there is no certified attestation key yet"),
    (0x10, "ATT_KEY_CERT_DATA_INVALID", "the certificate data from the provider library is not valid"),
    (
        0x11,
        "NO_PLATFORM_CERT_DATA",
        "the provider library has no PCK certificate for this platform: usually the platform is not registered with the PCCS",
    ),
    (0x12, "OUT_OF_EPC", "not enough SGX enclave memory"),
    (0x13, "ERROR_REPORT", "a report could not be verified"),
    (0x14, "ENCLAVE_LOST", "the enclave was lost in a power transition"),
    (0x15, "INVALID_REPORT", "the report is not one of this platform"),
    (0x16, "ENCLAVE_LOAD_ERROR", "the enclave cannot be loaded: file, permissions, or no SGX"),
    (0x17, "UNABLE_TO_GENERATE_QE_REPORT", "the quoting enclave could not make its own report"),
    (0x18, "KEY_CERTIFCATION_ERROR", "the provider library gave a TCB that is higher than the platform's"),
    (0x19, "NETWORK_ERROR", "the PCK certificate could not be fetched over the network"),
    (0x1A, "MESSAGE_ERROR", "the answer with the PCK certificate cannot be read"),
    (0x1B, "NO_QUOTE_COLLATERAL_DATA", "there is no collateral for this quote's platform"),
    (
        0x1C,
        "QUOTE_CERTIFICATION_DATA_UNSUPPORTED",
        "the quote's certification data is of an unsupported type",
    ),
    (0x1D, "QUOTE_FORMAT_UNSUPPORTED", "the bytes are not a quote of a supported version"),
    (0x1E, "UNABLE_TO_GENERATE_REPORT", "no report could be made"),
    (0x1F, "QE_REPORT_INVALID_SIGNATURE", "the PCK's signature over the quoting enclave's report is wrong"),
    (0x20, "QE_REPORT_UNSUPPORTED_FORMAT", "the quoting enclave's report has an unknown form"),
    (0x21, "PCK_CERT_UNSUPPORTED_FORMAT", "the PCK certificate has an unknown form"),
    (0x22, "PCK_CERT_CHAIN_ERROR", "the PCK certificate chain does not lead to the trusted root"),
    (0x23, "TCBINFO_UNSUPPORTED_FORMAT", "the TCB info has an unknown form"),
    (0x24, "TCBINFO_MISMATCH", "the TCB info is for another FMSPC or PCE"),
    (0x25, "QEIDENTITY_UNSUPPORTED_FORMAT", "the enclave identity has an unknown form"),
    (0x26, "QEIDENTITY_MISMATCH", "the quoting enclave is not the one in the identity"),
    (0x27, "TCB_OUT_OF_DATE", "the platform's TCB is out of date"),
    (
        0x28,
        "TCB_OUT_OF_DATE_CONFIGURATION_NEEDED",
        "the platform's TCB is out of date, and its configuration needs a change",
    ),
    (0x29, "SGX_ENCLAVE_IDENTITY_OUT_OF_DATE", "the enclave's identity is out of date"),
    (0x2A, "SGX_ENCLAVE_REPORT_ISVSVN_OUT_OF_DATE", "the enclave's ISVSVN is out of date"),
    (0x2B, "QE_IDENTITY_OUT_OF_DATE", "the quoting enclave is out of date"),
    (0x2C, "SGX_TCB_INFO_EXPIRED", "the TCB info has expired"),
    (0x2D, "SGX_PCK_CERT_CHAIN_EXPIRED", "a certificate of the PCK chain has expired"),
    (0x2E, "SGX_CRL_EXPIRED", "a certificate revocation list has expired"),
    (
        0x2F,
        "SGX_SIGNING_CERT_CHAIN_EXPIRED",
        "the certificate chain that signs TCB info or identity has expired",
    ),
    (0x30, "SGX_ENCLAVE_IDENTITY_EXPIRED", "the enclave identity has expired"),
    (0x31, "PCK_REVOKED", "the PCK certificate, or its CA, is revoked"),
    (0x32, "TCB_REVOKED", "the platform's TCB is revoked"),
    (0x33, "TCB_CONFIGURATION_NEEDED", "the platform's configuration needs a change"),
    (0x34, "UNABLE_TO_GET_COLLATERAL", "the collateral could not be fetched"),
    (0x35, "ERROR_INVALID_PRIVILEGE", "not allowed: usually missing access to /dev/sgx_provision"),
    (0x37, "NO_QVE_IDENTITY_DATA", "there is no identity of the quote verification enclave"),
    (0x38, "CRL_UNSUPPORTED_FORMAT", "the revocation list has an unknown form"),
    (
        0x39,
        "QEIDENTITY_CHAIN_ERROR",
        "the chain that signs the enclave identity does not lead to the trusted root",
    ),
    (0x3A, "TCBINFO_CHAIN_ERROR", "the chain that signs the TCB info does not lead to the trusted root"),
    (0x3B, "ERROR_QVL_QVE_MISMATCH", "verification library and enclave are of different versions"),
    (0x3C, "TCB_SW_HARDENING_NEEDED", "the TCB is up to date; software must be hardened"),
    (
        0x3D,
        "TCB_CONFIGURATION_AND_SW_HARDENING_NEEDED",
        "software must be hardened, and the configuration needs a change",
    ),
    (0x3E, "UNSUPPORTED_MODE", "not possible in this mode (enclaves in or out of process)"),
    (0x3F, "NO_DEVICE", "there is no SGX device"),
    (0x40, "SERVICE_UNAVAILABLE", "the enclave service (AESM) cannot be reached"),
    (0x41, "NETWORK_FAILURE", "the network failed"),
    (0x42, "SERVICE_TIMEOUT", "the service did not answer in time"),
    (0x43, "ERROR_BUSY", "the service is busy"),
    (
        0x44,
        "UNKNOWN_MESSAGE_RESPONSE",
        "the PCCS answered in a way that the library does not expect: see the PCCS's log, its URL and API key",
    ),
    (0x45, "PERSISTENT_STORAGE_ERROR", "fetched data could not be stored"),
    (0x46, "ERROR_MESSAGE_PARSING_ERROR", "an answer could not be parsed"),
    (0x47, "PLATFORM_UNKNOWN", "the PCCS does not know this platform: it must be registered first"),
    (0x48, "UNKNOWN_API_VERSION", "the configured version of the PCS API is not known"),
    (0x49, "CERTS_UNAVAILABLE", "there are no PCK certificates for this platform"),
    (0x50, "QVEIDENTITY_MISMATCH", "the quote verification enclave is not the one in the identity"),
    (0x51, "QVE_OUT_OF_DATE", "the quote verification enclave is out of date"),
    (0x52, "PSW_NOT_AVAILABLE", "the SGX platform software cannot be loaded"),
    (0x53, "COLLATERAL_VERSION_NOT_SUPPORTED", "collateral of this version is not supported"),
    (0x60, "TDX_MODULE_MISMATCH", "the TDX Module is not the one in the TCB info"),
    (0x61, "QEIDENTITY_NOT_FOUND", "no enclave identity was found"),
    (0x62, "TCBINFO_NOT_FOUND", "no TCB info was found: unknown FMSPC"),
    (0x63, "INTERNAL_SERVER_ERROR", "the service failed inside"),
    (0x64, "SUPPLEMENTAL_DATA_VERSION_NOT_SUPPORTED", "supplemental data of this version is not supported"),
    (0x65, "ROOT_CA_UNTRUSTED", "the TLS certificate of the service is not trusted (QCNL: use_secure_cert)"),
    (0x66, "TCB_NOT_SUPPORTED", "no level of the TCB info is reached"),
    (0x67, "CONFIG_INVALID_JSON", "the QPL's configuration file is not valid JSON"),
    (0x68, "RESULT_INVALID_SIGNATURE", "a signature is wrong"),
    (0x70, "QAEIDENTITY_MISMATCH", "the quote appraisal enclave is not the one in the identity"),
    (0x71, "QAE_OUT_OF_DATE", "the quote appraisal enclave is out of date"),
    (0x72, "QUOTE_HASH_MISMATCH", "the appraisal result is for another quote"),
    (0x73, "REPORT_DATA_MISMATCH", "the appraisal enclave's report data is not what it should be"),
)

_QCNL: Final[tuple[Row, ...]] = (
    (0x01, "UNEXPECTED_ERROR", "something failed for which there is no code"),
    (0x02, "INVALID_PARAMETER", "a parameter of the call is wrong"),
    (0x03, "NETWORK_ERROR", "the network failed"),
    (0x04, "NETWORK_PROXY_FAIL", "the proxy's name does not resolve"),
    (0x05, "NETWORK_HOST_FAIL", "the name of the PCCS does not resolve"),
    (0x06, "NETWORK_COULDNT_CONNECT", "nothing listens at the address of the PCCS (pccs_url)"),
    (0x07, "NETWORK_HTTP2_ERROR", "HTTP/2 framing"),
    (0x08, "NETWORK_WRITE_ERROR", "curl could not write what it received"),
    (0x09, "NETWORK_OPERATION_TIMEDOUT", "the PCCS did not answer in time"),
    (0x0A, "NETWORK_HTTPS_ERROR", "the TLS handshake with the PCCS failed"),
    (0x0B, "NETWORK_UNKNOWN_OPTION", "curl does not know an option"),
    (0x0C, "NETWORK_INIT_ERROR", "curl cannot be initialised"),
    (0x0D, "MSG_ERROR", "the answer is not the HTTP that was expected"),
    (0x0E, "OUT_OF_MEMORY", "not enough memory"),
    (0x0F, "ERROR_STATUS_NO_CACHE_DATA", "the PCCS has no data for the request"),
    (0x10, "ERROR_STATUS_PLATFORM_UNKNOWN", "the PCCS does not know the platform"),
    (0x11, "ERROR_STATUS_UNEXPECTED", "the PCCS answered with an error that has no code: look into its log"),
    (0x12, "ERROR_STATUS_CERTS_UNAVAILABLE", "the PCCS has no certificates for the platform"),
    (0x13, "ERROR_STATUS_SERVICE_UNAVAILABLE", "the service behind the PCCS is not available"),
    (0x30, "INVALID_CONFIG", "the configuration file (sgx_default_qcnl.conf) is wrong"),
    (0x31, "CACHE_MISSING", "not in the local cache"),
    (0x32, "CACHE_EXPIRED", "in the local cache, but expired"),
    (0x33, "ROOT_CA_UNTRUSTED", "the TLS certificate of the PCCS is not trusted (use_secure_cert)"),
    (0x35, "CONFIG_INVALID_JSON", "the configuration file looks like JSON and is not valid"),
    (0x36, "CONFIG_NOT_JSON", "the configuration file is not JSON"),
)

_VERDICTS: Final[tuple[Row, ...]] = (
    (0x01, "CONFIG_NEEDED", "ConfigurationNeeded: the platform's configuration needs a change"),
    (0x02, "OUT_OF_DATE", "OutOfDate: the platform's TCB is out of date"),
    (0x03, "OUT_OF_DATE_CONFIG_NEEDED", "OutOfDateConfigurationNeeded: both"),
    (0x04, "INVALID_SIGNATURE", "a signature of the quote is wrong"),
    (0x05, "REVOKED", "Revoked: the TCB or a key is revoked"),
    (0x06, "UNSPECIFIED", "the quote could not be judged; the library's return value says why"),
    (0x07, "SW_HARDENING_NEEDED", "SWHardeningNeeded: up to date, but software must be hardened"),
    (0x08, "CONFIG_AND_SW_HARDENING_NEEDED", "ConfigurationAndSWHardeningNeeded: both"),
    (0x09, "TD_RELAUNCH_ADVISED", "the TDX Module is up to date now, but was not when the TD was launched"),
    (0x0A, "TD_RELAUNCH_ADVISED_CONFIG_NEEDED", "the same, and the configuration needs a change"),
)

_PCE: Final[tuple[Row, ...]] = (
    (0x00, "SUCCESS", "done"),
    (0x01, "UNEXPECTED", "something failed for which there is no code"),
    (0x02, "INVALID_PARAMETER", "a parameter of the call is wrong"),
    (0x03, "OUT_OF_EPC", "not enough SGX enclave memory"),
    (0x04, "INTERFACE_UNAVAILABLE", "SGX is not available"),
    (0x05, "INVALID_REPORT", "the report cannot be verified"),
    (0x06, "CRYPTO_ERROR", "a decryption or verification failed"),
    (0x07, "INVALID_PRIVILEGE", "not allowed: usually missing access to /dev/sgx_provision"),
    (0x08, "INVALID_TCB", "the enclave cannot sign at the TCB asked for"),
)

_QGS: Final[tuple[Row, ...]] = (
    (
        0x1,
        "UNEXPECTED",
        "the quote generation service failed: Intel's says so whatever the cause; its log has the cause",
    ),
    (0x2, "OUT_OF_MEMORY", "not enough memory"),
    (0x3, "INVALID_PARAMETER", "a field of the message is wrong"),
    (0x4, "INVALID_VERSION", "the message is of another version of the protocol"),
    (0x5, "INVALID_TYPE", "there is no message of this type"),
    (0x6, "INVALID_SIZE", "the sizes in the message do not fit"),
    (0x7, "INVALID_CODE", "the answer carries an unknown error code"),
)

_ATTEST: Final[tuple[Row, ...]] = (
    (0x1, "UNEXPECTED", "something failed for which there is no code"),
    (0x2, "INVALID_PARAMETER", "a parameter of the call is wrong"),
    (0x3, "OUT_OF_MEMORY", "not enough memory"),
    (0x4, "VSOCK_FAILURE", "the quote generation service cannot be reached over vsock"),
    (0x5, "REPORT_FAILURE", "the TDREPORT could not be made"),
    (0x6, "EXTEND_FAILURE", "the RTMR could not be extended"),
    (0x7, "NOT_SUPPORTED", "this is not supported"),
    (0x8, "QUOTE_FAILURE", "there was no quote: the host's quote generation service failed, or is missing"),
    (0x9, "BUSY", "the device is busy"),
    (0xA, "DEVICE_FAILURE", "/dev/tdx_guest cannot be opened or used"),
    (0xB, "INVALID_RTMR_INDEX", "only RTMR2 and RTMR3 can be extended by software"),
    (0xC, "UNSUPPORTED_ATT_KEY_ID", "the platform quotes with none of the keys in the list"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """Codes of one library: ``base`` + a row's number, by any of the prefixes + a row's name."""

    base: int
    prefixes: tuple[str, ...]
    what: str
    header: str
    rows: tuple[Row, ...]

    def covers(self, value: int) -> bool:
        """Whether ``value`` lies where this family has its codes."""
        return bool(self.base) and value & ~0xFF == self.base


FAMILIES: Final[tuple[Family, ...]] = (
    Family(0xE000, ("SGX_QL_", "TEE_"), "quote generation and verification libraries (QL, QPL, QVL)", "sgx_ql_lib_common.h", _QUOTE),
    Family(0xB000, ("SGX_QCNL_",), "the quote provider's network library (QCNL)", "sgx_default_qcnl_wrapper.h", _QCNL),
    Family(0xA000, ("SGX_QL_QV_RESULT_", "TEE_QV_RESULT_"), "the verdict of the quote verification library (QVL, QvE)", "sgx_qve_header.h", _VERDICTS),
    Family(0xF000, ("SGX_PCE_",), "the provisioning certification enclave (PCE)", "sgx_pce.h", _PCE),
    Family(0x11000, ("TEE_ATT_",), "the TD quoting library behind the quote generation service", "td_ql_wrapper.h", _QUOTE),
    Family(0x12000, ("QGS_MSG_ERROR_",), "messages of the quote generation service (QGS)", "qgs_msg_lib.h", _QGS),
    Family(0, ("TDX_ATTEST_ERROR_",), "libtdx_attest in a TD", "tdx_attest.h", _ATTEST),
)  # fmt: skip


def _explain(family: Family, row: Row) -> Explanation:
    low, name, meaning = row
    value = family.base | low
    facts = [
        ("Value", f"{value:#x}"),
        ("Of", f"Intel's DCAP: {family.what}"),
        ("Declared in", family.header),
    ]
    if len(family.prefixes) > 1:
        facts.append(("Also called", ", ".join(prefix + name for prefix in family.prefixes[1:])))
    return Explanation("dcap", f"{value:#x}", family.prefixes[0] + name, meaning, tuple(facts))


def by_number(value: int, *, asked: bool) -> list[Explanation]:
    """The codes with this value; the smallest ones, of libtdx_attest, only when they are asked for.

    A number where a library has its codes, and has none, is said to be that.
    """
    found = [
        _explain(family, row)
        for family in FAMILIES
        for row in family.rows
        if family.base | row[0] == value and (asked or family.base)
    ]
    for family in FAMILIES:
        if not found and family.covers(value):
            found.append(
                Explanation(
                    "dcap",
                    f"{value:#x}",
                    f"{value:#x}: nothing in the TDX ABI",
                    f"it looks like a code of Intel's DCAP, {family.what}, but {family.header} has none of that value",
                )
            )
    return found


def by_name(text: str) -> list[Explanation]:
    """The codes called so, under any of their prefixes."""
    wanted = re.sub(r"[^A-Z0-9]+", "_", text.upper())
    return [
        _explain(family, row)
        for family in FAMILIES
        for row in family.rows
        if any(wanted == prefix + row[1] for prefix in family.prefixes)
    ]


def names() -> list[str]:
    """Every name, under its first prefix."""
    return [family.prefixes[0] + row[1] for family in FAMILIES for row in family.rows]
