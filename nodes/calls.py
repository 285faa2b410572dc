"""The three calls of the paper as nodes: Encode, Decode, Combine."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .schema import (
    Features,
    Predictions,
    chunk_input,
    from_noise,
    latent_output,
    model_input,
    schema,
)


class Encode(io.ComfyNode):
    """features = encode(noise, first timestep, prompt)"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEEncode",
            display_name="Encode Once",
            description="The first call of the method: the encoder of the U-Net runs once, on pure "
            "noise, at the first timestep. Decode at All Timesteps takes it from there.",
            search_aliases=["tiue", "encoder features", "unet encoder"],
            inputs=from_noise("The prompt the encoder sees. A ControlNet on it acts here."),
            outputs=[
                Features.Output(
                    display_name="features", tooltip="What all decoders share: skips and middle."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, latent: dict[str, Any], seed: int, decoders: int = 0
    ) -> io.NodeOutput:
        from .native.paint import encode

        return io.NodeOutput(encode(model, positive, latent, seed, decoders))


class Decode(io.ComfyNode):
    """predictions = decode(features, timesteps, prompt)"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEDecode",
            display_name="Decode at All Timesteps",
            description="The second call: the decoder of the U-Net runs at several timesteps at "
            "once, as one batch, on the same features. Its prompt may differ from the encoder's, "
            "and a chain of these gives every timestep a prompt of its own.",
            search_aliases=["tiue", "decoder", "unet decoder", "prompt per timestep"],
            inputs=[
                model_input(),
                Features.Input("features", tooltip="From Encode Once, of the same model."),
                io.Conditioning.Input("positive", tooltip="The prompt these decoders see."),
                io.String.Input(
                    "timesteps",
                    default="",
                    tooltip="Which timesteps to decode at, such as 751, 501. "
                    "Empty: all that the encoder's schedule has.",
                ),
                Predictions.Input(
                    "previous",
                    optional=True,
                    tooltip="Predictions to add these to. Where both have a timestep, these win.",
                ),
                chunk_input(),
            ],
            outputs=[
                Predictions.Output(
                    display_name="predictions", tooltip="One noise prediction per timestep."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        features: Any,
        positive: Any,
        timesteps: str = "",
        previous: Any = None,
        chunk: int = 0,
    ) -> io.NodeOutput:
        from .native import checks, paint

        times = checks.timesteps(timesteps)
        return io.NodeOutput(paint.decode(model, features, positive, times, previous, chunk))


class Combine(io.ComfyNode):
    """latent = S noise + sum E_t predictions"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUECombine",
            display_name="Combine in Closed Form",
            description="The third call: the noise and all predictions become a latent in one "
            "weighted sum (Eq. 11), with no loop. The weights can be changed by hand.",
            search_aliases=["tiue", "closed form", "weights", "weighted sum"],
            inputs=[
                Predictions.Input("predictions", tooltip="From Decode at All Timesteps."),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="A factor for each decoder's weight, noisiest timestep first, such as "
                    "1, 1, 0.5, 0. Empty: as the schedule says.",
                ),
                io.Float.Input(
                    "signal",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="A factor for the weight of the noise, S.",
                ),
            ],
            outputs=[latent_output()],
        )

    @classmethod
    def execute(cls, predictions: Any, weights: str = "", signal: float = 1.0) -> io.NodeOutput:
        from .native import checks, paint

        factors = checks.numbers(weights, len(predictions.timesteps), "weights")
        return io.NodeOutput({"samples": paint.combine(predictions, factors, signal)})


NODES = [Encode, Decode, Combine]
