"""The student as one graph: onnxruntime beside PyTorch, from token ids to the picture.

Rows of a whole, as a graph has no stages to time:

    graph            what `tiue export` writes, in onnxruntime
    openvino         the same file in OpenVINO, where it is installed; openvino-bfloat16 likewise
    graph-eager      the module that it was traced from, run by PyTorch
    graph-compiled   the same through torch.compile
    pipeline         the models as TiuePipeline runs them when nothing is optimized
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..core.one_pass import one_pass
from ..core.unet import SplitUNet
from ..errors import TiueError
from ..export.sessions import OpenVino, installed, open_session
from ..export.store import need_onnx, save_onnx
from ..export.trace import program, traced
from ..export.write import describe, quietly
from ..pipelines.vae import decode
from .shapes import models
from .systems import Stages, System

Picture = Callable[[Tensor, Tensor], Any]  # token ids (B, N), noise (B, C, h, w)


class Whole:
    """A student of a shape, exported and compiled. Its weights are its own: others are packed.

    Raises:
        TiueError: onnx or onnxruntime is missing, or it has no such device.
    """

    @torch.no_grad()
    def __init__(
        self, shape: str, latent: int, device: torch.device, dtype: torch.dtype, threads: int
    ) -> None:
        need_onnx()
        made = models(shape)
        self.tokens, schedule = made.tokens, made.schedule("exact")
        parts = {name: getattr(made, name).to(device, dtype) for name in ("unet", "vae")}
        pipe = SimpleNamespace(
            **parts,
            text_encoder=made.text_encoder.to(device, dtype),
            vae_scale_factor=made.factor,
            draft_vae=None,
            decode=decode,
        )
        about = describe(pipe, schedule, (made.unet.config.in_channels, latent, latent), False)
        about |= {"draft": False, "whole": True}
        with quietly():
            graph = next(traced(pipe, schedule, about, made.tokens.shape[1]))
            self.folder = TemporaryDirectory()  # OpenVINO reads at the first picture of a shape
            path = Path(self.folder.name) / "student.onnx"
            save_onnx(graph, program(graph), path, {})
            session, _ = open_session(path, device.type, threads)
        module = graph.module
        self.pictures: dict[str, Picture] = {
            "graph": lambda ids, noise: session.run(
                ["image"], {"input_ids": ids.cpu().numpy(), "noise": noise.cpu().numpy()}
            )[0],
            "graph-eager": lambda ids, noise: module(ids, noise)[0],
            "pipeline": _pipeline(pipe, schedule, module.vae),
        }
        for precision in OpenVino.precisions if "openvino" in installed() else ():
            name = "openvino" if precision == "float32" else f"openvino-{precision}"
            with suppress(TiueError):  # a processor without that precision
                self.pictures[name] = _in(OpenVino(path, precision, threads))
        compiled = torch.compile(module)
        try:  # which wants a C++ compiler, or Triton
            compiled(self.tokens.to(device), torch.randn(1, 4, latent, latent, device=device))
            self.pictures["graph-compiled"] = lambda ids, noise: compiled(ids, noise)[0]
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            warnings.warn(f"torch.compile failed, its row is left out: {first}", stacklevel=2)
        self.decoders = len(schedule)

    def systems(self) -> list[System]:
        """Rows of the table."""
        about = {
            "graph": "onnxruntime",
            "openvino": "the same graph, OpenVINO",
            "openvino-bfloat16": "the same, computed in bfloat16",
            "graph-eager": "the same module, PyTorch",
            "graph-compiled": "the same module, torch.compile",
            "pipeline": "PyTorch, nothing optimized",
        }
        return [
            System(name, about[name], self._paint(self.pictures[name]), decoders=self.decoders)
            for name in about
            if name in self.pictures
        ]

    def _paint(self, picture: Picture) -> Callable[[Tensor, Tensor, Stages], Tensor]:
        def paint(noise: Tensor, prompts: Tensor, stage: Stages) -> Tensor:
            ids = self.tokens.to(noise.device).expand(len(noise), -1).contiguous()
            with stage("whole"):
                return torch.as_tensor(picture(ids, noise.float()))

        return paint


def _in(session: OpenVino) -> Picture:
    return lambda ids, noise: session({"input_ids": ids.numpy(), "noise": noise.numpy()})[0]


def _pipeline(pipe: Any, schedule: Any, vae: Any) -> Picture:
    unet = SplitUNet(pipe.unet)

    def picture(ids: Tensor, noise: Tensor) -> Tensor:
        prompts = pipe.text_encoder(ids)[0]
        return vae(one_pass(unet, schedule, noise, prompts).latents)

    return picture
