"""What is said: messages of one line, and libraries that keep theirs to themselves."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from ..errors import TiueError


def one_line(text: str) -> str:
    """`text` on one line and without control characters."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def first_line(error: BaseException, most: int = 160) -> str:
    """What another library's error says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def quiet_libraries() -> None:
    """No log lines and progress bars of diffusers and transformers: ours say what matters."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


TORCH = ("torch", "diffusers", "transformers", "peft", "accelerate")  #: of the extra by that name


def need_torch() -> None:
    """Raise TiueError where PyTorch and what comes with it are not installed."""
    for name in TORCH:
        try:
            if find_spec(name) is not None:
                continue
        except ValueError:  # made impossible to import
            pass
        raise TiueError(without_torch(name))


def without_torch(name: str) -> str:
    """What is said where a package of that extra is missing."""
    return f"{name} is not installed, and this needs it: pip install 'tiue[torch]'"
