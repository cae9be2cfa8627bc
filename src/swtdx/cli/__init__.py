"""The swtdx command."""
