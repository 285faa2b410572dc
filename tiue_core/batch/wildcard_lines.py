"""The lines that wildcards stand for, and what one is made of: what drawing one prompt and making
all of them have in common.

A line that cannot be used (a brace that is not closed, a file that is not there or leads back to
itself) is left out and told; the others stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches

from .limits import tick
from .syntax import SYNTAX, Node, Sequence, TemplateError, Use, parse
from .wildcard_files import Collections, Value, Values

_LEVELS = 50  # files within files
_TOLD = 100  # lines left out that are remembered to be told
_DOTS = re.compile("[\u1801\u2026\u22ee\u22ef\u22f0\u22f1\ufe19]+|\\.{3,}")


class LoopError(TemplateError):
    """A file that leads back to itself."""


class Lines:
    """The wildcard files of a folder, line by line.

    Args:
        files: None: there are none, and a template that asks for one is told so.
        left_out: takes up the lines that cannot be used, each with its reason.
    """

    def __init__(self, files: Collections | None, left_out: dict[str, None]) -> None:
        self.files, self.left_out = files, left_out

    def values(self, name: str, files: tuple[str, ...]) -> Values:
        """What `__name__` can become, asked for within `files`.

        Raises:
            TemplateError: there is no such file, it holds nothing, or it is one of `files`.
        """
        if name in files:
            raise LoopError(f"the wildcard file __{name}__ includes itself: mend the file")
        if len(files) >= _LEVELS:
            raise TemplateError("wildcard files name one another too deeply: flatten them")
        if self.files is None:
            raise TemplateError(
                f"__{name}__ asks for a wildcard file: give --wildcards FOLDER, or write \\__"
            )
        values = self.files.get(name)
        if not values.items:
            if values.there and not values.problems:
                raise TemplateError(f"the wildcard file __{name}__ has no lines: write some")
            why = "; ".join([*values.problems, *self.files.problems][:2])
            why = f" ({why})" if why else ""
            near = [] if files else get_close_matches(name, self.files.names(), 1)
            hint = f"did you mean __{near[0]}__?" if near else "add it"
            raise TemplateError(
                f"no wildcard file for __{name}__ in {self.files.folder.name}{why}: {hint}"
            )
        for problem in values.problems:
            self.leave_out(problem)
        return values

    def leave_out(self, line: str) -> None:
        """Remember a line, with its place and what is wrong with it, to be told."""
        if len(self.left_out) < _TOLD:
            self.left_out[line] = None

    def usable(self, values: Values, use: Callable[[Value], object]) -> Iterator[Value]:
        """The values that can be used, the others left out."""
        for value in values.items:
            tick()
            try:
                use(value)
            except LoopError:
                raise
            except TemplateError as error:
                self.leave_out(f"{value.place}: {error}")
            else:
                yield value


def name_of(node: Node) -> Node:
    """The name of a file, in which a variable that is not set stands for its own name."""
    if isinstance(node, Use) and node.default is None:
        return Use(node.name, node.name)
    if isinstance(node, Sequence):
        return Sequence(tuple(name_of(part) for part in node.parts))
    return node


def tree_of(value: Value) -> Node:
    """A line as a tree."""
    return parse(value.text) if SYNTAX.search(value.text) else value.text


def value_of(node: Use, variables: dict[str, Node]) -> Node:
    """What a variable stands for."""
    value = variables.get(node.name, node.default)
    if value is None:
        raise TemplateError(f"${{{node.name}}} is not set: set it, or give a default")
    return value


def joined(texts: list[str], joiner: str) -> str:
    """Texts in a row; where the outer ones are empty, no joiner is left at the ends."""
    if len(texts) == 1:
        return texts[0]
    return joiner.join(texts).removeprefix(joiner).removesuffix(joiner)


def wrapped(wrapper: str, inner: str) -> str:
    """`inner` in the place of the wrapper's dots, or behind it."""
    found = _DOTS.search(wrapper)
    if found is None:
        return wrapper + inner
    return wrapper[: found.start()] + inner + wrapper[found.end() :]


def squeezed(text: str) -> str:
    return " ".join(text.split())
