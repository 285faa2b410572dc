"""Templates to prompts: one by a seed, or all of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .syntax import SYNTAX, TemplateError, parse
from .wildcard_all import All
from .wildcard_draw import Drawing
from .wildcard_files import Collections
from .wildcard_lines import Lines, squeezed

COMBINATIONS = 100_000  # of one row, unless asked for more


class Wildcards:
    """Templates to prompts.

    Args:
        folder: of the files `__name__` stands for: name.txt, and YAML and JSON collections.
        limit: combinations of one template that are too many.

    Raises:
        TiueError: there is no such folder.
    """

    def __init__(self, folder: Path | None = None, limit: int = COMBINATIONS) -> None:
        self.limit = limit
        self.left_out: dict[str, None] = {}  # lines, each with its reason
        self.files = None if folder is None else Collections(folder)

    # Most prompts are plain: what takes templates apart is made for the first that is not.

    @cached_property
    def _lines(self) -> Lines:
        return Lines(self.files, self.left_out)

    @cached_property
    def _drawing(self) -> Drawing:
        return Drawing(self._lines)

    @cached_property
    def _all(self) -> All:
        return All(self._lines)

    def sample(self, template: str, seed: int, turn: int = 0) -> str:
        """One prompt, chosen by `seed` alone; `{@a|b}` takes them in turn.

        Raises:
            TemplateError: the template cannot be read, or asks for a file that is not there.
        """
        if not SYNTAX.search(template):
            return template
        with _Plainly():
            return squeezed(self._drawing.draw(parse(template), seed, turn))

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
            plain = not SYNTAX.search(template)
            for text in [template] if plain else self._all.prompts(parse(template)):
                prompt = squeezed(text)
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
            return self._all.count(parse(template))


class _Plainly:
    """A template that nests beyond what Python can follow is a bad template."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if isinstance(error, RecursionError):
            raise TemplateError("the prompt is too deeply nested: flatten it") from None
