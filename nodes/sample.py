"""Nodes that paint: the whole pass as one node, as a SAMPLER, as a patch for the stock KSampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .schema import (
    check_speed,
    chunk_input,
    decoders_input,
    from_noise,
    latent_output,
    model_input,
    schema,
    seed_input,
    speed_input,
)


class OnePassSampler(io.ComfyNode):
    """Noise and prompt to a latent: one encoder pass, K decoders in parallel, no loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEOnePassSampler",
            display_name="One-Pass Sampler",
            description="Paints in a single pass: the encoder runs once on the noise, all decoders "
            "run in parallel, their predictions are combined in closed form. No steps, no loop.",
            search_aliases=[
                "tiue",
                "one step",
                "few step",
                "ksampler",
                "loopfree",
                "one-way ticket",
            ],
            inputs=[
                *from_noise("What the picture should show."),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Classifier-free guidance. Students are trained to do without: 1 is "
                    "best and twice as fast.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to guide away from. Used only where guidance is not 1.",
                ),
                chunk_input(),
                speed_input(),
            ],
            outputs=[latent_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent: dict[str, Any],
        seed: int,
        decoders: int = 0,
        guidance: float = 1.0,
        negative: Any = None,
        chunk: int = 0,
        speed: str = "plain",
    ) -> io.NodeOutput:
        from .native import notes
        from .native.closed_form import SamplerOptions
        from .native.paint import one_pass

        options = SamplerOptions(decoders, guidance, chunk, check_speed(speed))
        with notes.collected() as told:
            samples = one_pass(model, positive, negative, latent, seed, options)
        # The page shows and pins the seed of the picture; JSON has no integers that large.
        shown = {"seed": [str(seed)], "notes": told}
        return io.NodeOutput({**latent, "samples": samples}, ui=shown)


class SamplerObject(io.ComfyNode):
    """The pass as a SAMPLER, for SamplerCustomAdvanced with any guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUESampler",
            display_name="One-Pass SAMPLER",
            description="The one-pass sampler for SamplerCustom and SamplerCustomAdvanced, with "
            "any guider. Feed it the SIGMAS of One-Pass Sigmas.",
            search_aliases=["tiue", "custom sampler", "ksampler select", "one step"],
            inputs=[chunk_input(), speed_input()],
            outputs=[io.Sampler.Output(tooltip="For the sampler input of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, chunk: int = 0, speed: str = "plain") -> io.NodeOutput:
        from .native.closed_form import SamplerOptions
        from .native.onepass import OnePassSampler as Sampler

        return io.NodeOutput(Sampler(SamplerOptions(chunk=chunk, speed=check_speed(speed))))


class Sigmas(io.ComfyNode):
    """The student's own noise levels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUESigmas",
            display_name="One-Pass Sigmas",
            description="The noise levels of the student's timesteps, and the one it ends at. "
            "ComfyUI's ddim_uniform ends elsewhere, and differs where the number of decoders does "
            "not divide 1000.",
            search_aliases=["tiue", "scheduler", "timesteps", "ddim"],
            inputs=[model_input(), decoders_input()],
            outputs=[
                io.Sigmas.Output(
                    tooltip="For One-Pass SAMPLER. With euler they give the step-by-step loop "
                    "that one pass replaces."
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, decoders: int = 0) -> io.NodeOutput:
        from .native import checks, closed_form, onepass

        checks.student(model)
        schedule = closed_form.schedule_of(onepass.made_of(model), decoders)
        return io.NodeOutput(closed_form.sigmas_of(schedule))


class SeedPerImage(io.ComfyNode):
    """NOISE in which every image of a batch has its own seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUENoise",
            display_name="Noise, a Seed per Image",
            description="Noise for SamplerCustomAdvanced in which every image of a batch has a "
            "seed of its own, as in One-Pass Sampler. Random Noise draws a batch from one seed.",
            search_aliases=["tiue", "random noise", "batch seed", "seed per image"],
            inputs=[seed_input()],
            outputs=[io.Noise.Output(tooltip="For the noise input of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        from .native.paint import Noise

        return io.NodeOutput(Noise(seed))


class PatchModel(io.ComfyNode):
    """A MODEL for the stock KSampler at one step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEPatchModel",
            display_name="Patch Model (One Pass)",
            description="Makes the stock KSampler paint in one pass: set its steps to 1, cfg to 1, "
            "denoise to 1 and the scheduler to normal or simple.",
            search_aliases=["tiue", "ksampler", "model sampling", "patch"],
            inputs=[model_input(), decoders_input(), chunk_input(), speed_input()],
            outputs=[io.Model.Output(tooltip="For the stock KSampler, at one step.")],
        )

    @classmethod
    def execute(
        cls, model: Any, decoders: int = 0, chunk: int = 0, speed: str = "plain"
    ) -> io.NodeOutput:
        from .native import checks, onepass
        from .native.closed_form import SamplerOptions

        checks.student(model)
        options = SamplerOptions(decoders, chunk=chunk, speed=check_speed(speed))
        return io.NodeOutput(onepass.patched(model, options))


NODES = [OnePassSampler, SamplerObject, Sigmas, SeedPerImage, PatchModel]
