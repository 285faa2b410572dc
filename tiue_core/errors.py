"""The one exception of the library's own."""


class TiueError(Exception):
    """Something a person can mend; the message is one line, 'what is wrong: what to do'."""

    __module__ = "tiue_core.errors"  # ComfyUI loads the package under its path, and shows this


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch's own exception, or what an allocator says in its text."""
    text = str(error).lower()
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or "defaultcpuallocator" in text or "out of memory" in text
