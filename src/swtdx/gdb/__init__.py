"""A server of GDB's remote protocol for TDs.

``packets`` is the protocol's framing, ``registers`` what GDB is told of the processor, ``session`` answers
packets of one debugger about a ``Target``; ``td`` is the target that a debug TD is through the module's
interfaces, and ``serve`` runs a TD under a debugger.
"""
