"""``swtdx qemu``: QEMU's own command line starts a TD here.

:mod:`.table` declares every option and what becomes of it; :mod:`.reading` makes settings of a command line,
:mod:`.machine` a description of a machine of those, and :mod:`.start` runs it.
"""
