"""ComfyUI nodes, by purpose. Thin: what they do is in ``native``, imported when one first runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import calls, lists, load, look, sample, train
from .folders import register


class TiueExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*load.NODES, *sample.NODES, *calls.NODES, *look.NODES, *lists.NODES, *train.NODES]


async def comfy_entrypoint() -> TiueExtension:
    register()
    lists.add_routes()
    return TiueExtension()
