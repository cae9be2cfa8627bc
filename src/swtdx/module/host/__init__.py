"""SEAMCALL leaves, a file per object."""
