"""A template to all its prompts, and how many they are. What a file can become is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from math import comb, factorial

from .syntax import (
    SYNTAX,
    Assign,
    Choice,
    FromFile,
    Node,
    Sequence,
    TemplateError,
    Use,
    Wrap,
    parse,
)
from .wildcard_files import Value, Values
from .wildcard_lines import Lines, joined, name_of, squeezed, tree_of, value_of, wrapped

At = tuple[dict[str, Node], tuple[str, ...]]  # what variables stand for, the files one is inside
_JOINED = 8  # texts that one `{n$$...}` joins in all ways


class All:
    """All prompts that templates and the lines of wildcard files make."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._counts: dict[object, int] = {}

    def prompts(self, tree: Node) -> Iterator[str]:
        """In order; equal ones as often as they are made."""
        return self._all(tree, ({}, ()))

    def count(self, tree: Node) -> int:
        """How many they are at most."""
        return self._count(tree, ({}, ()))

    def _all(self, node: Node, at: At) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Sequence):
            for own in self._all_assigned(node, at):
                parts: list[Node] = [part for part in node.parts if not isinstance(part, Assign)]
                yield from self._all_products(parts, own)
        elif isinstance(node, Choice):
            yield from self._all_choices(node, at)
        elif isinstance(node, FromFile):
            for name in self._all(name_of(node.name), at):
                for tree, inner in self._lines(squeezed(name), node, at):
                    yield from self._all(tree, inner)
        elif isinstance(node, Wrap):
            for wrapper in self._all(node.wrapper, at):
                yield from (wrapped(wrapper, text) for text in self._all(node.inner, at))
        elif isinstance(node, Use):
            yield from self._all(value_of(node, at[0]), at)

    def _all_products(self, parts: list[Node], at: At) -> Iterator[str]:
        if not parts:
            yield ""
            return
        for first in self._all(parts[0], at):
            for rest in self._all_products(parts[1:], at):
                yield first + rest

    def _all_assigned(self, node: Sequence, at: At) -> Iterator[At]:
        """The variables of a sequence in all ways: those that are chosen once, each way of them."""
        known, files = at
        names: list[str] = []
        ways: list[list[Node]] = []
        for part in node.parts:
            if isinstance(part, Assign) and not (part.keep and part.name in known):
                names.append(part.name)
                ways.append(list(self._all(part.value, at)) if part.once else [part.value])
        for chosen in product(*ways):
            yield {**known, **dict(zip(names, chosen, strict=True))}, files

    def _all_choices(self, node: Choice, at: At) -> Iterator[str]:
        options = self._options(node, at)
        seen: set[tuple[str, ...]] = set()
        for size in range(min(node.low, len(options)), min(node.high, len(options)) + 1):
            for chosen in permutations(options, size):
                for texts in product(*(list(self._all(*option)) for option in chosen)):
                    if len(set(texts)) == size and texts not in seen:
                        seen.add(texts)
                        yield joined(list(texts), node.joiner)

    def _options(self, node: Choice, at: At) -> list[tuple[Node, At]]:
        """The options with what holds in them; `{2$$__file__}` chooses among the file's lines."""
        first = node.options[0]
        if len(node.options) > 1 or not isinstance(first, FromFile):
            return [(option, at) for option in node.options]
        names = self._all(name_of(first.name), at)
        return [line for name in names for line in self._lines(name, first, at)]

    def _lines(self, name: str, node: FromFile, at: At) -> Iterator[tuple[Node, At]]:
        """The lines of a file that can be used, with what holds in them."""
        values, inner = self._inside(name, node, at)
        for value in self.lines.usable(values, lambda value: self._count_value(value, inner)):
            yield tree_of(value), inner

    def _inside(self, name: str, node: FromFile, at: At) -> tuple[Values, At]:
        """A file's lines, and what holds in them; tells a file that leads back to itself."""
        known, files = at
        return self.lines.values(name, files), ({**known, **dict(node.variables)}, (*files, name))

    # --- how many --------------------------------------------------------------------------

    def _count(self, node: Node, at: At) -> int:
        known, files = at
        if isinstance(node, str):
            return 1
        if isinstance(node, Sequence):
            total, own = 1, dict(known)
            for part in node.parts:
                if isinstance(part, Assign) and not (part.keep and part.name in known):
                    inner = self._count(part.value, at)
                    total *= inner if part.once else 1
                    own[part.name] = "" if part.once else part.value
            for part in node.parts:
                total *= 1 if isinstance(part, Assign) else self._count(part, (own, files))
            return total
        if isinstance(node, Choice):
            options = self._options(node, at)
            return _ways([self._count(*option) for option in options], node.low, node.high)
        if isinstance(node, Wrap):
            return self._count(node.wrapper, at) * self._count(node.inner, at)
        if isinstance(node, Use):
            value = value_of(node, known)
            rest = {name: other for name, other in known.items() if name != node.name}
            return self._count(value, (rest, files))
        if isinstance(node, FromFile):
            return self._count_file(node, at)
        return 1

    def _count_file(self, node: FromFile, at: At) -> int:
        return sum(
            self._count_lines(squeezed(name), node, at)
            for name in self._all(name_of(node.name), at)
        )

    def _count_lines(self, name: str, node: FromFile, at: At) -> int:
        values, inner = self._inside(name, node, at)
        key = (name, tuple(sorted((key, repr(value)) for key, value in inner[0].items())))
        if key not in self._counts:
            counts: list[int] = []
            for _ in self.lines.usable(
                values, lambda value: counts.append(self._count_value(value, inner))
            ):
                pass
            self._counts[key] = sum(counts)
        return self._counts[key]

    def _count_value(self, value: Value, at: At) -> int:
        return self._count(parse(value.text), at) if SYNTAX.search(value.text) else 1


def _ways(options: list[int], low: int, high: int) -> int:
    """Ways to choose low to high of the options, in order, each in any of its own ways."""
    low, high = min(low, len(options)), min(high, len(options))
    if high > _JOINED:
        raise TemplateError(f"{{{high}$$...}} joins {high} texts: join at most {_JOINED}")
    if set(options) == {1}:
        return sum(comb(len(options), k) * factorial(k) for k in range(low, high + 1))
    ways = [1] + [0] * high  # elementary symmetric sums
    for option in options:
        for k in range(high, 0, -1):
            ways[k] += ways[k - 1] * option
    return sum(ways[k] * factorial(k) for k in range(low, high + 1))
