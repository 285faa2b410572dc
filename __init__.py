"""TiUE for ComfyUI: one-pass text-to-image students as native models.

ComfyUI imports this folder as a package. Anything else that happens upon this file (pytest does)
imports it too, sometimes as a package, and then there is nothing in it.
"""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

if __package__ and find_spec("comfy_api"):
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
