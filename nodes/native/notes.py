"""What does not act in one pass says so: a line on the node and in the log, or a refusal.

A student is asked once, at its first noise level. What ComfyUI would do later (ranges of prompts
and ControlNets, keyframes of hooks) has no later to act in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from ...tiue_core.students.vocabulary import size_note
from . import checks

KEY = "tiue"  # of our wrappers and attachments
_FACTOR = 8  # px to a latent, of Stable Diffusion's autoencoders
_collected: ContextVar[list[str] | None] = ContextVar("tiue_notes", default=None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The notes that are told within."""
    lines: list[str] = []
    around = _collected.get()
    token = _collected.set(lines)
    try:
        yield lines
    finally:
        _collected.reset(token)
        if around is not None:
            around += lines


def tell(lines: list[str]) -> None:
    """Log every line, and show them on the node that is running, whosever it is."""
    if not lines:
        return
    for line in lines:
        logging.warning("TiUE: %s", line)
    found = _collected.get()
    if found is not None:
        found += lines
    server, node = _running()
    if node is not None:
        server.send_progress_text("\n".join(lines), node)


def look(guider: Any, sigma: float, noise: Tensor) -> None:
    """Tell what on a guider does not act at the one noise level `sigma`, and of an unusual size.

    Args:
        guider: with its ``conds`` as sampling has prepared them.
        noise: (B, C, h, w), what is painted from.

    Raises:
        ValueError: the picture would be another one than was asked for.
    """
    patcher, conds = guider.model_patcher, guider.conds
    made = patcher.get_attachment(KEY)
    if patcher.get_model_object("latent_format") is not patcher.model.model_config.latent_format:
        raise ValueError(
            "A node on this MODEL (such as ModelSamplingContinuousEDM) expects the latents of "
            "another model: remove it, or put it before Patch Model"
        )
    lines = []
    if made is None or made.name == "stickers-teacher":
        lines.append(
            "this MODEL is not known to be a one-pass student; a plain model painted in one pass "
            "is a blur: connect the MODEL of Load Student"
        )
    other = patcher.object_patches.get("model_sampling")
    if made is not None and other is not None and not getattr(other, "of_tiue", False):
        lines.append(sampling_patch(other))
    lines += _ranges(conds, guider.inner_model.model_sampling, sigma)
    if made is not None:
        height, width = (_FACTOR * side for side in noise.shape[-2:])
        size = size_note(width, height, (made.side, made.side))
        lines += [size] * bool(size)
    _negative(guider)
    tell(list(dict.fromkeys(lines)))


def sampling_patch(sampling: Any) -> str:
    """That a node such as ModelSamplingDiscrete changes nothing."""
    return (
        f"the sampling patch on this MODEL ({_kind(sampling)}) does not act: a student has its own "
        "schedule"
    )


class Guard:
    """A ``SAMPLER_SAMPLE`` wrapper of a patched MODEL: the stock KSampler does what it is shown.

    Args:
        sampling: the ``model_sampling`` that the patch gave the MODEL.
        sigma: the noise level at which the student is asked.
        before: the sampling patch that the MODEL had before, if any.
    """

    def __init__(self, sampling: Any, sigma: float, before: Any = None) -> None:
        self.sampling, self.sigma, self.before = sampling, sigma, before

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        latent = (latent_image, denoise_mask, disable_pbar)
        given = (guider, sigmas, extra_args, callback, noise, *latent)
        if not hasattr(executor.class_obj, "sampler_function"):
            return executor(*given)  # One-Pass SAMPLER looks for itself
        name = _name(executor.class_obj)
        patch = guider.model_patcher.get_model_object("model_sampling")
        if patch is not self.sampling:
            raise ValueError(
                f"A node after Patch Model put other noise levels in its place ({_kind(patch)}): "
                "put that node before Patch Model, or remove it"
            )
        checks.empty_latent(latent_image, denoise_mask)
        checks.one_step(sigmas, self.sigma)
        if self.before is not None:
            tell([sampling_patch(self.before)])
        look(guider, self.sigma, noise)
        tell(self._widgets(guider))
        try:
            samples = executor(*given)
        except checks.OtherNoiseLevel as error:
            raise ValueError(_unfit(name)) from error
        painted = getattr(guider, "tiue_painted", None)
        bar = 1e-4 * max(1.0, float(painted.abs().max())) if painted is not None else 0
        if painted is None or float((samples - painted).abs().max()) > bar:
            raise ValueError(_unfit(name))
        return samples

    def _widgets(self, guider: Any) -> list[str]:
        lines, cfg = [], getattr(guider, "cfg", 1.0)
        if cfg != 1:
            lines.append(
                f"cfg is {cfg:g}: students are trained to do without guidance, 1 is best and "
                "twice as fast"
            )
        denoise = _widget("denoise")
        if isinstance(denoise, int | float) and denoise < 1:
            lines.append(f"denoise {denoise:g} does not act: one pass starts from pure noise")
        return lines


def remember(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A ``PREDICT_NOISE`` wrapper: keeps on the guider what was painted, for ``Guard``."""
    painted = executor(*args, **kwargs)
    executor.class_obj.tiue_painted = painted
    return painted


def _ranges(conds: dict[str, list], sampling: Any, sigma: float) -> list[str]:
    """Of prompts, ControlNets and hooks."""

    def acts(start: float, end: float) -> bool:
        low, high = sampling.percent_to_sigma(end), sampling.percent_to_sigma(start)
        return low <= sigma <= high * (1 + 1e-4)

    whole = (0.0, 1.0)
    lines = []
    for entries in conds.values():
        kept = 0
        for cond in entries:
            start, end = cond.get("start_percent", 0.0), cond.get("end_percent", 1.0)
            start = max(start, cond.get("clip_start_percent", 0.0))
            end = min(end, cond.get("clip_end_percent", 1.0))
            kept += (start, end) == whole or acts(start, end)
            if (start, end) != whole:
                lines.append(_range("prompt", start, end, acts(start, end)))
            control = cond.get("control")
            while control is not None:
                start, end = control.timestep_percent_range
                if (start, end) != whole or not acts(start, end):
                    lines.append(_range("ControlNet", start, end, acts(start, end)))
                control = control.previous_controlnet
            for hook in getattr(cond.get("hooks"), "hooks", ()):
                frames = getattr(hook.hook_keyframe, "keyframes", ())
                late = [f.start_percent for f in frames if not acts(f.start_percent, 1.0)]
                if late:
                    lines.append(_range("keyframe", late[0], 1.0, False))
        if entries and not kept:
            raise ValueError(
                "No prompt acts where the student is asked (once, at the beginning): give one "
                "prompt a range that starts at 0"
            )
    return lines


def _range(what: str, start: float, end: float, acts: bool) -> str:
    how = "acts on the whole picture" if acts else "does not act"
    return (
        f"the {what} with range {start:g} to {end:g} {how}: a student is asked once, a quarter of "
        "the way"
    )


def _negative(guider: Any) -> None:
    """Patches such as NAG and SAG compare with a negative prompt; there must be one."""
    wanted = guider.model_options.get("disable_cfg1_optimization", False)
    negative = guider.conds.get("negative")
    if wanted and (not negative or getattr(guider, "tiue_no_negative", False)):
        raise ValueError(
            "A patch on this MODEL (such as NAG or SAG) works with a negative prompt, and there is "
            "none: connect one, an empty CLIP Text Encode will do, or remove the patch"
        )


def _unfit(name: str) -> str:
    return f"The sampler {name} does not take a picture made in one step: choose euler"


def _name(sampler: Any) -> str:
    function = getattr(sampler.sampler_function, "__name__", "")
    name = function.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")
    return name or type(sampler).__name__


def _kind(sampling: Any) -> str:
    """A class name that says something: the nodes' own are all 'ModelSamplingAdvanced'."""
    own = ("ModelSamplingAdvanced", "ModelSampling")
    names = [kind.__name__ for kind in type(sampling).__mro__ if kind.__name__ not in own]
    return " ".join(names[:2]) if len(names) > 2 else names[0]


def _running() -> tuple[Any, str | None]:
    """The server and the id of the node that it runs; None outside of a server."""
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer
    except ImportError:
        return None, None
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is None or context is None:
        return None, None
    return server, context.node_id


def _widget(name: str) -> Any:
    """What the running node was given, where the server still knows."""
    server, node = _running()
    if node is None:
        return None
    for item in list(server.prompt_queue.currently_running.values()):
        inputs = item[2].get(node, {}).get("inputs", {})
        if name in inputs:
            return inputs[name]
    return None
