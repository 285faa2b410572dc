"""What a student can paint: the words its text encoder was trained on, the size it was trained at.

Everything is painted all the same; this is what is said beside it, once, by the command line, the
page, ComfyUI and Python alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PROMPTS = "prompts.txt"  #: in a student's folder: prompts of the world that it was trained on
_CLOSED = 4096  # whole words; CLIP's own vocabulary has 36,000 and spells any other word in parts
_END = "</w>"  # marks the end of a word in CLIP's byte-pair encoding
_LINKS = frozenset({"a", "an", "and", "at", "in", "of", "on", "the", "with"})
_FAR = 1.5  # times the side it was trained at
_SPELLED = re.compile(r"[a-z]|[0-9]+")  # single letters and numbers say nothing by themselves


class Vocabulary:
    """The words that a student knows; empty where it has a vocabulary for all of a language.

    Args:
        tokens: the tokenizer's ``get_vocab()``.
        folder: the student's; its ``prompts.txt``, if it has one, narrows the vocabulary down to
            what was trained.
    """

    def __init__(self, tokens: Mapping[str, int], folder: Path | None = None) -> None:
        whole = {token.removesuffix(_END) for token in tokens if token.endswith(_END)}
        words = {word for word in whole if len(word) > 1 and word.isalpha()}
        if len(words) > _CLOSED:
            words = set()
        trained = folder / PROMPTS if folder else None
        if words and trained is not None and trained.is_file():
            words &= set(_words(trained.read_text(encoding="utf-8")))
        self.words = frozenset(words)

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """The words of some prompts that the student was not trained on, each once."""
        if not self.words:
            return []
        found = dict.fromkeys(word for text in texts for word in _words(text))
        return [w for w in found if w not in self.words and not _SPELLED.fullmatch(w)]

    def note(self, unknown: Iterable[str], again: bool = False) -> str:
        """One line about words that are not known; ``again`` leaves out what is known."""
        quoted = [f"'{word[:40]}'" for word in unknown]
        more = f" and {len(quoted) - 8} more" if len(quoted) > 8 else ""
        said = f"the student does not know the prompt's {', '.join(quoted[:8])}{more}"
        if again:
            return said
        return f"{said}; it knows: {', '.join(sorted(self.words - _LINKS))}"


def notes(
    tokens: Mapping[str, int],
    folder: Path,
    texts: Iterable[str],
    size: tuple[int, int],
    own: tuple[int, int],
) -> list[str]:
    """What there is to say before prompts are painted; sizes are (width, height) in px."""
    vocabulary = Vocabulary(tokens, folder)
    unknown = vocabulary.unknown(texts)
    said = [vocabulary.note(unknown) if unknown else "", size_note(*size, own)]
    return [note for note in said if note]


def size_note(width: int, height: int, own: tuple[int, int]) -> str:
    """One line about a size far from the one the student was trained at, "" where it is near.

    Args:
        width, height: px, of the picture.
        own: px, width and height that the student was trained at.
    """
    ratios = (width / own[0], height / own[1])
    if max(ratios) <= _FAR and min(ratios) >= 1 / _FAR:
        return ""
    return (
        f"{width} x {height} is far from the {own[0]} x {own[1]} that the student was trained at: "
        "things may repeat or fall apart"
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
