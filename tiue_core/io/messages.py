"""What is said: messages of one line, and libraries that keep theirs to themselves."""

from __future__ import annotations

import logging


def one_line(text: str) -> str:
    """`text` on one line and without control characters."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def quiet_libraries() -> None:
    """No log lines and progress bars of diffusers and transformers: ours say what matters."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
