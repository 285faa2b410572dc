"""A real ComfyUI server with the pack linked in, a scratch base folder, and a port of its own."""

from __future__ import annotations

import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_server import RUN_LIMIT, HostServer, Refused
from place import ROOT, Comfy

__all__ = ["Prompt", "Refused", "Run", "Server", "nodes_of", "to_prompt"]
Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What became of a prompt."""

    prompt: Prompt
    status: str  # "success" or "error"
    messages: dict[str, Any]  # by event
    outputs: dict[str, Any]  # by node id
    seconds: float  # of the server's own CPU time where the system tells, else elapsed

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that ran, rather than came from the cache."""
        return set(self.prompt) - set(self.messages.get("execution_cached", {}).get("nodes", ()))

    @property
    def images(self) -> list[dict[str, str]]:
        return [image for output in self.outputs.values() for image in output.get("images", ())]

    @property
    def error(self) -> dict[str, Any]:
        return self.messages["execution_error"]


class Server(HostServer):
    """ComfyUI without other packs; its log is ``base / server.log``."""

    ready = "/system_stats"

    def __init__(self, comfy: Comfy, base: Path) -> None:
        super().__init__(comfy, base)
        for folder in ("custom_nodes", "models/loras", "models/controlnet", "models/tiue", "input"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "tiue").symlink_to(ROOT, target_is_directory=True)
        self.extra = base / "extra_model_paths.yaml"
        self.extra.write_text(f"tests:\n  base_path: {base}\n  tiue: elsewhere\n")

    def command(self) -> list[str]:
        return [
            *(self.host.python, "main.py", "--cpu", "--port", str(self.port)),
            *("--base-directory", str(self.base), "--disable-api-nodes"),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", "tiue"),
            *("--extra-model-paths-config", str(self.extra)),
            *("--database-url", "sqlite:///:memory:", "--fp32-text-enc"),
        ]

    def view(self, image: dict[str, str]) -> bytes:
        """A picture that a node made."""
        return self.read(f"/view?{urllib.parse.urlencode(image)}")

    def queue(self, prompt: Prompt) -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": "tests"})["prompt_id"]

    def wait(self, prompt_id: str, prompt: Prompt, began: float) -> Run:
        elapsed = time.monotonic()
        while not (entry := self.get(f"/history/{prompt_id}").get(prompt_id)):
            assert self.process.poll() is None, "the server died"
            assert time.monotonic() - elapsed < RUN_LIMIT, "the prompt did not end"
            time.sleep(0.05)
        messages = dict(entry["status"]["messages"])
        status = entry["status"]["status_str"]
        return Run(prompt, status, messages, entry["outputs"], self.clock() - began)

    def run(self, prompt: Prompt) -> Run:
        began = self.clock()
        return self.wait(self.queue(prompt), prompt, began)


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """What the page makes of a workflow file when it queues it."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in info:  # notes
            continue
        definition = info[node["type"]]["input"]
        values = iter(node["widgets_values"])
        inputs = {
            slot["name"]: links[slot["link"]]
            for slot in node["inputs"]
            if slot.get("link") is not None
        }
        for name, spec in {
            **definition.get("required", {}),
            **definition.get("optional", {}),
        }.items():
            options = spec[1] if len(spec) > 1 else {}
            if not isinstance(spec[0], list) and spec[0] not in WIDGETS:
                continue
            # Widgets that came after the file was saved take their default, as in the page.
            inputs.setdefault(name, next(values, options.get("default")))
            if options.get("control_after_generate"):
                next(values)
        assert next(values, None) is None, f"{node['type']} has values left over"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def nodes_of(prompt: Prompt, kind: str) -> list[dict[str, Any]]:
    """The inputs of all nodes of a class, in the order of their ids."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
