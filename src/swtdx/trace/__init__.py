"""What crosses the trust boundary: every SEAMCALL, VM entry, VM exit, TDCALL and TDVMCALL, decoded.

::

    recorder = Recorder()
    with Tracer(platform.machine, recorder):
        ...
    for line in timeline(recorder.events()):
        print(line)

:class:`~swtdx.trace.probe.Tracer` is the logic analyser's probe, :mod:`~swtdx.trace.decode` names what it
recorded out of the tables of :mod:`swtdx.arch`, :mod:`~swtdx.trace.text` and
:mod:`~swtdx.trace.jsonlines` write it down.
"""
