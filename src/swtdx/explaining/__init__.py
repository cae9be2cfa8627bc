"""What a number or a name of the TDX ABI means, read out of the tables of :mod:`swtdx.arch`."""
