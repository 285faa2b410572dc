"""Diffusers pipelines around the method: text, VAE, memory, and SDXL's layout."""

from .base import TiueOutput, TiuePipeline
from .sdxl import TiueXLPipeline

__all__ = ["TiueOutput", "TiuePipeline", "TiueXLPipeline"]
