"""Collateral for GET_COLLATERAL, out of a world: what Intel's service has from its quote provider library."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from .server import CollateralSource

if TYPE_CHECKING:
    from ..world import World


def collateral_source(world: World, *, frozen: bool = False) -> CollateralSource:
    """Answers for the platform of ``world``, as of today unless ``frozen``."""

    def source(fmspc: bytes, ca: str) -> Mapping[str, bytes] | None:
        today = world if frozen else replace(world, now=dt.datetime.now(dt.UTC))
        if fmspc != today.platform_identity.fmspc or ca != str(today.ca):
            return None
        info, identity = today.signed_tcb_info(), today.signed_identity()
        return {
            "pck_crl_issuer_chain": today.pck_ca_chain().encode(),
            "root_ca_crl": today.root_crl(),
            "pck_crl": today.pck_crl(),
            "tcb_info_issuer_chain": info.chain.encode(),
            "tcb_info": info.response("tcbInfo").encode(),
            "qe_identity_issuer_chain": identity.chain.encode(),
            "qe_identity": identity.response("enclaveIdentity").encode(),
        }

    return source
