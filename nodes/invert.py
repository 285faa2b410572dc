"""Invert for One Pass: a picture to the noise that paints it, so that another prompt edits it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .schema import model_input, schema, seed_input


class Invert(io.ComfyNode):
    """The noise whose one pass paints a given picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEInvert",
            display_name="Invert for One Pass",
            description="Finds the noise from which the student paints a given picture, by "
            "gradient steps. With that noise, One-Pass SAMPLER and another prompt paint the "
            "picture changed, in one pass.",
            search_aliases=["tiue", "img2img", "inversion", "edit", "image to image", "unsample"],
            inputs=[
                model_input(),
                io.Conditioning.Input("positive", tooltip="What the given picture shows."),
                io.Latent.Input("picture", tooltip="VAE Encode of the picture."),
                seed_input(),
                io.Int.Input(
                    "steps",
                    default=80,
                    min=1,
                    max=1000,
                    tooltip="Gradient steps; each takes as long as three pictures or so. 30 keep "
                    "the outlines, 80 the details.",
                ),
            ],
            outputs=[
                io.Noise.Output(
                    tooltip="For SamplerCustomAdvanced, with One-Pass SAMPLER, One-Pass Sigmas and "
                    "an Empty Latent Image of the picture's size."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, picture: dict[str, Any], seed: int, steps: int = 80
    ) -> io.NodeOutput:
        from .native import inverting, notes

        with notes.collected() as told:
            noise = inverting.invert(model, positive, picture, seed, steps)
        return io.NodeOutput(noise, ui={"notes": told})


NODES = [Invert]
