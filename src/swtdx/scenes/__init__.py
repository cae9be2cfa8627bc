"""Plays of the whole house: a real machine, the real module and the real hypervisor, recorded and explained.

A scene is a function from a seed to :class:`~swtdx.scenes.model.Step` after step.  Its words are written
here; every number in it was recorded while it ran.
"""
