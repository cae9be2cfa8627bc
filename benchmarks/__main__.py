"""All benchmarks, and one table of what was promised and what was measured: ``python -m benchmarks``.

A benchmark is a module in this directory that has ``main()``, which prints its figures as JSON if it is run
with ``--json``: an object whose ``promises`` is a list of :class:`~benchmarks.promise.Promise` as plain
data, and whose ``kept`` says whether all of them hold. Each runs in a process of its own, one after the
other. Names as arguments choose some. The exit status is 0, or 1 if a promise is broken or a benchmark does
not come to its end.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.promise import figure

HERE = Path(__file__).parent
#: Seconds; the longest one boots Linux a few times.
TIMEOUT = 900


def benchmarks() -> list[str]:
    """Names of the modules here that have a ``main``, without importing them."""

    def has_main(path: Path) -> bool:
        body = ast.parse(path.read_text()).body
        return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)

    return sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__main__" and has_main(path))


def run(name: str) -> dict[str, Any]:
    """Run one benchmark; its figures, or an ``error``."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    try:
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"not at its end after {TIMEOUT} s", "kept": False}
    try:
        figures = json.loads(done.stdout)
    except ValueError:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with status {done.returncode}", "kept": False}
    assert isinstance(figures, dict)
    return figures | {"kept": bool(figures.get("kept")) and done.returncode == 0}


def table(results: dict[str, dict[str, Any]]) -> Table:
    """One line for each promise, in the order of the benchmarks."""
    shown = Table("benchmark", "issue", "what", "promised", "measured", "", box=None, pad_edge=False)
    for name, result in results.items():
        if "error" in result:
            shown.add_row(name, "", result["error"], "", "", "[red]failed[/]")
            continue
        for each in result.get("promises", []):
            limit = f"{'at most' if each['at_most'] else 'at least'} {figure(each['promised'], each['unit'])}"
            verdict = "[green]kept[/]" if each["kept"] else "[red]broken[/]"
            measured = figure(each["measured"], each["unit"])
            shown.add_row(name, str(each["issue"]), each["what"], limit, measured, verdict)
        if not result["kept"] and all(each["kept"] for each in result.get("promises", [])):
            shown.add_row(name, "", "it says itself that a promise is broken", "", "", "[red]broken[/]")
    return shown


def main() -> int:
    """Run them, print the table (or everything as JSON), and say whether all promises hold."""
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run benchmarks against promises.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all without one: {', '.join(known)}")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    results: dict[str, dict[str, Any]] = {}
    for name in options.names or known:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = run(name)
    kept = all(result["kept"] for result in results.values())
    if options.json:
        print(json.dumps({"benchmarks": results, "kept": kept}, indent=2))
    else:
        # In a pipe as wide as it needs to be.
        Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table(results))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
