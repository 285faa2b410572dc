"""A student's models as diffusers holds them: loaded, saved, moved, given LoRAs, run faster.

What is done with them, one pass, is ``base.TiuePipeline``.
"""

from __future__ import annotations

from functools import cached_property
from inspect import Signature, signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, StableDiffusionMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.packed import ADDED, split
from ..core.schedule import STEPS, OneWaySchedule
from ..core.unet import SplitUNet
from ..optimize.optimize import graph_runner, optimize
from ..students import lycoris, portable
from ..students.folder import READING, models_of
from ..students.lora import load_file
from ..students.models import load_components
from ..students.resolve import find
from ..students.single_file import read_single_file
from ..students.vocabulary import Vocabulary
from .checks import check_unet
from .inversions import InversionLoader, only_safetensors
from .memory import device_of, hooked
from .remarks import Remarks, vocabulary_of
from .text_cache import Embeddings

Self = TypeVar("Self", bound="StudentPipeline")


class StudentPipeline(
    DiffusionPipeline,
    StableDiffusionMixin,
    InversionLoader,
    StableDiffusionLoraLoaderMixin,
):
    """The models of a one-pass text-to-image student.

    Args:
        scheduler: any scheduler whose config ``OneWaySchedule`` understands; it is never stepped.
        steps, timesteps: K, or the very timesteps, that the student was trained for; saved with
            it. A one-step student is ``timesteps=[999]``.
        safety_checker, feature_extractor, image_encoder, requires_safety_checker: named by Stable
            Diffusion's folders; neither loaded nor used.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"  # type: ignore[assignment]
    added_conditions: str | None = None  #: what the UNet wants beside the prompt
    lora_loader: ClassVar[Any] = StableDiffusionLoraLoaderMixin  #: diffusers' own, of this layout
    layouts: ClassVar[dict[str, type[StudentPipeline]]] = {}  #: subclasses by what they add
    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        steps: int = STEPS,
        timesteps: list[int] | None = None,
        safety_checker: object = None,
        feature_extractor: object = None,
        image_encoder: object = None,
        requires_safety_checker: bool = False,
    ) -> None:
        super().__init__()
        check_unet(unet, self.added_conditions)
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            steps=steps if timesteps is None else len(timesteps), timesteps=timesteps
        )
        levels = 4 if vae is None else len(self.vae.config.block_out_channels)
        self.vae_scale_factor = 2 ** (levels - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._embeddings = Embeddings()
        self._merged: list[tuple[Tensor, Tensor]] = []  # weights before LyCORIS' kinds of LoRA
        self.draft_vae: Any = None
        self._optimized: Any = None  # what runs the models, after ``optimize``
        self._schedules: tuple[Any, dict[tuple, OneWaySchedule]] = (None, {})  # of one config
        self._remarks = Remarks()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.added_conditions is not None:
            StudentPipeline.layouts.setdefault(cls.added_conditions, cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a student: "stickers", a diffusers folder, a .safetensors file or a hub id.

        Takes what diffusers' ``from_pretrained`` takes; only safetensors are read. A first
        download needs ``accept_license=True``.
        """
        asked = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        dtype = asked[0] or asked[1]
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            wanted = {
                k: kwargs.pop(k) for k in ("revision", "accept_license", "base") if k in kwargs
            }
            source = find(pretrained_model_name_or_path, **wanted)
            folder = source.path
            kwargs = {**source.options(dtype), **kwargs}
            base = kwargs.pop("base", None)
            if folder.is_file():
                folder, models = read_single_file(folder, base, dtype)
                kwargs = {**models, **kwargs}
        kind, names = cls, (*models_of(folder), "tokenizer", "scheduler")
        if "text_encoder_2" in names:
            names = (*names, "tokenizer_2")
            if cls.added_conditions is None:
                kind = StudentPipeline.layouts[ADDED]
        # We build the models, from files that we chose; diffusers puts them together.
        parts = load_components(folder, [name for name in names if name not in kwargs], dtype)
        options = {**READING, **parts, **kwargs}
        return super(StudentPipeline, kind).from_pretrained(str(folder), **options)

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """diffusers' own, in names and files that older releases of transformers read as well."""
        super().save_pretrained(save_directory, *arguments, **options)
        for part in Path(save_directory).iterdir():
            if part.name.startswith("text_encoder"):
                portable.text_encoder(part)
            elif part.name.startswith("tokenizer"):
                portable.tokenizer(part)

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple]:
        """None: diffusers before 0.37 fails on annotations like ours, which it only logs of."""
        return dict.fromkeys(signature(cls.__init__).parameters, (Signature.empty,))

    @property
    def split_unet(self) -> SplitUNet:
        """The UNet in its two halves, faster where ``optimize`` was called."""
        if self._optimized is not None and self._optimized.unet.unet is self.unet:
            return self._optimized.unet
        return split(self.unet, self.vae_scale_factor)

    @torch.no_grad()
    def optimize(self: Self, engine: str = "auto", **options: Any) -> Self:
        """Run faster: the same pictures, up to rounding. Takes some pictures' time, once.

        Args:
            engine: "auto", "torch", "onnxruntime" or "openvino".
            options: see ``optimize.optimize.optimize``.
        """
        self.plain()
        self._optimized = optimize(self, engine, **options)
        return self

    def use_graphs(
        self, engine: str = "auto", dtype: Any = None, record: dict[str, Any] | None = None
    ) -> Any:
        """The part of ``optimize`` that changes no model: graphs of an engine, where there are
        some. ``record`` is what a graph that must be made says of the student."""
        self.plain()
        self._optimized = graph_runner(self, engine, dtype, record)
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """What a picture's metadata has to say of the engine."""
        return {} if self._optimized is None else self._optimized.facts()

    def plain(self: Self) -> Self:
        """Undo ``optimize``, all but dtype and layout."""
        if self._optimized is not None:
            self._optimized.undo()
            self._optimized = None
        return self

    def schedule(self, steps: int | None = None, decoders: str = "exact") -> OneWaySchedule:
        """The student's own schedule, or the one of K = ``steps``."""
        timesteps = self.config["timesteps"] if steps is None else None
        steps = self.config["steps"] if steps is None else steps
        if self._schedules[0] is not self.scheduler.config:
            self._schedules = (self.scheduler.config, {})
        known, key = self._schedules[1], (type(steps), str(steps), str(timesteps), decoders)
        if key not in known:
            known[key] = OneWaySchedule.from_config(
                self.scheduler, steps=steps, timesteps=timesteps, decoders=decoders
            )
        return known[key]

    @property
    def _execution_device(self) -> torch.device:
        names = ("vae", "text_encoder", "text_encoder_2", "unet")
        models = [one for name in names if isinstance(one := getattr(self, name, None), nn.Module)]
        return super()._execution_device if hooked(models) else device_of(models)

    def _tokenizers(self) -> list[Any]:
        return [self.tokenizer]

    def _text_encoders(self) -> list[Any]:
        return [self.text_encoder]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that the student was trained on, where those are few."""
        return vocabulary_of(self)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        *arguments: Any,
        **options: Any,
    ) -> None:
        """diffusers' own, of safetensors only; a file on this disk is used whole or refused."""
        source = pretrained_model_name_or_path_or_dict
        only_safetensors(source, options)
        if arguments or not load_file(self, source, adapter_name, options):
            self.lora_loader.load_lora_weights(self, source, adapter_name, *arguments, **options)

    def unload_lora_weights(self, *arguments: Any, **options: Any) -> None:
        """diffusers' own, and the kinds that are merged (``students.lycoris``)."""
        lycoris.restore(self)
        super().unload_lora_weights(*arguments, **options)

    def fuse_lora(self, *arguments: Any, **options: Any) -> None:
        """diffusers' own; what is merged already stays from now on."""
        self._merged.clear()
        super().fuse_lora(*arguments, **options)

    def load_draft(self, source: Any = None, accept_license: bool = False) -> None:
        """Load the tiny decoder for ``draft=True``: the student's own, a folder, or a hub id."""
        from .draft import load_draft_decoder

        self.draft_vae = load_draft_decoder(self, source, accept_license)
