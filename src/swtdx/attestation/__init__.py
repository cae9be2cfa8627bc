"""Quoting, PCK keys and certificates, collateral, verification."""
