"""TiUE for ComfyUI: one-pass text-to-image students as native models.

ComfyUI imports this folder as a package. Anything else that happens upon this file (pytest does)
imports it on its own, and then there is nothing in it.
"""

WEB_DIRECTORY = "./web"

if __package__:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
