"""Feature Atlas: the inside of a pass as pictures, for people who would rather look than read."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .schema import Features, Predictions, schema


class FeatureAtlas(io.ComfyNode):
    """Pictures of the encoder's features and of every decoder's share in the image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEFeatureAtlas",
            display_name="Feature Atlas",
            description="Shows what the encoder hands to all decoders (each feature map in its "
            "three strongest colours), and what every decoder adds to the image.",
            search_aliases=["tiue", "visualize features", "pca", "explain", "inspect"],
            inputs=[
                Features.Input("features", tooltip="From Encode Once."),
                Predictions.Input(
                    "predictions",
                    optional=True,
                    tooltip="From Decode at All Timesteps: adds a page with every decoder's share.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows the sum after each decoder as an image rather than in false "
                    "colours.",
                ),
                io.Int.Input(
                    "image",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip="Which image of the batch to show, from 0.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="encoder", tooltip="The encoder's features."),
                io.Image.Output(display_name="decoders", tooltip="The decoders' shares."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, features: Any, predictions: Any = None, vae: Any = None, image: int = 0
    ) -> io.NodeOutput:
        from .native import atlas

        encoder = atlas.encoder_page(features, image)
        decoders = atlas.decoder_page(predictions, vae, image)
        pages = [encoder[0]] if predictions is None else [encoder[0], decoders[0]]
        return io.NodeOutput(encoder, decoders, ui=ui.PreviewImage(pages, cls=cls))


NODES = [FeatureAtlas]
