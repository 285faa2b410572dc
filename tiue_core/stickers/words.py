"""The miniature's tokenizer: CLIP's byte-pair encoding with a vocabulary of its own.

Words of the world are one token each; any other text falls apart into letters, as in CLIP, so
every prompt is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2's and CLIP's encoding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + index for index in range(256 - len(printable))]
    return [chr(code) for code in printable + others]


def merges_for(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that make every word one token, left to right, shortest prefixes first."""
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(set(words)):
        symbols = [*word[:-1], word[-1] + "</w>"]
        joined = symbols[0]
        for symbol in symbols[1:]:
            merges[(joined, symbol)] = None
            joined += symbol
    # A longer prefix may only be merged after the shorter one, whichever word it came from.
    return sorted(merges, key=lambda pair: (len(pair[0]), pair))


def make_tokenizer(corpus: Iterable[str], folder: Path, max_tokens: int) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to ``folder`` and load them as a CLIPTokenizer."""
    words = {word for line in corpus for word in line.replace(",", " ").split()}
    alphabet, merges = byte_alphabet(), merges_for(words)
    pieces = [*alphabet, *(character + "</w>" for character in alphabet)]
    pieces += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {piece: index for index, piece in enumerate([*pieces, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder))
