"""Tools for those who work on swtdx; nothing of them is installed."""
