"""ComfyUI nodes, by purpose. Thin: what they do is in ``native``, imported when one first runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import calls, invert, lists, load, look, sample, train
from .folders import register


class TiueExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        rooms = (load, sample, invert, calls, look, lists, train)
        return [node for room in rooms for node in room.NODES]


async def comfy_entrypoint() -> TiueExtension:
    register()
    lists.add_routes()
    return TiueExtension()
