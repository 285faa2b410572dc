"""`BatchSession` and `RunOptions` by the names they had before 0.2."""

from .options import RunOptions as Plan
from .session import BatchSession as Studio
from .session import settings_of

__all__ = ["Plan", "Studio", "settings_of"]
