"""No file imports, directly or through others, a file that imports it: not even for the sake of a type."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

import grimp
import pytest

#: Imports that still close a circle, each with the reason why.  All are for types only; a circle that closes
#: at run time is never right.  ``*`` stands for any text.  One that closes no circle any more must go.
CLOSING: Final = {
    # Pairs of files, one of which names the other's class.
    "swtdx.api.td -> swtdx.api.platform": "a TD names its platform, which makes TDs",
    "swtdx.api.scripted -> swtdx.api.platform": "as above",
    "swtdx.api.linux -> swtdx.api.platform": "as above",
    "swtdx.proof.conformance.registry -> swtdx.proof.conformance.world": "what a case is handed",
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of ours, those under TYPE_CHECKING and in functions as well."""
    return grimp.build_graph("swtdx", cache_dir=None)


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Sets of files, each of which imports every other of its set, directly or not."""
    found: list[set[str]] = []
    placed: set[str] = set()
    for module in sorted(graph.modules - placed):
        if module not in placed:
            circle = graph.find_downstream_modules(module) & graph.find_upstream_modules(module)
            if circle:
                found.append(circle | {module})
                placed |= circle
    return found


def _edges(graph: grimp.ImportGraph, modules: set[str]) -> set[tuple[str, str]]:
    """The imports between ``modules``."""
    return {
        (importer, imported)
        for importer in modules
        for imported in graph.find_modules_directly_imported_by(importer) & modules
    }


def test_no_circle_at_run_time() -> None:
    graph = grimp.build_graph("swtdx", cache_dir=None, exclude_type_checking_imports=True)
    assert circles(graph) == []


def test_no_circle_for_types_but_those_listed(graph: grimp.ImportGraph) -> None:
    within = {edge for circle in circles(graph) for edge in _edges(graph, circle)}
    used = set()
    for importer, imported in sorted(within):
        for pattern in CLOSING:
            if fnmatchcase(f"{importer} -> {imported}", pattern):
                used.add(pattern)
                graph.remove_import(importer=importer, imported=imported)
                break
    assert circles(graph) == []
    assert sorted(set(CLOSING) - used) == [], "these close no circle any more: take them off the list"


def test_a_circle_is_found() -> None:
    """Of three files in a ring, and one that only looks at it."""
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"), ("e", "f")):
        graph.add_import(importer=importer, imported=imported)
    assert circles(graph) == [{"a", "b", "c"}]
