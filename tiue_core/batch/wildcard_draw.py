"""A template to one prompt, drawn by a seed. It costs its own way through the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import comb, factorial
from random import Random

from .limits import tick
from .syntax import Assign, Choice, FromFile, Node, Sequence, TemplateError, Use, Wrap
from .wildcard_files import Value, Values
from .wildcard_lines import Lines, LoopError, joined, name_of, squeezed, tree_of, value_of, wrapped

_STEPS = 10_000  # parts of one prompt: files may name one another without end


@dataclass(frozen=True)
class _Walk:
    """One way through a template: the draws, and what holds where."""

    random: Random
    turn: int  # which picture of its row, for `@`
    files: tuple[str, ...] = ()
    variables: dict[str, Node] = field(default_factory=dict)
    inside: frozenset[str] = frozenset()  # variables whose value is being made


class Drawing:
    """Draws prompts from the lines of wildcard files."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._left = 0

    def draw(self, tree: Node, seed: int, turn: int) -> str:
        """One prompt.

        Raises:
            TemplateError: what is asked for is not there, or has no end.
        """
        self._left = _STEPS
        return self._draw(tree, _Walk(Random(seed), turn))

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
            return wrapped(self._draw(node.wrapper, walk), self._draw(node.inner, walk))
        if isinstance(node, Use):
            value = value_of(node, walk.variables)
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
        return joined([self._draw(option, walk) for option in chosen], node.joiner)

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
        return joined([self._first_usable(name, order, inner) for _ in range(wanted)], node.joiner)

    def _open(self, node: FromFile, walk: _Walk) -> tuple[str, Values, _Walk]:
        name = squeezed(self._draw(name_of(node.name), walk))
        values = self.lines.values(name, walk.files)
        own = {**walk.variables, **dict(node.variables)}
        return name, values, replace(walk, files=(*walk.files, name), variables=own)

    def _first_usable(self, name: str, order: Iterator[Value], walk: _Walk) -> str:
        last: TemplateError | None = None
        for value in order:
            try:
                return self._draw(tree_of(value), walk)
            except TemplateError as error:
                if self._left < 0:
                    raise
                last = error
                self.lines.leave_out(f"{value.place}: {error}")
        if isinstance(last, LoopError):
            raise last
        raise TemplateError(f"__{name}__ has no line that can be used ({last}): mend the file")


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
