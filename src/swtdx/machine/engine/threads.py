"""A thread for each processor: how an engine that has no better way runs the software of several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping


def run_threads(programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]) -> None:
    """Run ``programs``, by index of the processor, until all have returned.

    Each has a thread, and a single one the caller's.

    ``failed`` is told of an exception in one of them, or in the caller's wait for them, and has to make the
    others return; then the first one is raised.
    """
    if len(programs) == 1:
        (program,) = programs.values()
        try:
            program()
        except BaseException as error:
            failed(error)
            raise
        return
    failures: list[BaseException] = []

    def run(program: Callable[[], None]) -> None:
        try:
            program()
        except BaseException as error:
            failures.append(error)
            failed(error)

    threads = [
        threading.Thread(target=run, args=(program,), name=f"swtdx processor {index}", daemon=True)
        for index, program in programs.items()
    ]
    for thread in threads:
        thread.start()
    waiting = True
    while waiting:
        # Nothing is outside of the try that Ctrl-C could hit.
        try:
            for thread in threads:
                thread.join()
            waiting = False
        except BaseException as error:  # Ctrl-C, say: they have to end in order
            failures.append(error)
            failed(error)
    if failures:
        raise failures[0]
