"""TiUE for the Stable Diffusion WebUI family (Forge): a sampler that paints in one pass.

Loaded by ``scripts/tiue.py`` under the name ``tiue_webui``, for ``webui`` is the host's own module.
Forge's model runs, block by block, with whatever hangs on it; nothing of Forge is replaced.
"""
