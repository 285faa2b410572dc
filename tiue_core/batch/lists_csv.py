"""Prompt lists as tables: with commas, semicolons or tabs, a row at a time."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator

from .limits import END, tick
from .rows import Raw, Unreadable
from .schema import COLUMN_LIMIT, known_names, prompt_column, shown


class _Source:
    """Lines that can be given back, with the number of the one that comes next."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.back, self.number = lines, list[str](), 1
        self.taken: list[str] = []
        self.limited = END.get() is not None

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> str:
        if self.limited:  # a line may be given back and read as often as quotes are open
            tick()
        line = self.back.pop() if self.back else next(self.lines)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self, keep: int) -> None:
        """All lines of this row but the first `keep`."""
        self.back.extend(reversed(self.taken[keep:]))
        self.number -= len(self.taken) - keep
        del self.taken[keep:]


def read_csv(file: Iterable[str]) -> Raw:
    """A table whose first line names the columns. A row that is no CSV leaves the next alone."""
    source = _Source(iter(file))
    header: list[str] | None = None
    delimiter = ","
    while True:
        source.taken.clear()
        line = source.number
        if header is None:
            try:
                first = next(source)
            except StopIteration:
                return
            if first.strip().lower().startswith("sep="):  # a spreadsheet's own remark
                continue
            delimiter = max(",;\t", key=first.count)
            source.give_back(0)
        try:
            # One reader a row: an error in one leaves the next alone.
            cells = next(csv.reader(source, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            source.give_back(1)
            if delimiter == "\t" and header is not None:  # data sets quote nothing
                cells = source.taken[0].rstrip("\r\n").split("\t")
                yield line, {name: cell for name, cell in zip(header, cells, strict=False) if name}
                continue
            cells = _as_meant(source.taken[0], len(header or ()), delimiter)
            if cells and header is not None:
                yield line, {name: cell for name, cell in zip(header, cells, strict=True) if name}
                continue
            # a quote that never closes has taken other rows with it
            if header is None:
                yield line, Unreadable(f"the header cannot be read ({error}): mend the quotes")
                return
            yield line, Unreadable(f'{_quotes(str(error))}: quote a whole field, and double ""')
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            names = known_names([name for name in header[: COLUMN_LIMIT + 1] if name])
            wrong = _header(names)
            if wrong:
                yield line, Unreadable(wrong)
                return
            continue
        if len(cells) > len(header) and len(source.taken) == 1:
            cells = _as_meant(source.taken[0], len(header), delimiter) or cells
        if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
            yield (
                line,
                Unreadable(
                    f"{len(cells)} fields where the header has {len(header)}: "
                    "quote a field that holds a comma"
                ),
            )
            continue
        named = zip(header, cells, strict=False)
        yield line, {name: cell for name, cell in named if name}


def _as_meant(line: str, width: int, delimiter: str) -> list[str]:
    """A line that is no CSV, by what people get wrong, where its fields count then; else none.

    `style, "a, cat"`: blanks before a quote. `"a, cat," "ugly"`: the comma inside it.
    `style,"a cat,"ugly, bad"`: no quote at the end of a field.
    """
    line = line.strip()
    for text in (line, line.replace(f'{delimiter}" "', f'"{delimiter}"')):
        try:
            cells = next(
                csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True)
            )
        except (csv.Error, StopIteration):
            continue
        if len(cells) == width > 1:
            return cells
    cells = line.split(f'{delimiter}"')
    right = len(cells) == width > 1 and line.endswith('"')
    return [cell.strip('"') for cell in cells] if right else []


def _header(names: list[str]) -> str:
    if prompt_column(names) is None:
        return "the first line names no column 'prompt': give a header such as prompt,seed"
    if len(names) > COLUMN_LIMIT:
        return f"there are more than {COLUMN_LIMIT} columns: leave some out"
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    return f"two columns are called {shown(twice)}: rename one" if twice else ""


def _quotes(error: str) -> str:
    if "unexpected end" in error or "field larger" in error:
        return "a quote that is opened here never closes"
    return f"this line is no CSV ({error})"
