"""What a distillation will take, found before it starts: memory, work and time.

The update itself is rehearsed on tensors that have a shape and no data, and every byte that would
be allocated is counted while it would be alive. So what is added to the update is in the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..core.forward_process import Noising
from ..core.packed import extra_rows
from ..shared.measure import matmul_rate
from .pairs import Pairs
from .real_images import RealImages
from .recipe import DistillRecipe
from .rehearsal import Alone, Live, default_dtype
from .shown import Shown
from .tasks.distill import DistillTask

GIB = 1 << 30
LIBRARIES = 0.6e9  #: what Python, torch and the others take of a CPU's memory
CONTEXT = 0.8e9  #: what CUDA's context and kernels take of a GPU's
SHARE = 0.4  #: of a large product's speed, that a whole update reaches; the rest waits for memory


@dataclass(frozen=True)
class Plan:
    """Bytes are a process's; ``flops`` are an update's of one process."""

    student: int  # parameters that learn
    adapters: int  # parameters of the LoRA teacher's adapters
    critic: int
    processes: int
    batch: int  # samples an update, all processes
    updates: int
    resting: int  # bytes of weights, averages and optimizers
    peak: int  # bytes at the worst moment of an update
    flops: int
    seconds: float  # an update, a rough guess until the first ones are timed

    def lines(self) -> list[str]:
        """For people."""
        total = self.seconds * self.updates
        return [
            f"learns: student {self.student / 1e6:.1f} M, adapters {self.adapters / 1e6:.1f} M"
            + (f", critic {self.critic / 1e6:.2f} M" if self.critic else ""),
            f"{self.updates} updates of {self.batch} prompts on {self.processes} "
            f"process{'es' if self.processes > 1 else ''}",
            f"memory of each: {self.peak / GIB:.1f} GiB at most, "
            f"{self.resting / GIB:.1f} GiB of it weights, averages and optimizers",
            f"an update: {self.flops / 1e12:.3g} TFLOP each, about {_spell(self.seconds)}; "
            f"all of them about {_spell(total)}",
        ]


def forecast(task: DistillTask, accelerator: Accelerator) -> list[str]:
    """Parameters, memory and time, before anything starts, in lines."""
    try:
        return plan(task, accelerator).lines()
    except Exception as error:  # a run does not fail for want of a forecast
        why = (str(error) or type(error).__name__).splitlines()[0]
        return [f"memory and time could not be foreseen: {why}"]


def plan(task: DistillTask, accelerator: Accelerator) -> Plan:
    """Rehearse an update of ``task``, which may be prepared or not."""
    recipe = task.recipe
    peak, resting, flops = rehearse(task, accelerator)
    cuda = accelerator.device.type == "cuda"
    peak += int(CONTEXT if cuda else LIBRARIES)
    modules = task.modules
    count = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in modules.items()
    }
    processes = accelerator.num_processes
    return Plan(
        student=count["student"],
        adapters=count["lora_teacher"],
        critic=count.get("critic", 0),
        processes=processes,
        batch=recipe.batch_size * recipe.accumulate * processes,
        updates=recipe.steps,
        resting=resting,
        peak=peak,
        flops=flops,
        seconds=flops / (SHARE * _speed(accelerator)),
    )


class _Rehearsed(DistillTask):
    """The task on tensors without data: nothing is loaded, the work is the same."""

    def __init__(self, recipe: DistillRecipe, like: DistillTask):
        self._like = like
        super().__init__(recipe)

    def _load(self) -> None:
        like = self._like.pipeline
        self.pipeline = SimpleNamespace(  # only what an update needs
            unet=_twin(like.unet),
            vae=like.vae,
            vae_scale_factor=like.vae_scale_factor,
            scheduler=like.scheduler,
            text_encoder=None,
        )
        self.prompts, self.empty, self.schedule = ["", ""], self._like.empty, self._like.schedule
        self.tokens = self._like.tokens

    def _copy(self, unet: Any) -> Any:
        return _twin(unet)

    def _low_rank(self, wanted: Any) -> Any:
        student = _twin(self.pipeline.unet).requires_grad_(False)
        theirs: Any = self._like.modules["student"]
        student.add_adapter(theirs.peft_config["default"])
        return student

    def prepare(self, accelerator: Accelerator) -> None:
        recipe, self.accelerator = self.recipe, accelerator
        device, count = accelerator.device, 2 * recipe.batch_size
        self.student = self.split(self.modules["student"].to(device))
        self.teacher.to(device)
        if "critic" in self.modules:
            self.modules["critic"].to(device)
        noising = Noising.from_scheduler(self.pipeline.scheduler)
        self.noising = replace(noising, alphas=torch.empty_like(noising.alphas, device=device))
        rows = extra_rows(self.teacher)
        length = self.empty.shape[1] // (2 if rows else 1)  # two tokenizers' ids lie in a row
        shape = (1, length + rows, self.teacher.config.cross_attention_dim)
        kind = next(self.teacher.parameters()).dtype
        embeds = torch.empty(shape, device=device, dtype=kind)
        some, images = torch.empty(count, *self.shape), recipe.images or recipe.world_images
        self.shown = Shown(
            Pairs(torch.zeros(count, dtype=torch.int64), some, some) if recipe.pairs else None,
            RealImages(torch.zeros(count, shape[1], dtype=torch.int64), some) if images else None,
        )
        self.embeds = _Embeds(embeds)  # type: ignore[assignment]
        self.clip = None


class _Embeds:
    def __init__(self, one: Tensor):
        self.one = one

    def of(self, tokens: Tensor) -> Tensor:
        return self.one.expand(len(tokens), -1, -1).contiguous()

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.of(rows), self.of(rows)


def _twin(unet: Any) -> Any:
    """A UNet of the same config, dtype and settings, initialised here and now."""
    with default_dtype(next(unet.parameters()).dtype):
        made = type(unet).from_config(unet.config)
    return made.eval().requires_grad_(False)


def rehearse(task: DistillTask, accelerator: Accelerator) -> tuple[int, int, int]:
    """Bytes at the peak, bytes at rest and FLOPs of an update, after one that made Adam's state."""
    recipe = task.recipe.model_copy(update={"clip": 0.0, "optimizer": "adamw", "init": None})
    # Without data nothing can move; what is asked to go somewhere is there already.
    still = patch.object(torch.nn.Module, "to", lambda module, *_, **__: module)
    with still, FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        twin = _Rehearsed(recipe, task)
        # Several processes call the CPU cpu:0, which tensors without data take for another one.
        device = "cpu" if accelerator.device.type == "cpu" else accelerator.device
        twin.prepare(Alone(accelerator.autocast, device))  # type: ignore[arg-type]
        average = [torch.empty_like(p) for p in twin.modules["student"].parameters() if recipe.ema]
        step = recipe.steps - 1  # every term is at work
        twin.update(step, torch.Generator())
        resting = live.peak = live.bytes
        with FlopCounterMode(display=False) as flops:
            twin.update(step, torch.Generator())
        peak, total = live.peak, flops.get_total_flops()
        del average
    return peak, resting, total


def _spell(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.2g} seconds"


def _speed(accelerator: Accelerator) -> float:
    """FLOP/s of a product of large matrices, in the recipe's precision, measured."""
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
    kind = kinds.get(accelerator.mixed_precision, torch.float32)
    device = accelerator.device
    return matmul_rate(device, kind, 4096 if device.type == "cuda" else 768)
