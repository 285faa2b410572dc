"""Recognising that memory ran out, whoever says so: a GPU's allocator, the CPU's, a library."""

from __future__ import annotations


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch's own exception, or what an allocator says in its text."""
    text = str(error).lower()
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or "defaultcpuallocator" in text or "out of memory" in text
