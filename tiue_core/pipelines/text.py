"""Prompts to tokens to embeddings."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..core.packed import encode_ids
from ..errors import TiueError


def token_limit(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens that both can take."""
    return min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)


def check_precision(encoders: Iterable[Any]) -> None:
    """Raise TiueError where the installed transformers cannot run a text encoder as it is."""
    if any(encoder.dtype == torch.float64 for encoder in encoders):
        import transformers

        if int(transformers.__version__.split(".")[0]) < 5:  # its causal mask overflows
            raise TiueError(
                f"transformers {transformers.__version__} runs no text encoder in float64: "
                "pipe.text_encoder.float(), or update transformers to 5"
            )


def tokenize(tokenizer: Any, prompts: list[str], limit: int | None = None) -> Any:
    """Prompts to ``input_ids`` and ``attention_mask``, (N, limit) each, padded and cut."""
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length if limit is None else limit,
        truncation=True,
        return_tensors="pt",
    )


def warn_of_dropped_words(tokenizer: Any, text: str, limit: int) -> None:
    """Name the words of a prompt that do not fit into ``limit`` tokens."""
    words = text.split()

    def length(kept: int) -> int:
        tokens = tokenizer.tokenize(" ".join(words[:kept]))
        return len(tokens) + tokenizer.num_special_tokens_to_add()

    if length(len(words)) > limit:
        kept = bisect_right(range(len(words) + 1), limit, key=length) - 1
        warnings.warn(
            f"the prompt is longer than the text encoder's {limit} tokens, "
            f"these words are dropped: {' '.join(words[kept:])}",
            stacklevel=5,  # the caller of the pipeline, past no_grad's wrapper
        )


def token_ids(pipeline: Any, prompts: list[str]) -> Tensor:
    """Prompts to token ids (N, L); for two text encoders both tokenizers' in a row, (N, 2 L)."""
    second = getattr(pipeline, "tokenizer_2", None)
    tokenizers = [pipeline.tokenizer] + ([second] if second is not None else [])
    return torch.cat([tokenize(tokenizer, prompts).input_ids for tokenizer in tokenizers], dim=1)


def embed(pipeline: Any, tokens: Tensor) -> Tensor:
    """Token ids to what the UNet is told (N, L, D); SDXL's with the pooled text (``packed``)."""
    encoder, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    tokens = tokens.to(encoder.device)
    if second is None:
        return encoder(tokens)[0]
    blank = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    if pipeline.config["force_zeros_for_empty_prompt"]:
        blank = (tokens == token_ids(pipeline, [""]).to(tokens.device)).all(1)
    ids, second_ids = tokens.chunk(2, dim=1)
    return encode_ids(encoder, second, ids, second_ids, blank)
