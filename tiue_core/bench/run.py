"""One interleaved run: in every round every system paints once, so that what else goes on on the
machine falls on all alike. Medians over rounds; ratios round by round."""

from __future__ import annotations

import platform
import random
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.memory import out_of_memory
from ..optimize import cpu
from ..shared.layers import as_written
from .memory import Peak
from .models import Bench
from .roofline import rates
from .systems import Stages, System

OURS = ("exact", "fast", "draft")
BASELINES = {
    "ratios": "authors",
    "ratios_tuned": "authors-tuned",
    "ratios_as_run": "authors-as-run",
}
Say = Callable[[str], Any]


def bench(
    made: Bench,
    *,
    batch: int = 1,
    rounds: int = 5,
    only: Sequence[str] = (),
    batches: Sequence[int] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Time systems side by side.

    Args:
        made: the models.
        batch: images at a time.
        rounds: how often each system paints, after once to warm up.
        only: names of systems; all by default.
        batches: batch sizes for images per second.
        say: told what goes on.

    Returns:
        The object that ``tiue bench --json`` prints; seconds, bytes, images per second.
    """
    systems = [s for s in made.systems() if not only or s.name in only]
    measured = rates(made.device, made.dtype)
    seconds = rounds_of(made, systems, batch, rounds, say)
    rows = {}
    for system in systems:
        row = summary(seconds, system)
        work = made.flops(system, batch)
        row["roofline"] = work / measured.matmul / row["total"]
        row["memory"] = max(made.peaks.get(system.name, [0])) or None
        rows[system.name] = row
    per_second: dict[str, dict[int, float]] = defaultdict(dict)
    for size in batches:
        for system in (s for s in systems if s.name in (*OURS, "one-step")):
            say(f"{system.name}, batch {size}")
            try:
                some = rounds_of(made, [system], size, max(rounds // 2, 2), lambda line: None)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                say(f"{system.name}: out of memory at batch {size}")
                continue
            per_second[system.name][size] = size / summary(some, system)["total"]
    return {
        "shape": made.shape,
        "size": made.latent * made.made.factor,
        "batch": batch,
        "device": f"{made.name} ({processor()})" if made.on_cpu else made.name,
        "dtype": str(made.dtype).removeprefix("torch."),
        "layout": made.layout,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "matmul_gflops": measured.matmul / 1e9,
        "copy_gbytes": measured.copy / 1e9,
        **{key: ratios(seconds, base) for key, base in BASELINES.items() if base in rows},
        "cpu_seconds": {
            key: ratios(seconds, base, used) for key, base in BASELINES.items() if base in rows
        },
        "graph_ratios": graph_ratios(seconds, whole),
        "graph_cpu_seconds": graph_ratios(seconds, used),
        "systems": rows,
        "images_per_second": per_second,
        "left_plain": sorted(made.thrifty.without),
    }


Seconds = dict[str, list[dict[str, float]]]


def rounds_of(made: Bench, systems: list[System], batch: int, rounds: int, say: Say) -> Seconds:
    """Seconds of every stage of every system, by round, and of what they share: "shared"."""
    noise, prompts = made.inputs(batch)
    seconds: Seconds = defaultdict(list)
    order = random.Random(0)
    for i in range(-1, rounds):  # round -1 warms up
        for system in order.sample(systems, len(systems)):
            say(f"{'warm-up' if i < 0 else f'round {i + 1} of {rounds}'}: {system.name}")
            with Peak(made.device) as peak:
                stages = paint(made, system, noise, prompts)
            if i >= 0:
                seconds[system.name].append(stages)
                made.peaks[system.name].append(peak.bytes)
        shared = made.shared(batch, {s.decoder for s in systems})
        if i >= 0:
            seconds["shared"].append(shared)
    return seconds


@torch.no_grad()
def paint(made: Bench, system: System, noise: Tensor, prompts: Tensor) -> dict[str, float]:
    """One batch of latents; seconds by stage, those of a long loop multiplied."""
    stages = Stages(made.device)
    with ExitStack() as around:
        if system.as_written:
            around.enter_context(as_written())
        if made.on_cpu:
            cpu.keep_pages(not system.as_run)
        dtype = torch.float32 if system.as_run else made.dtype
        system.paint(noise.to(dtype), prompts.to(dtype), stages)
    return {name: s * (system.times or {}).get(name, 1) for name, s in stages.seconds.items()}


def summary(seconds: Seconds, system: System) -> dict[str, Any]:
    """Medians by stage, and the spread of the UNet part; of a whole, what is there of it."""
    rounds, shared = seconds[system.name], seconds["shared"]
    if "whole" in rounds[0]:
        wholes = sorted(one["whole"] for one in rounds)
        stages = dict.fromkeys(("text", "encoder", "decoders", "vae", "unet", "unet_range"))
        return {
            "about": system.about,
            **stages,
            "whole_range": [wholes[0], wholes[-1]],
            "total": _median(wholes),
            "extrapolated": False,
        }
    parts = {
        "text": _median([one["text"] for one in shared]) * system.rows,
        "encoder": _median([one["encoder"] for one in rounds]),
        "decoders": _median([one["decoders"] for one in rounds]),
        "vae": _median([one[system.decoder] for one in shared]),
    }
    unets = sorted(one["encoder"] + one["decoders"] for one in rounds)
    return {
        "about": system.about,
        **parts,
        "unet": _median(unets),
        "unet_range": [unets[0], unets[-1]],
        "total": parts["text"] + _median(unets) + parts["vae"],
        "extrapolated": bool(system.times),
    }


def elapsed(one: dict[str, float]) -> float:
    """Seconds of the UNet part."""
    return one["encoder"] + one["decoders"]


def whole(one: dict[str, float]) -> float:
    """Seconds from token ids to the picture."""
    return one["whole"]


def used(one: dict[str, float]) -> float:
    """CPU seconds of the UNet part or the whole, which other work lengthens less."""
    return one["cpu"]


def ratios(
    seconds: Seconds,
    base: str,
    of: Callable[[dict[str, float]], float] = elapsed,
    names: Sequence[str] = OURS,
) -> dict[str, float]:
    """Ours over a baseline, for the UNet part: medians of the ratios within each round."""
    return {
        name: _median([of(a) / of(b) for a, b in zip(seconds[name], seconds[base], strict=True)])
        for name in names
        if seconds.get(name)
    }


def graph_ratios(seconds: Seconds, of: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """The graph in onnxruntime over the other wholes, by their names."""
    if not seconds.get("graph"):
        return {}
    others = [name for name in seconds if name != "graph" and "whole" in seconds[name][0]]
    return {name: ratios(seconds, name, of, ["graph"])["graph"] for name in others}


def processor() -> str:
    """The CPU's name, as far as it tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.processor() or platform.machine()


def _median(values: list[float]) -> float:
    return statistics.median(values)
