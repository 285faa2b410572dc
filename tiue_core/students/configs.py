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
from .folder import read_json

_AGAIN = "copy the folder again"
_FARTHEST = 100_000  # timesteps


def check_values(kind: Any, config: Mapping[str, Any], file: Path) -> None:
    """Refuse what is no number where the class has a number by default, and no text where it has
    text; lists count by what is in them. ``sample_size`` is one side, or two.

    Args:
        kind: the class, or the class of its config.

    Raises:
        TiueError: says which value of ``file`` it is.
    """
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value, usual = config.get(name), parameter.default
        wanted = str if isinstance(usual, str) else int | float
        checked = isinstance(usual, str | int | float) and not isinstance(usual, bool)
        if name == "sample_size":
            wanted, checked = int, True
        if value is None or not checked:
            continue
        if any(isinstance(one, bool) or not isinstance(one, wanted) for one in _flat(value)):
            what = "no text" if wanted is str else "no number"
            raise TiueError(f"{file}: {name} is {value!r:.80}, which is {what}: {_AGAIN}")
        sides = value if isinstance(value, list | tuple) else [value, value]
        least = {"sample_size": 1, "downsample_padding": 0}.get(name)
        if least is not None and (len(sides) != 2 or any(side < least for side in sides)):
            raise TiueError(f"{file}: {name} is {value!r:.80}, which is no size: {_AGAIN}")


def load_scheduler(folder: Path, **changes: Any) -> Any:
    """The scheduler of a diffusers folder, with these values of its config changed.

    Raises:
        TiueError: its config is not one of the class that the folder's index names.
    """
    import diffusers

    kind = getattr(diffusers, str(read_json(folder / "model_index.json", _AGAIN)["scheduler"][1]))
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**read_json(file, _AGAIN), **changes}
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise TiueError(f"{folder} wants a scheduler that diffusers does not have: {_AGAIN}")
    check_values(kind, config, file)
    offset = config.get("steps_offset") or 0
    if not (isinstance(offset, int) and abs(offset) < _FARTHEST):
        raise TiueError(f"{file}: steps_offset is {offset!r:.40}: {_AGAIN}")
    try:
        return kind.from_config(config)
    except Exception as error:  # constructors compute and raise as they please
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise TiueError(
            f"{file} does not describe a {kind.__name__} ({first}): {_AGAIN}"
        ) from error


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value
