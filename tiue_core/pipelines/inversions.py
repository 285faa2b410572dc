"""Textual inversions: vectors for words of one's own, from safetensors in every tool's naming.

    diffusers      {TOKEN: (N, D)}
    Automatic1111  {"emb_params": (N, D)}, the token is the file's name
    SDXL           {"clip_l": (N, D), "clip_g": (N, D_2)}, one for each text encoder, likewise

diffusers itself calls the second "emb_params", so that the word does nothing, refuses the third,
and unpickles where there is no safetensors file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from ..errors import TiueError
from ..students.lora import check_numbers
from ..students.models import read_tensors

_FILE = "learned_embeds.safetensors"  # diffusers' own name
_NAMELESS = {"emb_params", "clip_l", "clip_g"}  # tensors that are called by their file's name


class InversionLoader(TextualInversionLoaderMixin):
    """diffusers' loader, with the files read and checked here."""

    def load_textual_inversion(  # type: ignore[override]
        self,
        pretrained_model_name_or_path: Any,
        token: Any = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **options: Any,
    ) -> None:
        """Vectors for a word: a file, a folder, a hub id, tensors, or a list of such.

        Args:
            token: the word, or one for each; default: what the file says, or its name.
            tokenizer, text_encoder: where it belongs; default: a file for two text encoders in
                both, any other in the only one.

        Raises:
            TiueError: not a file of vectors, or one for another model. Nothing has changed.
        """
        many = isinstance(pretrained_model_name_or_path, list)
        sources = pretrained_model_name_or_path if many else [pretrained_model_name_or_path]
        tokens = token if isinstance(token, list) else [token] * len(sources)
        if not all(isinstance(one, str | Path) for one in sources):
            return super().load_textual_inversion(
                pretrained_model_name_or_path, token, tokenizer, text_encoder, **options
            )
        name = options.get("weight_name")
        given = None if text_encoder is None and tokenizer is None else (tokenizer, text_encoder)
        loads: list[tuple[Any, str, Any, Tensor]] = []
        for source, word in zip(sources, tokens, strict=True):
            path = Path(source) / (name or _FILE) if Path(source).is_dir() else Path(source)
            if not path.is_file():
                only_safetensors(source, options)
                super().load_textual_inversion(source, word, tokenizer, text_encoder, **options)
                continue
            tensors = read_tensors([path])
            for one, tensor in zip(self._places(path, tensors, given), tensors, strict=True):
                _check(path, tensor, tensors[tensor], one[1])
                loads.append((path, word or _word(path, tensor), one, tensors[tensor].float()))
        for _, word, (words, encoder), vectors in loads:
            super().load_textual_inversion({word: vectors}, word, words, encoder)

    def unload_textual_inversion(
        self, tokens: Any = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """diffusers' own; of two text encoders from both, where none is named."""
        pairs = [(tokenizer, text_encoder)]
        if tokenizer is None and text_encoder is None:
            wanted = {tokens} if isinstance(tokens, str) else {*(tokens or [])}
            pairs = [
                pair
                for pair in self._pairs()
                if not wanted or wanted & {*pair[0].get_added_vocab()}
            ]
        for one, encoder in pairs or [(tokenizer, text_encoder)]:
            super().unload_textual_inversion(tokens, one, encoder)

    def _pairs(self) -> list[tuple[Any, Any]]:
        pipe: Any = self
        return [*zip(pipe._tokenizers(), pipe._text_encoders(), strict=True)]

    def _places(
        self, path: Path, tensors: Mapping[str, Tensor], given: tuple[Any, Any] | None
    ) -> list[tuple[Any, Any]]:
        """Tokenizer and text encoder of each tensor."""
        pairs = self._pairs()
        if {*tensors} == {"clip_l", "clip_g"}:
            if len(pairs) != 2:
                raise TiueError(f"{path} is for two text encoders, as SDXL has: use another file")
            return [pairs["lg".index(name[-1])] for name in tensors]
        if len(tensors) != 1:
            first = min(tensors, default="nothing")
            raise TiueError(f"{path} is no file of one word's vectors (it holds {first}): use one")
        if given is not None:
            tokenizer, encoder = given
            return [(tokenizer or pairs[0][0], encoder or pairs[0][1])]
        if len(pairs) != 1:
            raise TiueError(
                f"{path} has vectors for one of the student's two text encoders: give tokenizer "
                "and text_encoder, or a file with clip_l and clip_g"
            )
        return pairs


def only_safetensors(source: Any, options: dict[str, Any]) -> None:
    """Have diffusers read nothing else.

    Raises:
        TiueError: a file of another kind is asked for.
    """
    asked = [
        str(one) for one in (source, options.get("weight_name")) if isinstance(one, str | Path)
    ]
    for name in asked[-1:]:
        if not name.endswith(".safetensors") and (name != str(source) or Path(name).is_file()):
            raise TiueError(f"{name} is no .safetensors file, and only those are read: convert it")
    options["use_safetensors"] = True


def _word(path: Path, name: str) -> str:
    return path.stem if name in _NAMELESS else name


def _check(path: Path, name: str, vectors: Tensor, encoder: Any) -> None:
    width = encoder.get_input_embeddings().weight.shape[-1]
    if vectors.ndim not in (1, 2) or vectors.numel() == 0 or not vectors.is_floating_point():
        raise TiueError(f"{path} is no file of vectors ({name} is {tuple(vectors.shape)}): use one")
    if vectors.shape[-1] != width:
        raise TiueError(
            f"{path} is an embedding for another model ({name} is {vectors.shape[-1]} wide, the "
            f"text encoder {width}): use one trained for this student's base model"
        )
    check_numbers({name: vectors}, path)
