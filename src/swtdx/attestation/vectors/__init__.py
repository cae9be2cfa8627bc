"""Test vectors for people who write verifiers: quotes with collateral, and what must come out."""
