"""Attackers, and what they must not achieve.

Each family of attacks is a module; each attack a function that takes a :class:`~swtdx.lab.bench.Bench`: a
machine on which a victim TD keeps secrets, in the hands of a hypervisor that is up to no good.
:func:`swtdx.lab.catalogue.attacks` lists them, :func:`swtdx.lab.catalogue.carry_out` carries one out and
judges: an attack is refused if every attempt was, and if the victim, asked afterwards, still has its secrets
and nobody else has.
"""
