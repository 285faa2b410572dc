"""Every way to paint x what ran before x sampler x sampling patch, and what became of it.

    python tests/comfyui/matrix.py        # starts this in ComfyUI's Python; prints a table

A cell is right if the latents equal ``TiuePipeline``'s, if a note says what did not act, or if the
run was refused in one line. Anything else is a wrong picture.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import TOLERANCE, Student, called

import comfy.samplers  # isort: skip
import nodes as stock  # isort: skip
from comfy_extras import nodes_model_advanced as advanced  # isort: skip
from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced  # isort: skip

PROMPT, SEED = "a cat on a red background", 7
KINDS = ("eps", "v_prediction", "lcm", "x0", "img_to_img")
DISCRETE = [f"{kind}{zsnr}" for kind in KINDS for zsnr in ("", " zsnr")]
CONTINUOUS = [f"continuous {kind}" for kind in ("eps", "v_prediction", "edm_playground_v2.5")]
OTHERS = ["continuous v", "sd3", "aura flow", "cascade", "rescale cfg"]
PATCHES = ["none", *DISCRETE, *CONTINUOUS, *OTHERS]
SAMPLERS = list(comfy.samplers.SAMPLER_NAMES)
BEFORE = ["nothing", "v_prediction", "sd3", "continuous edm_playground_v2.5"]
WAYS = ["One-Pass Sampler", "One-Pass SAMPLER", "Encode, Decode, Combine"]
STOCK = ["patch, Patch Model, KSampler", "Patch Model, patch, KSampler"]


@dataclass(frozen=True)
class Cell:
    """One run, and what became of it."""

    way: str
    before: str
    sampler: str
    patch: str
    outcome: str  # "equal", "note" or "refused"
    line: str  # the note, or the refusal
    difference: float


def patched(model: Any, patch: str) -> Any:
    """A MODEL through one of ComfyUI's own nodes; fresh objects each time."""
    kind, _, rest = patch.partition(" ")
    if patch == "none":
        return model
    if kind == "continuous":
        if rest == "v":
            return advanced.ModelSamplingContinuousV().patch(model, "v_prediction", 500.0, 0.03)[0]
        return advanced.ModelSamplingContinuousEDM().patch(model, rest, 120.0, 0.002)[0]
    others: dict[str, Any] = {
        "sd3": lambda: advanced.ModelSamplingSD3().patch(model, 3.0)[0],
        "aura flow": lambda: advanced.ModelSamplingAuraFlow().patch_aura(model, 1.73)[0],
        "cascade": lambda: advanced.ModelSamplingStableCascade().patch(model, 2.0)[0],
        "rescale cfg": lambda: advanced.RescaleCFG().patch(model, 0.7)[0],
    }
    if patch in others:
        return others[patch]()
    return advanced.ModelSamplingDiscrete().patch(model, kind, rest == "zsnr")[0]


class Matrix:
    """Runs cells on one student."""

    def __init__(self, folder: Path) -> None:
        from tiue_pack.nodes import calls, sample
        from tiue_pack.nodes.native import notes

        self.student, self.notes = Student(folder), notes
        self.positive = self.student.condition(PROMPT)
        self.reference = self.student.reference(PROMPT, SEED)
        every = (*sample.NODES, *calls.NODES)
        ids = [node.GET_SCHEMA().node_id.removeprefix("TiUE") for node in every]
        self.nodes = {key: called(node) for key, node in zip(ids, every, strict=True)}
        self.loaded = "nothing"

    def before(self, patch: str) -> None:
        """Have another branch's clone loaded, with its patch on what all clones share."""
        model = patched(self.student.model, "none" if patch == "nothing" else patch)
        if model is self.student.model:
            model = model.clone()
        latent, positive = self.student.latent(), self.positive
        stock.common_ksampler(
            model, 1, 1, 1.0, "euler", "normal", positive, positive, latent, disable_noise=False
        )

    def cell(self, way: str, before: str, sampler: str, patch: str) -> Cell:
        """Run one; AssertionError where it is a wrong picture without a word."""
        self.before(before)
        found, told = "equal", []
        difference = float("nan")
        try:
            with self.notes.collected() as told:
                samples = self.painted(way, sampler, patch)
        except Exception as error:
            line = str(error)
            assert "\n" not in line and ": " in line, (way, before, sampler, patch, error)
            return Cell(way, before, sampler, patch, "refused", line, difference)
        difference = self.student.distance(samples, self.reference)
        assert difference <= TOLERANCE, (way, before, sampler, patch, difference, told)
        found = "note" if told else "equal"
        return Cell(way, before, sampler, patch, found, "; ".join(told), difference)

    def painted(self, way: str, sampler: str, patch: str) -> torch.Tensor:
        nodes, positive, latent = self.nodes, self.positive, self.student.latent()
        if way in STOCK:
            first = way == STOCK[0]
            model = patched(self.student.model, patch if first else "none")
            model = patched(nodes["PatchModel"](model), "none" if first else patch)
            given = (model, SEED, 1, 1.0, sampler, "normal", positive, positive, latent)
            return stock.common_ksampler(*given)[0]["samples"]
        model = patched(self.student.model, patch)
        if way == "One-Pass Sampler":
            return nodes["OnePassSampler"](model, positive, latent, SEED)["samples"]
        if way == "One-Pass SAMPLER":
            guider, custom = BasicGuider(), SamplerCustomAdvanced()
            guider = (getattr(guider, "get_guider", None) or guider.execute)(model, positive)[0]
            run = getattr(custom, "sample", None) or custom.execute
            given = (nodes["Noise"](SEED), guider, nodes["Sampler"](), nodes["Sigmas"](model))
            return run(*given, latent)[0]["samples"]
        features = nodes["Encode"](model, positive, latent, SEED)
        return nodes["Combine"](nodes["Decode"](model, features, positive))["samples"]


def cells(full: bool) -> list[tuple[str, str, str, str]]:
    """What is run: all of it, or what takes seconds."""
    befores = BEFORE if full else ["v_prediction"]
    samplers = SAMPLERS if full else [*{*SAMPLERS} & {*QUICK}]
    some = [*PATCHES[::3], CONTINUOUS[-1]]  # which changes the scale of the latents, too
    own = itertools.product(WAYS, befores, ["-"], PATCHES if full else some)
    patches = itertools.product(STOCK, befores, ["euler"], PATCHES if full else PATCHES[1::3])
    every = itertools.product(STOCK[:1], befores, samplers, ["none"])
    return [*own, *patches, *every]


QUICK = ("euler", "heun", "uni_pc", "uni_pc_bh2", "dpm_fast", "dpm_adaptive", "lcm", "dpmpp_sde")


def table(found: list[Cell]) -> str:
    """A row per way, sampler and patch; what ran before makes none, which is the point of it."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in found:
        rows.setdefault((cell.way, cell.sampler, cell.patch), []).append(cell)
    merged: dict[tuple[str, str, str], list[str]] = {}
    for (way, sampler, patch), group in rows.items():
        outcomes = sorted({(cell.outcome, cell.line) for cell in group})
        assert len(outcomes) == 1, f"it depends on what ran before: {way} {sampler} {patch}"
        outcome, line = outcomes[0]
        line = re.sub(r"\([A-Z][\w, .]+\)", "(...)", line)  # the class of the patch
        line = re.sub(r"The sampler \w+", "The sampler ...", line)
        key = (way, outcome, line)
        merged.setdefault(key, []).append(patch if sampler in ("-", "euler") else sampler)
    lines = ["| way | samplers and sampling patches | outcome |", "| --- | --- | --- |"]
    for (way, outcome, line), names in merged.items():
        said = f"{outcome}: {line}" if line else outcome
        lines.append(f"| {way} | {', '.join(dict.fromkeys(names))} | {said} |")
    worst = max(cell.difference for cell in found if cell.outcome != "refused")
    counts = Counter(cell.outcome for cell in found)
    lines += ["", f"{len(found)} cells: {dict(counts)}; greatest difference {worst:.1e}"]
    return "\n".join(lines)


def main() -> None:
    matrix = Matrix(Path(os.environ["TIUE_STUDENT"]))
    with torch.inference_mode():
        print(table([matrix.cell(*cell) for cell in cells(full=True)]))


if __name__ == "__main__":
    main()
