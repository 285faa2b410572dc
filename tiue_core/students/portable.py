"""What a library's newest release writes and older ones cannot read, written so that all can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..io.files import write_atomically
from .folder import read_json


def text_encoder(folder: Path) -> None:
    """Name a saved text encoder's weights as transformers before 5.6 does; later ones read both."""
    from safetensors.torch import load_file, save

    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        named = {
            name if name.startswith("text_") else f"text_model.{name}": tensor.clone()
            for name, tensor in tensors.items()
        }
        if named.keys() != tensors.keys():
            write_atomically(file, save(named, metadata={"format": "pt"}))
    for index in folder.glob("*.safetensors*.json"):
        content = read_json(index, "save it again")
        content["weight_map"] = {
            name if name.startswith("text_") else f"text_model.{name}": file
            for name, file in content["weight_map"].items()
        }
        write_atomically(index, json.dumps(content, indent=2).encode() + b"\n")


def tokenizer(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` beside ``tokenizer.json``, which is all that
    transformers 5 saves, and leave what transformers 4 stumbles over out of the config."""
    file = folder / "tokenizer.json"
    if not file.is_file() or (folder / "vocab.json").is_file():
        return
    whole: dict[str, Any] = read_json(file, "save it again")
    model = whole.get("model", {})
    if model.get("type") != "BPE":
        return
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    write_atomically(folder / "merges.txt", text.encode())
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    write_atomically(folder / "vocab.json", vocabulary.encode())
    added = {
        one["content"]: one["id"]
        for one in whole.get("added_tokens", [])
        if one["content"] not in model["vocab"]
    }
    if added:
        write_atomically(folder / "added_tokens.json", json.dumps(added).encode())
