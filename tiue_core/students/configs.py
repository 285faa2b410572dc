"""What a student's configs say, held against the classes that they are for.

A class of diffusers believes its config and fails much later, in the middle of a picture. The
scheduler is made here, too: it is nothing but a config.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import TiueError
from ..io.messages import first_line
from .folder import read_json

_AGAIN = "copy the folder again"
_FARTHEST = 100_000  # timesteps
_SEVERAL = {  # a number or a list of them, one for each level, side or end
    "attention_head_dim",
    "cross_attention_dim",
    "eos_token_id",
    "layers_per_block",
    "num_attention_heads",
    "sample_size",
    "transformer_layers_per_block",
}


def check_values(kind: Any, config: Mapping[str, Any], file: Path) -> None:
    """Refuse what is no number where the class has a number by default, what is negative where it
    counts, no text where it has text, and lists but where a class takes them.

    Args:
        kind: the class, or the class of its config.

    Raises:
        TiueError: says which value of ``file`` it is.
    """
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value, usual = config.get(name), 1 if name == "sample_size" else parameter.default
        if name == "scaling_factor" and name in config and value is None:
            raise TiueError(f"{file}: {name} cannot be null: {_AGAIN}")
        if value is None or isinstance(usual, bool) or not isinstance(usual, str | int | float):
            continue
        wanted = str if isinstance(usual, str) else int | float
        least = 1 if name == "sample_size" else 0
        counts = isinstance(usual, int) and not name.endswith("_id")
        several: list[Any] = [*flat(value)] if name in _SEVERAL else [value]
        for one in several:
            below = counts and isinstance(one, int | float) and one < least
            if isinstance(one, bool) or not isinstance(one, wanted) or below:
                raise TiueError(f"{file}: {name} cannot be {value!r:.80}: {_AGAIN}")
        if name == "sample_size" and isinstance(value, list | tuple) and len(value) != 2:
            raise TiueError(f"{file}: {name} cannot be {value!r:.80}, give one side or two")


def load_scheduler(folder: Path, **changes: Any) -> Any:
    """The scheduler of a diffusers folder, with these values of its config changed.

    Raises:
        TiueError: its config is not one of the class that the folder's index names.
    """
    import diffusers

    index = read_json(folder / "model_index.json", _AGAIN)
    kind: Any = getattr(diffusers, str(index["scheduler"][1]), None)
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**read_json(file, _AGAIN), **changes}
    if diffusers.SchedulerMixin not in getattr(kind, "__mro__", ()):
        raise TiueError(f"{folder} wants a scheduler that diffusers does not have: {_AGAIN}")
    check_values(kind, config, file)
    offset = config.get("steps_offset") or 0
    if not (isinstance(offset, int) and abs(offset) < _FARTHEST):
        raise TiueError(f"{file}: steps_offset is {offset!r:.40}: {_AGAIN}")
    try:
        return kind.from_config(config)
    except Exception as error:  # constructors compute and raise as they please
        raise TiueError(
            f"{file} does not describe a {kind.__name__} ({first_line(error)}): {_AGAIN}"
        ) from error


def flat(value: Any) -> Iterator[Any]:
    """What is in nested lists."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    else:
        yield value
