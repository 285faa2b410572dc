"""The one exception of the library's own."""


class TiueError(Exception):
    """Something a person can mend; the message is one line, 'what is wrong: what to do'."""

    __module__ = "tiue_core.errors"  # ComfyUI loads the package under its path, and shows this
