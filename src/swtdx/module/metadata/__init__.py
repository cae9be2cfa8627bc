"""Metadata fields read and written by identifier (structures.md §13)."""
