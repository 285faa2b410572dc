"""Diffusers pipelines around the method: text, VAE, memory, and SDXL's layout."""
