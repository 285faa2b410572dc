"""Templates to prompts: one by a seed, or all of them.

A prompt costs its own way through the files. What every file can become is only counted where all
combinations are asked for, once a file. A line that cannot be used (a brace that is not closed, a
file that is not there or leads back to itself) is left out and told; the others are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from math import comb, factorial
from pathlib import Path
from random import Random

from .limits import tick
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
from .wildcard_files import Collections, Value, Values

COMBINATIONS = 100_000  # of one row, unless asked for more
_STEPS = 10_000  # parts of one prompt: files may name one another without end
_LEVELS = 50  # files within files
_JOINED = 8  # texts that one `{n$$...}` joins in all ways
_TOLD = 100  # lines left out that are remembered to be told
_DOTS = re.compile("[\u1801\u2026\u22ee\u22ef\u22f0\u22f1\ufe19]+|\\.{3,}")


class LoopError(TemplateError):
    """A file that leads back to itself."""


@dataclass(frozen=True)
class _Walk:
    """One way through a template: the draws, and what holds where."""

    random: Random
    turn: int  # which picture of its row, for `@`
    files: tuple[str, ...] = ()
    variables: dict[str, Node] = field(default_factory=dict)
    inside: frozenset[str] = frozenset()  # variables whose value is being made


class Wildcards:
    """Templates to prompts.

    Args:
        folder: of the files `__name__` stands for: name.txt, and YAML and JSON collections.
        limit: combinations of one template that are too many.
    """

    def __init__(self, folder: Path | None = None, limit: int = COMBINATIONS) -> None:
        self.limit, self.folder = limit, folder
        self.files = Collections(folder) if folder is not None else None
        self.left_out: dict[str, None] = {}  # lines, each with its reason
        self._counts: dict[object, int] = {}
        self._left = 0

    def sample(self, template: str, seed: int, turn: int = 0) -> str:
        """One prompt, chosen by `seed` alone; `{@a|b}` takes them in turn.

        Raises:
            TemplateError: the template cannot be read, or asks for a file that is not there.
        """
        if not SYNTAX.search(template):
            return template
        self._left = _STEPS
        with _Plainly():
            return _squeezed(self._draw(parse(template), _Walk(Random(seed), turn)))

    def combinations(self, template: str) -> Iterator[str]:
        """All prompts, in order, each once.

        Raises:
            TemplateError: as above, or there are more than `limit`.
        """
        total = self.count(template)
        if total > self.limit:
            about = f"{total:,}" if total < 10**15 else "more than 10^15"
            raise TemplateError(f"the prompt has {about} combinations: give at most {self.limit:,}")
        seen: set[str] = set()
        with _Plainly():
            for text in (
                self._all(parse(template), {}, ()) if SYNTAX.search(template) else [template]
            ):
                prompt = _squeezed(text)
                if prompt not in seen:
                    seen.add(prompt)
                    yield prompt

    def count(self, template: str) -> int:
        """How many combinations there are at most; equal ones are made once.

        Raises:
            TemplateError: as `sample`.
        """
        if not SYNTAX.search(template):
            return 1
        with _Plainly():
            return self._count(parse(template), {}, ())

    # --- files -----------------------------------------------------------------------------

    def _values(self, name: str, files: tuple[str, ...]) -> Values:
        if name in files:
            raise LoopError(f"the wildcard file __{name}__ includes itself: mend the file")
        if len(files) >= _LEVELS:
            raise TemplateError("wildcard files name one another too deeply: flatten them")
        if self.files is None or self.folder is None:
            raise TemplateError(
                f"__{name}__ asks for a wildcard file: give --wildcards FOLDER, or write \\__"
            )
        values = self.files.get(name)
        if not values.items:
            why = "; ".join([*values.problems, *self.files.problems][:2])
            why = f" ({why})" if why else ""
            raise TemplateError(
                f"no wildcard file for __{name}__ in {self.folder.name}{why}: add it"
            )
        for problem in values.problems:
            self._leave_out(problem)
        return values

    def _leave_out(self, line: str) -> None:
        if len(self.left_out) < _TOLD:
            self.left_out[line] = None

    def _usable(self, values: Values, use: Callable[[Value], object]) -> Iterator[Value]:
        """The values that can be used, the others left out."""
        for value in values.items:
            tick()
            try:
                use(value)
            except LoopError:
                raise
            except TemplateError as error:
                self._leave_out(f"{value.place}: {error}")
            else:
                yield value

    # --- one prompt ------------------------------------------------------------------------

    def _draw(self, node: Node, walk: _Walk) -> str:
        if isinstance(node, str):
            return node
        self._left -= 1
        tick()
        if self._left < 0:
            raise TemplateError("the prompt grows without end: shorten the files it names")
        if isinstance(node, Sequence):
            return self._draw_parts(node, walk)
        if isinstance(node, Choice):
            return self._draw_choice(node, walk)
        if isinstance(node, FromFile):
            return self._draw_line(node, walk)
        if isinstance(node, Wrap):
            return _wrapped(self._draw(node.wrapper, walk), self._draw(node.inner, walk))
        if isinstance(node, Use):
            value = _value_of(node, walk.variables)
            if node.name in walk.inside:
                raise TemplateError(f"${{{node.name}}} stands for itself: mend it")
            return self._draw(value, replace(walk, inside=walk.inside | {node.name}))
        return ""

    def _draw_parts(self, node: Sequence, walk: _Walk) -> str:
        own = dict(walk.variables)
        for part in node.parts:
            if isinstance(part, Assign) and not (part.keep and part.name in walk.variables):
                own[part.name] = self._draw(part.value, walk) if part.once else part.value
        inner = replace(walk, variables=own)
        return "".join(
            self._draw(part, inner) for part in node.parts if not isinstance(part, Assign)
        )

    def _draw_choice(self, node: Choice, walk: _Walk) -> str:
        options, weights = list(node.options), list(node.weights)
        if len(options) == 1 and isinstance(options[0], FromFile) and node.high > 1:
            return self._draw_lines(options[0], node, walk)  # `{2$$__file__}`
        low, high = min(node.low, len(options)), min(node.high, len(options))
        if node.sign == "@":
            ways = sum(comb(len(options), k) * factorial(k) for k in range(low, high + 1))
            chosen = _nth_way(options, low, walk.turn % max(ways, 1))
        else:
            chosen = []
            for _ in range(walk.random.randint(low, high)):
                if not sum(weights):
                    raise TemplateError("all weights of a choice are 0: give one more than that")
                place = walk.random.choices(range(len(options)), weights)[0]
                chosen.append(options.pop(place))
                weights.pop(place)
        return _joined([self._draw(option, walk) for option in chosen], node.joiner)

    def _draw_line(self, node: FromFile, walk: _Walk) -> str:
        name, values, inner = self._open(node, walk)
        if node.sign == "@":
            start = walk.turn % len(values.items)
            order = iter([*values.items[start:], *values.items[:start]])
        else:
            order = values.drawn(walk.random)
        return self._first_usable(name, order, inner)

    def _draw_lines(self, file: FromFile, node: Choice, walk: _Walk) -> str:
        name, values, inner = self._open(file, walk)
        size = len(values.items)
        order = values.drawn(walk.random)
        wanted = walk.random.randint(min(node.low, size), min(node.high, size))
        return _joined([self._first_usable(name, order, inner) for _ in range(wanted)], node.joiner)

    def _open(self, node: FromFile, walk: _Walk) -> tuple[str, Values, _Walk]:
        name = _squeezed(self._draw(_names(node.name), walk))
        values = self._values(name, walk.files)
        own = {**walk.variables, **dict(node.variables)}
        return name, values, replace(walk, files=(*walk.files, name), variables=own)

    def _first_usable(self, name: str, order: Iterator[Value], walk: _Walk) -> str:
        last: TemplateError | None = None
        for value in order:
            try:
                return self._draw(_tree(value), walk)
            except TemplateError as error:
                if self._left < 0:
                    raise
                last = error
                self._leave_out(f"{value.place}: {error}")
        if isinstance(last, LoopError):
            raise last
        raise TemplateError(f"__{name}__ has no line that can be used ({last}): mend the file")

    # --- all of them -----------------------------------------------------------------------

    def _all(self, node: Node, known: dict[str, Node], files: tuple[str, ...]) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Sequence):
            for own in self._all_assigned(node, known, files):
                parts: list[Node] = [part for part in node.parts if not isinstance(part, Assign)]
                yield from self._all_products(parts, own, files)
        elif isinstance(node, Choice):
            yield from self._all_choices(node, known, files)
        elif isinstance(node, FromFile):
            for name in self._all(_names(node.name), known, files):
                for tree, at in self._lines(_squeezed(name), node, known, files):
                    yield from self._all(tree, *at)
        elif isinstance(node, Wrap):
            for wrapper in self._all(node.wrapper, known, files):
                yield from (_wrapped(wrapper, text) for text in self._all(node.inner, known, files))
        elif isinstance(node, Use):
            yield from self._all(_value_of(node, known), known, files)

    def _all_products(
        self, parts: list[Node], known: dict[str, Node], files: tuple[str, ...]
    ) -> Iterator[str]:
        if not parts:
            yield ""
            return
        for first in self._all(parts[0], known, files):
            for rest in self._all_products(parts[1:], known, files):
                yield first + rest

    def _all_assigned(
        self, node: Sequence, known: dict[str, Node], files: tuple[str, ...]
    ) -> Iterator[dict[str, Node]]:
        """The variables of a sequence in all ways: those that are chosen once, each way of them."""
        names: list[str] = []
        ways: list[list[Node]] = []
        for part in node.parts:
            if isinstance(part, Assign) and not (part.keep and part.name in known):
                names.append(part.name)
                ways.append(
                    list(self._all(part.value, known, files)) if part.once else [part.value]
                )
        for chosen in product(*ways):
            yield {**known, **dict(zip(names, chosen, strict=True))}

    def _all_choices(
        self, node: Choice, known: dict[str, Node], files: tuple[str, ...]
    ) -> Iterator[str]:
        options = self._options(node, known, files)
        seen: set[tuple[str, ...]] = set()
        for size in range(min(node.low, len(options)), min(node.high, len(options)) + 1):
            for chosen in permutations(options, size):
                for texts in product(*(list(self._all(tree, *at)) for tree, at in chosen)):
                    if len(set(texts)) == size and texts not in seen:
                        seen.add(texts)
                        yield _joined(list(texts), node.joiner)

    def _options(
        self, node: Choice, known: dict[str, Node], files: tuple[str, ...]
    ) -> list[tuple[Node, tuple[dict[str, Node], tuple[str, ...]]]]:
        """The options with what holds in them; `{2$$__file__}` chooses among the file's lines."""
        first = node.options[0]
        if len(node.options) > 1 or not isinstance(first, FromFile):
            return [(option, (known, files)) for option in node.options]
        names = self._all(_names(first.name), known, files)
        return [line for name in names for line in self._lines(name, first, known, files)]

    def _lines(
        self, name: str, node: FromFile, known: dict[str, Node], files: tuple[str, ...]
    ) -> Iterator[tuple[Node, tuple[dict[str, Node], tuple[str, ...]]]]:
        """The lines of a file that can be used, with what holds in them."""
        own, inner = {**known, **dict(node.variables)}, (*files, name)
        values = self._values(name, files)
        for value in self._usable(values, lambda value: self._count_value(value, own, inner)):
            yield _tree(value), (own, inner)

    # --- how many --------------------------------------------------------------------------

    def _count(self, node: Node, known: dict[str, Node], files: tuple[str, ...]) -> int:
        if isinstance(node, str):
            return 1
        if isinstance(node, Sequence):
            total, own = 1, dict(known)
            for part in node.parts:
                if isinstance(part, Assign) and not (part.keep and part.name in known):
                    inner = self._count(part.value, known, files)
                    total *= inner if part.once else 1
                    own[part.name] = "" if part.once else part.value
            for part in node.parts:
                total *= 1 if isinstance(part, Assign) else self._count(part, own, files)
            return total
        if isinstance(node, Choice):
            options = self._options(node, known, files)
            return _ways([self._count(tree, *at) for tree, at in options], node.low, node.high)
        if isinstance(node, Wrap):
            return self._count(node.wrapper, known, files) * self._count(node.inner, known, files)
        if isinstance(node, Use):
            value = _value_of(node, known)
            rest = {name: other for name, other in known.items() if name != node.name}
            return self._count(value, rest, files)
        if isinstance(node, FromFile):
            return self._count_file(node, known, files)
        return 1

    def _count_file(self, node: FromFile, known: dict[str, Node], files: tuple[str, ...]) -> int:
        return sum(
            self._count_lines(_squeezed(name), node, known, files)
            for name in self._all(_names(node.name), known, files)
        )

    def _count_lines(
        self, name: str, node: FromFile, known: dict[str, Node], files: tuple[str, ...]
    ) -> int:
        values = self._values(name, files)  # tells a file that leads back to itself
        own, inner = {**known, **dict(node.variables)}, (*files, name)
        key = (name, tuple(sorted((key, repr(value)) for key, value in own.items())))
        if key not in self._counts:
            counts: list[int] = []
            for _ in self._usable(
                values, lambda value: counts.append(self._count_value(value, own, inner))
            ):
                pass
            self._counts[key] = sum(counts)
        return self._counts[key]

    def _count_value(self, value: Value, known: dict[str, Node], files: tuple[str, ...]) -> int:
        return self._count(parse(value.text), known, files) if SYNTAX.search(value.text) else 1


def _names(node: Node) -> Node:
    """The name of a file, in which a variable that is not set stands for its own name."""
    if isinstance(node, Use) and node.default is None:
        return Use(node.name, node.name)
    if isinstance(node, Sequence):
        return Sequence(tuple(_names(part) for part in node.parts))
    return node


def _tree(value: Value) -> Node:
    return parse(value.text) if SYNTAX.search(value.text) else value.text


def _value_of(node: Use, variables: dict[str, Node]) -> Node:
    value = variables.get(node.name, node.default)
    if value is None:
        raise TemplateError(f"${{{node.name}}} is not set: set it, or give a default")
    return value


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


def _nth_way(options: list[Node], low: int, turn: int) -> list[Node]:
    """The turn-th ordered choice: those of `low` options first."""
    size = low
    while turn >= (ways := comb(len(options), size) * factorial(size)):
        turn, size = turn - ways, size + 1
    chosen, left = [], list(options)
    for _ in range(size):
        each = factorial(len(left) - 1) // factorial(len(options) - size)
        place, turn = divmod(turn, each)
        chosen.append(left.pop(place))
    return chosen


def _joined(texts: list[str], joiner: str) -> str:
    if len(texts) == 1:
        return texts[0]
    return joiner.join(texts).removeprefix(joiner).removesuffix(joiner)


def _wrapped(wrapper: str, inner: str) -> str:
    found = _DOTS.search(wrapper)
    if found is None:
        return wrapper + inner
    return wrapper[: found.start()] + inner + wrapper[found.end() :]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


class _Plainly:
    """A template that nests beyond what Python can follow is a bad template."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if isinstance(error, RecursionError):
            raise TemplateError("the prompt is too deeply nested: flatten it") from None
