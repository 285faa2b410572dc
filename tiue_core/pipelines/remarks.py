"""What a pipeline says once of what its student was not trained on, or cannot do; it paints all
the same."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.arguments import both_sides
from ..shared.altered import unheard
from ..students.vocabulary import Vocabulary, size_note


class Remarks:
    """What was said already of a student's words and sizes, and of its UNet."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._sizes: set[str] = set()
        self._unheard: set[str] = set()

    def of(self, pipe: Any, texts: Sequence[str], width: int, height: int) -> None:
        """Warn of unknown words in ``texts``, of a size (latents) far from the trained one, and of
        what hangs on the UNet and is never asked."""
        vocabulary: Vocabulary = pipe.vocabulary
        words = [word for word in vocabulary.unknown(texts) if word not in self._words]
        notes = [vocabulary.note(words, again=bool(self._words))] if words else []
        factor = pipe.vae_scale_factor
        tall, wide = both_sides(pipe.unet.config.sample_size)
        size = size_note(width * factor, height * factor, (wide * factor, tall * factor))
        notes += [size] if size and size not in self._sizes else []
        why = unheard(pipe.unet)
        if why is not None and why not in self._unheard:
            notes.append(f"{why} of the UNet as a whole does not act: its two halves are called")
            self._unheard.add(why)
        self._words.update(words)
        self._sizes.add(size)
        for note in notes:
            warnings.warn(note, stacklevel=5)  # who called the pipeline, past no_grad's wrapper


def vocabulary_of(pipe: Any) -> Vocabulary:
    """The words that a pipeline's student was trained on, where those are few."""
    folder = Path(str(pipe.config.get("_name_or_path") or ""))
    return Vocabulary(pipe.tokenizer.get_vocab(), folder)
