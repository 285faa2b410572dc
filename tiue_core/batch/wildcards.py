"""`{a|b}`, `{2$$a|b|c}`, `__file__`: the syntax of the `dynamicprompts` package, and its sampler.

What is ours is the caution: a template is held against limits before anything is sampled, since a
list from elsewhere may ask for 2^40 prompts, or for a file that includes itself.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from math import comb, factorial
from pathlib import Path
from random import Random
from typing import Any

from ..errors import TiueError

COMBINATIONS = 100_000  # of one row, unless asked for more
_DEPTH, _BRACES, _PARTS = 12, 200, 8  # nesting, groups in all, texts joined by one `{n$$...}`
_SYNTAX = re.compile(r"[{}]|__|\$\{|%\{")
# These mean something in dynamicprompts' grammar only where a brace follows; elsewhere in a prompt
# they are themselves. Its parser would take "#" for a comment and drop the rest of the prompt.
_PLAIN = re.compile(r"#|\$(?![{$])(?<!\$\$)|%(?!\{)")
_HIDDEN = {"#": "\ue000", "$": "\ue001", "%": "\ue002"}
_SHOWN = str.maketrans({hidden: char for char, hidden in _HIDDEN.items()})


class TemplateError(ValueError):
    """What is wrong with a template, in one line."""


def is_template(text: str) -> bool:
    """Whether `text` has anything to expand."""
    return _SYNTAX.search(text) is not None


class Wildcards:
    """Templates to prompts.

    Args:
        folder: of the files `__name__` stands for: name.txt, and YAML and JSON collections.
        limit: combinations of one template that are too many.
    """

    def __init__(self, folder: Path | None = None, limit: int = COMBINATIONS) -> None:
        if folder is not None and not folder.is_dir():
            raise TiueError(f"{folder} is no folder of wildcard files: check --wildcards")
        self.folder, self.limit = folder, limit
        self._manager: Any = None
        self._parsed: dict[str, Any] = {}

    def sample(self, template: str, seed: int) -> str:
        """One prompt, chosen by `seed` alone.

        Raises:
            TemplateError: the template cannot be read, or asks for a file that is not there.
        """
        if not is_template(template):
            return template
        return next(self._prompts(template, "RANDOM", Random(seed)), "")

    def combinations(self, template: str) -> Iterator[str]:
        """All prompts, in order.

        Raises:
            TemplateError: as above, or there are more than `limit`.
        """
        if not is_template(template):
            return iter((template,))
        total = self.count(template)
        if total > self.limit:
            about = f"{total:,}" if total < 10**15 else "more than 10^15"
            raise TemplateError(f"the prompt has {about} combinations: give at most {self.limit:,}")
        return self._prompts(template, "COMBINATORIAL", Random(0))

    def count(self, template: str) -> int:
        """How many combinations there are at most; equal ones are made once.

        Raises:
            TemplateError: as `sample`.
        """
        if not is_template(template):
            return 1
        with _plainly():
            return self._count(self._parse(template), {}, ())

    # --- dynamicprompts --------------------------------------------------------------------

    def _prompts(self, template: str, method: str, random: Random) -> Iterator[str]:
        with _plainly():
            from dynamicprompts.enums import SamplingMethod
            from dynamicprompts.sampling_context import SamplingContext

            command = self._parse(template)
            self._count(command, {}, ())  # files that are missing or include themselves
            context = SamplingContext(
                default_sampling_method=SamplingMethod[method],
                wildcard_manager=self._files(),
                rand=random,
            )
            prompts = iter(context.sample_prompts(command))
        for _ in range(1 if method == "RANDOM" else self.limit):
            with _plainly():
                result = next(prompts, None)
            if result is None:
                return
            yield " ".join(str(result).translate(_SHOWN).split())

    def _files(self) -> Any:
        if self._manager is None:
            self._manager = _manager(self.folder)
        return self._manager

    def _parse(self, template: str) -> Any:
        found = self._parsed.get(template)
        if found is None:
            from dynamicprompts.parser.parse import parse

            _check_braces(template)
            hidden = _PLAIN.sub(lambda match: _HIDDEN[match.group()], template)
            found = parse(hidden)
            if len(self._parsed) >= 1024:
                self._parsed.clear()
            self._parsed[template] = found
        return found

    def _count(self, command: Any, known: dict[str, Any], inside: tuple[str, ...]) -> int:
        """Combinations of a parsed template. `inside`: the files that led here."""
        kind = type(command).__name__
        if len(inside) > _DEPTH:
            raise TemplateError("wildcard files name one another too deeply: flatten them")
        if kind == "SequenceCommand":
            total, known = 1, dict(known)
            for token in command.tokens:
                if type(token).__name__ == "VariableAssignmentCommand":
                    inner = self._count(token.value, known, inside)
                    known[token.name] = 1 if token.immediate else inner
                else:
                    total *= self._count(token, known, inside)
            return total
        if kind == "VariantCommand":
            options = [self._count(value, known, inside) for value in command.values]
            if len(command.values) == 1 and type(command.values[0]).__name__ == "WildcardCommand":
                options = [1] * options[0]  # `{2$$__file__}`: two lines of the file
            return _choices(options, command.min_bound, command.max_bound)
        if kind == "WrapCommand":
            parts = (command.wrapper, command.inner)
            return self._count(parts[0], known, inside) * self._count(parts[1], known, inside)
        if kind == "VariableAccessCommand":
            if command.name in known:
                return known[command.name]
            if command.default is None:
                raise TemplateError(f"${{{command.name}}} is not set: set it, or give a default")
            return self._count(command.default, known, inside)
        if kind == "WildcardCommand":
            return self._count_file(command, known, inside)
        return 1

    def _count_file(self, command: Any, known: dict[str, Any], inside: tuple[str, ...]) -> int:
        if not isinstance(command.wildcard, str):
            raise TemplateError("a variable in the name of a wildcard file is not understood here")
        name = command.wildcard.strip().translate(_SHOWN)
        if name in inside:
            raise TemplateError(f"the wildcard file __{name}__ includes itself: mend the file")
        if self.folder is None:
            raise TemplateError(f"__{name}__ asks for a wildcard file: give --wildcards FOLDER")
        values = self._files().get_values(name)
        if not values:
            raise TemplateError(f"no wildcard file for __{name}__ in {self.folder.name}: add it")
        known = {**known, **dict.fromkeys(command.variables, 1)}
        total = 0
        for value in values.string_values:
            plain = not is_template(value)
            total += 1 if plain else self._count(self._parse(value), known, (*inside, name))
        return total


def _manager(folder: Path | None) -> Any:
    from dynamicprompts.wildcards import WildcardManager

    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)
    manager = WildcardManager(folder.resolve() if folder else None)
    manager.tree  # noqa: B018 - read it once, here, so that a bad file shows now
    return manager


def _choices(options: list[int], low: int, high: int) -> int:
    """Ways to choose low to high of the options, in order, each in any of its own ways."""
    low, high = min(low, len(options)), min(high, len(options))
    if high > _PARTS and high > 1:
        raise TemplateError(f"{{{high}$$...}} joins {high} texts: join at most {_PARTS}")
    if set(options) == {1}:
        return sum(comb(len(options), k) * factorial(k) for k in range(low, high + 1))
    ways = [1] + [0] * high  # elementary symmetric sums
    for option in options:
        for k in range(high, 0, -1):
            ways[k] += ways[k - 1] * option
    return sum(ways[k] * factorial(k) for k in range(low, high + 1))


def _check_braces(template: str) -> None:
    depth = groups = 0
    for char in template:
        if char == "{":
            depth, groups = depth + 1, groups + 1
        elif char == "}" and depth:
            depth -= 1
        if depth > _DEPTH or groups > _BRACES:
            raise TemplateError(
                f"too many braces: nest at most {_DEPTH} deep, and use at most {_BRACES} groups"
            )
    if depth:
        raise TemplateError("a brace { is not closed: close it")


class _plainly:
    """Everything that the parser and the sampler may raise, as a TemplateError."""

    def __enter__(self) -> None:
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        self.quiet.__exit__(kind, error, _)
        if error is None or isinstance(error, TemplateError):
            return
        if isinstance(error, ImportError):
            raise TiueError("dynamicprompts is not installed: pip install dynamicprompts") from None
        if isinstance(error, RecursionError):
            raise TemplateError("the prompt is too deeply nested: flatten it") from None
        if isinstance(error, Exception):
            place = getattr(error, "column", None)
            where = f" (at character {place})" if isinstance(place, int) else ""
            raise TemplateError(
                f"the prompt's braces or wildcards cannot be read{where}: see docs/prompt-lists.md"
            ) from None
