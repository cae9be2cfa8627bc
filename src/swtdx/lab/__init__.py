"""Attackers, and what they must not achieve."""
