"""TDCALL leaves."""
