"""Prompt lists in YAML, streamed: the parser's events, one row built at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .limits import tick
from .rows import Raw, Unreadable, as_row

_PIECE = 1 << 12  # characters handed to the parser at once
_NODES = 10_000  # values of one row: more columns and LoRAs than any row may have


INT = "tag:yaml.org,2002:int"


def read_yaml(file: Iterable[str]) -> Raw:
    """A list of texts and tables. Streamed: node by node, each built on its own."""
    import yaml

    class Loader(yaml.SafeLoader):
        nodes = 0  # of the row that is being read

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nodes += 1
            if self.nodes <= _NODES:
                return super().compose_node(parent, index)
            depth = 0  # the row is refused: its rest is read and not kept
            while True:
                event = self.get_event()
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if not depth:
                    return nothing

        def fetch_more_tokens(self) -> None:
            tick()
            super().fetch_more_tokens()

        def flatten_mapping(self, node: Any) -> None:  # merged tables can grow without end
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise Unreadable("'<<' is not understood here: write the columns out")

    nothing = yaml.ScalarNode("tag:yaml.org,2002:null", "")
    # `0123` is 123 and `1:30` no number: YAML 1.1 reads the one as octal, the other as 90
    Loader.yaml_implicit_resolvers = {
        first: [one for one in known if one[0] != INT]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
    Loader.add_constructor(INT, lambda loader, node: int(node.value))
    try:
        loader = Loader(_Reader(file))
    except yaml.YAMLError as error:
        yield 1, _broken_yaml(error)
        return
    line = 1
    try:
        loader.get_event()  # the stream
        if loader.check_event(yaml.StreamEndEvent):
            return
        loader.get_event()  # the document
        if not loader.check_event(yaml.SequenceStartEvent):
            raise Unreadable("this is no list: start every row with '- '")
        loader.get_event()
        while not loader.check_event(yaml.SequenceEndEvent):
            loader.nodes = 0
            node: Any = loader.compose_node(None, 0)
            line = node.start_mark.line + 1
            if loader.nodes > _NODES:
                yield line, Unreadable(f"there are more than {_NODES} values in one row")
                continue
            try:
                yield line, as_row(loader.construct_document(node))
            except (Unreadable, yaml.constructor.ConstructorError, ValueError) as error:
                why = str(getattr(error, "problem", "") or error)
                yield line, Unreadable(why.splitlines()[0][:200])
        loader.get_event()
        loader.get_event()
        if not loader.check_event(yaml.StreamEndEvent):
            line = loader.peek_event().start_mark.line + 1
            raise Unreadable("something follows the list: keep to one list per file")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        yield (mark.line + 1 if mark else line), _broken_yaml(error)
    except Unreadable as error:
        yield line, error
    except (RecursionError, ValueError):
        yield line, Unreadable("too deeply nested: a row is a text or a table of texts")
    finally:
        loader.dispose()


class _Reader:
    """A file for PyYAML, which asks for a name and for pieces of text."""

    name = "the list"

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines, self.rest = iter(lines), ""

    def read(self, size: int = -1) -> str:
        tick()  # while one scalar goes on and on, this is all that is called
        self.rest = self.rest or next(self.lines, "")
        piece, self.rest = self.rest[:_PIECE], self.rest[_PIECE:]
        # YAML forbids these; what was undecodable shall be one bad row, not the end of the list
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", piece)


def _broken_yaml(error: Exception) -> Unreadable:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    return Unreadable(f"the list cannot be read from here on ({problem}): mend this line")
