"""The template language of the `dynamicprompts` package: texts to trees.

    {a|3::b}  {2$$a|b}  {1-2$$ and $$a|b}  {@a|b}      Choice
    __file__  __@file__  __file(name=value)__          FromFile
    ${name=value}  ${name=!value}  ${name?=value}      Assign
    ${name}  ${name:default}                           Use
    %{before ... after$$inside}                        Wrap

A backslash before `{`, `}`, `|`, `$`, `%` or `__` makes them signs like any other. The parser is
our own because a template costs that package's grammar milliseconds, and a layered collection asks
for several a prompt; tests hold it to the package's results.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

DEPTH, GROUPS = 25, 200  # of braces: nested, and in all


class TemplateError(ValueError):
    """What is wrong with a template, in one line."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts one after the other; assignments among them hold for all of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``low`` to ``high`` of the options, none of them twice; ``sign`` is "", "~", "!" or "@"."""

    options: tuple[Node, ...]
    weights: tuple[float, ...]
    low: int = 1
    high: int = 1
    joiner: str = ","
    sign: str = ""


@dataclass(frozen=True, slots=True)
class FromFile:
    """A line of a wildcard file, with variables that hold inside."""

    name: Node
    sign: str = ""
    variables: tuple[tuple[str, Node], ...] = ()


@dataclass(frozen=True, slots=True)
class Assign:
    """A variable; ``once``: chosen here, for all its uses. ``keep``: unless it has a value."""

    name: str
    value: Node
    once: bool
    keep: bool


@dataclass(frozen=True, slots=True)
class Use:
    """A variable's value."""

    name: str
    default: Node | None


@dataclass(frozen=True, slots=True)
class Wrap:
    """``inner`` in the place of the dots of ``wrapper``."""

    wrapper: Node
    inner: Node


Node = str | Sequence | Choice | FromFile | Assign | Use | Wrap

#: What makes a text a template: something to expand, or a sign that is escaped.
SYNTAX = re.compile(r"[{}]|__|\\[|$%]")
_TOKEN = re.compile(r"\\(?:__|[{}|$%])|\$\{|%\{|\$\$|[{}|]|__")
_FILE = re.compile(
    r"__(?P<sign>[~!@]?)(?P<name>(?:\$\{[^{}]*\}|\{[^{}]*\}|(?!__)[^{}()|$#\\])+)"
    r"(?:\((?P<spec>[^)]*)\)\s*)?__"
)
_SIGN = re.compile(r"\s*([~!@]?)")
_RANGE = re.compile(r"\s*(?:(\d+)?(-)?(\d+)?)\s*\$\$(?:([^${}]+)\$\$)?")
_WEIGHT = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)\s*::)?")
_ASSIGN = re.compile(r"\s*([A-Za-z_-][\w-]*)\s*(\??)=(!?)\s*")
_USE = re.compile(r"\s*([A-Za-z_-][\w-]*)\s*(:?)\s*")


@lru_cache(4096)
def parse(text: str) -> Node:
    """The tree of a template.

    Raises:
        TemplateError: a brace that is not closed, or what is in it means nothing.
    """
    parser = _Parser(text)
    node, _ = parser.sequence("")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth, self.groups = text, 0, 0, 0

    def sequence(self, stops: str) -> tuple[Node, str]:
        """Parts up to one of the stops ("|", "}" or "$$", "" the end), and which one it was."""
        parts: list[Node] = []
        while True:
            found = _TOKEN.search(self.text, self.place)
            if found is None:
                if stops:
                    raise TemplateError("a brace { is not closed: close it")
                _add(parts, self.text[self.place :])
                self.place = len(self.text)
                return _one(parts), ""
            _add(parts, self.text[self.place : found.start()])
            token, self.place = found.group(), found.end()
            if token[0] == "\\":
                _add(parts, token[1:])
            elif token == "__":
                self._file(parts, found.start())
            elif token in ("{", "${", "%{"):
                parts.append(self._braces(token))
            elif token in stops:
                return _one(parts), token
            else:
                _add(parts, token)

    def _braces(self, token: str) -> Node:
        self.depth, self.groups = self.depth + 1, self.groups + 1
        if self.depth > DEPTH or self.groups > GROUPS:
            raise TemplateError(
                f"too many braces: nest at most {DEPTH} deep, and use at most {GROUPS} groups"
            )
        node = {"{": self._choice, "${": self._variable, "%{": self._wrap}[token]()
        self.depth -= 1
        return node

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.place)
        if found:
            self.place = found.end()
        return found

    def _choice(self) -> Node:
        sign = self._take(_SIGN)
        bounds = self._take(_RANGE)
        options: list[Node] = []
        weights: list[float] = []
        end = "|"
        while end == "|":
            weight = self._take(_WEIGHT)
            weights.append(float(weight[1]) if weight and weight[1] else 1.0)
            option, end = self.sequence("|}")
            options.append(option)
        low, high, joiner = 1, 1, ","
        if bounds:
            first, dash, last, joint = bounds.groups()
            low = int(first or 1)
            high = int(last) if last else len(options) if dash or not first else low
            low, high = sorted((low, high))
            joiner = joint or joiner
        return Choice(tuple(options), tuple(weights), low, high, joiner, sign[1] if sign else "")

    def _variable(self) -> Node:
        assign = self._take(_ASSIGN)
        if assign:
            value, _ = self.sequence("}")
            return Assign(assign[1], value, once=bool(assign[3]), keep=bool(assign[2]))
        use = self._take(_USE)
        if not use:
            raise TemplateError("${ is not followed by a name: write ${name}, or \\$ for the sign")
        rest, _ = self.sequence("}")
        if not use[2] and rest:
            raise TemplateError(f"what follows '{use[1]}' in its braces means nothing: close them")
        return Use(use[1], rest if use[2] else None)

    def _wrap(self) -> Node:
        wrapper, end = self.sequence("$$}")
        if end != "$$":
            raise TemplateError("%{ has no $$: write %{before ... after$$inside}, or \\% itself")
        inner, _ = self.sequence("}")
        return Wrap(wrapper, inner)

    def _file(self, parts: list[Node], start: int) -> None:
        found = _FILE.match(self.text, start)
        if found is None or self._is_a_word(found):
            _add(parts, "__")
            return
        self.place = found.end()
        pairs = [pair.partition("=") for pair in (found["spec"] or "").split(",") if pair.strip()]
        variables = tuple((key.strip(), parse(value.strip())) for key, _, value in pairs)
        parts.append(FromFile(parse(found["name"].strip()), found["sign"], variables))

    def _is_a_word(self, found: re.Match[str]) -> bool:
        """`snake__case and other__case`: a blank between, and grown together with a word."""
        before, after = self.text[: found.start()][-1:], self.text[found.end() :][:1]
        name = found["name"]
        grown = (before + after).isalnum() or name != name.strip()
        return (grown and any(char.isspace() for char in name.strip())) or not name.strip()


def _add(parts: list[Node], text: str) -> None:
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)


def _one(parts: list[Node]) -> Node:
    if len(parts) == 1 and not isinstance(parts[0], Assign):
        return parts[0]
    return Sequence(tuple(parts)) if parts else ""
