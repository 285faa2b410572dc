"""A student's text encoder as ComfyUI's CLIP, of any size; of SDXL's layout, both in one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch
from comfy import sd1_clip, sdxl_clip
from transformers import CLIPTokenizer

from ...tiue_core.students.ldm_config import require
from ...tiue_core.students.vocabulary import Vocabulary
from . import checks, saved
from .notes import tell

Weights = dict[str, torch.Tensor]

_UNUSED = (".logit_scale", "text_projection.weight")  # of the image side of CLIP


def load(
    entry: dict[str, Any],
    given: list[Weights],
    source: Path,
    embeddings: Any,
    dtype: torch.dtype | None = None,
) -> Any:
    """A CLIP from what tensors do not say, and from the tensors of one text encoder or of two.

    Args:
        entry: ``config`` and ``tokenizer``; of SDXL's layout the same below ``second``.
        given: by text encoder, in transformers' names, with or without ``text_model.``.
    """
    if "second" not in entry:
        wide = entry["config"]["hidden_size"] == 1024
        names = ["clip_h" if wide else "clip_l"]  # as ComfyUI and LoRA files name SD2's and SD1's
    else:
        names = ["clip_l", "clip_g"]
        _check_two(entry["config"], entry["second"]["config"])
    weights = {
        f"{name}.transformer.{key}": value
        for name, tensors in zip(names, given, strict=True)
        for key, value in _named(tensors).items()
    }
    with ExitStack() as folders:
        target = comfy.supported_models_base.ClipTarget(*_parts(entry, names, folders))
        clip = comfy.sd.CLIP(
            target,
            embedding_directory=embeddings,
            parameters=sum(weight.numel() for weight in weights.values()),
            model_options={} if dtype is None else {"dtype": dtype},
        )
    missing, unexpected = clip.load_sd(weights, full_model=True)
    own = "clip_g.transformer.text_projection.weight"
    checks.complete(
        source, {key for key in missing if key == own or not key.endswith(_UNUSED)}, unexpected
    )
    if entry.get("blank_zeros"):
        blank_is_zeros(clip.cond_stage_model)
    return clip


def blank_is_zeros(encoders: Any) -> None:
    """Have SDXL's two encode an empty prompt as zeros, as they do in diffusers."""
    encode = encoders.encode_token_weights

    def encode_or_zeros(pairs: dict[str, Any]) -> Any:
        made = encode(pairs)
        blank = _blank(pairs["l"], encoders.clip_l) and _blank(pairs["g"], encoders.clip_g)
        return tuple(map(torch.zeros_like, made[:2])) + tuple(made[2:]) if blank else made

    encoders.encode_token_weights = encode_or_zeros


def tell_of_unknown_words(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Have the node that encodes a prompt say which of its words the student was not trained on."""
    tokenize = tokenizer.tokenize_with_weights

    def tokenize_and_tell(text: str, *args: Any, **options: Any) -> Any:
        unknown = vocabulary.unknown([text])
        tell([vocabulary.note(unknown)] * bool(unknown))
        return tokenize(text, *args, **options)

    tokenizer.tokenize_with_weights = tokenize_and_tell


def _parts(entry: dict[str, Any], names: list[str], folders: ExitStack) -> tuple[Any, Any]:
    """What makes the tokenizer, and what makes the text encoder; ``folders`` keeps files there."""
    tokenizers, encoders = {}, {}
    for name, one in zip(names, (entry, entry.get("second", {})), strict=False):
        folder = folders.enter_context(saved.Folder(one["tokenizer"]))
        words = CLIPTokenizer.from_pretrained(folder)
        # Not those of the config, which Stable Diffusion's own folders have wrong.
        special = {
            "start": words.bos_token_id,
            "end": words.eos_token_id,
            "pad": words.pad_token_id,
        }
        tokenizers[name] = partial(
            _Tokenizer,
            entry=entry,
            tokenizer_path=str(folder),
            max_length=one["config"]["max_position_embeddings"],
            embedding_size=one["config"]["hidden_size"],
            embedding_key=name,
            pad_token=words.pad_token_id,
        )
        encoders[name] = partial(
            _TextEncoder, config=dict(one["config"]), special_tokens=special, pooled=len(names) > 1
        )
    if len(names) > 1:
        return partial(_Tokenizers, makers=tokenizers), partial(_TextEncoders, makers=encoders)
    short = names[0].removeprefix("clip_")
    return (
        partial(sd1_clip.SD1Tokenizer, clip_name=short, tokenizer=tokenizers[names[0]]),
        partial(sd1_clip.SD1ClipModel, clip_name=short, clip_model=encoders[names[0]]),
    )


class _Tokenizer(sd1_clip.SDTokenizer):
    """A tokenizer that ComfyUI's save nodes write down, vocabulary and all."""

    def __init__(self, *args: Any, entry: dict[str, Any], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.entry = entry

    def state_dict(self) -> Weights:
        return {f"{self.embedding_key}.{saved.TEXT}": saved.packed(self.entry)}


class _TextEncoder(sd1_clip.SDClipModel):
    """A CLIP text encoder of any size; what comes out is its last layer, of SDXL's two (``pooled``)
    the one before, and the prompt pooled."""

    def __init__(
        self,
        config: dict[str, Any],
        special_tokens: dict[str, int],
        pooled: bool,
        device: Any,
        dtype: Any,
        model_options: dict[str, Any],
        **_: Any,
    ) -> None:
        layer: dict[str, Any] = {"layer": "last"}
        if pooled:
            layer = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=dict(config),
            special_tokens=special_tokens,
            return_projected_pooled=pooled,
            model_options=model_options,
            **layer,
        )
        words, width = config["vocab_size"], config["hidden_size"]
        if self.transformer.get_input_embeddings().weight.shape[0] != words:  # up to 0.3.x
            self.transformer.set_input_embeddings(
                self.operations.Embedding(words, width, dtype=dtype, device=device)
            )


class _Tokenizers(sdxl_clip.SDXLTokenizer):
    """SDXL's two tokenizers."""

    def __init__(
        self,
        embedding_directory: Any = None,
        tokenizer_data: Any = None,
        *,
        makers: dict[str, Any],
    ) -> None:
        for name, make in makers.items():
            one = make(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
            setattr(self, name, one)

    def state_dict(self) -> Weights:
        return self.clip_l.state_dict()  # whose entry has both


class _TextEncoders(sdxl_clip.SDXLClipModel):
    """SDXL's two text encoders."""

    def __init__(
        self, device: Any, dtype: Any, model_options: dict[str, Any], *, makers: dict[str, Any]
    ) -> None:
        torch.nn.Module.__init__(self)
        for name, make in makers.items():
            options = {**model_options, "model_name": name}
            setattr(self, name, make(device=device, dtype=dtype, model_options=options))
        self.dtypes = {dtype}


def _named(tensors: Weights) -> Weights:
    return {
        key if key.startswith("text_") else f"text_model.{key}": value
        for key, value in tensors.items()
        if not key.endswith("position_ids")
    }


def _check_two(*configs: dict[str, Any]) -> None:
    """ComfyUI takes the layer before the last of three or more, and projects into one width."""
    for config in configs:
        layers = config["num_hidden_layers"]
        require(layers > 2, f"SDXL's text encoders of {layers} layers")
    width, projected = configs[1]["hidden_size"], configs[1]["projection_dim"]
    require(width == projected, f"a pooled prompt of {projected} out of {width}")


def _blank(chunks: Iterable[list[Any]], encoder: Any) -> bool:
    """Whether tokens are those of an empty prompt: its end comes next after its beginning."""
    end = encoder.special_tokens["end"]
    return all(len(chunk) > 1 and _same(chunk[1][0], end) for chunk in chunks)


def _same(token: Any, end: int) -> bool:
    return not torch.is_tensor(token) and token == end
