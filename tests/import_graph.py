"""The import graph of ``tiue_core``, read from the source: which module imports which."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(root: Path = ROOT, package: str = "tiue_core") -> dict[str, Path]:
    """Dotted names, without the package's own, to files; a package is named by its folder."""
    found = {}
    for path in (root / package).rglob("*.py"):
        parts = path.relative_to(root / package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(
    root: Path = ROOT, package: str = "tiue_core", relative: bool = True
) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, anywhere in it, lazily too.

    Args:
        relative: read relative imports; scripts that lie side by side import each other by name.
    """
    known = modules(root, package)
    graph = {}
    for name, path in known.items():
        home = name.split(".") if name else []
        if path.name != "__init__.py":
            home = home[:-1]
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and bool(node.level) == relative:
                above = home[: len(home) - max(node.level - 1, 0)] if relative else []
                base = [*above, *(node.module.split(".") if node.module else [])]
                found |= _targets(base, [alias.name for alias in node.names], known)
            elif isinstance(node, ast.Import) and not relative:
                found |= {alias.name for alias in node.names} & set(known)
        graph[name] = found - {name, ""}
    return graph


def _targets(base: list[str], names: list[str], known: dict[str, Path]) -> set[str]:
    """What ``from base import names`` imports: submodules by their name, else the base."""
    full = {".".join([*base, name]) for name in names}
    return (full & set(known)) | ({".".join(base)} & set(known) if full - set(known) else set())


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node that reach each other (Tarjan's strongly connected parts)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between the folders of the first level."""
    out: dict[str, set[str]] = {}
    for name, targets in graph.items():
        room = name.partition(".")[0]
        out.setdefault(room, set()).update(
            t.partition(".")[0] for t in targets if t.partition(".")[0] != room
        )
    return out
