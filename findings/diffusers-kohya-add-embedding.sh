#!/usr/bin/env bash
# diffusers 0.42.1: in kohya's naming, SDXL's add_embedding layers under diffusers' own names
# (lora_unet_add_embedding_linear_1) lose their number, both become "add.embedding.linear", and the
# file cannot be loaded; the time embedding's, and the original label_emb names, are read.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "diffusers==0.42.1" "peft==0.21.2" "transformers==5.24.0" \
  "torch==2.13.0" accelerate
cd "$place"
"$place/env/bin/python" -W ignore - <<'P'
import diffusers, torch
from diffusers import StableDiffusionXLPipeline

print("diffusers", diffusers.__version__)


def read(name):
    file = {f"{name}.lora_down.weight": torch.zeros(2, 32), f"{name}.alpha": torch.tensor(2.0)}
    file[f"{name}.lora_up.weight"] = torch.zeros(32, 2)
    return min(StableDiffusionXLPipeline.lora_state_dict(file)[0])


found = {
    name: read(f"lora_unet_{name}")
    for name in ("time_embedding_linear_1", "label_emb_0_0", "add_embedding_linear_1")
}
for name, layer in found.items():
    print(name, "->", layer)
assert found["time_embedding_linear_1"].startswith("unet.time_embedding.linear_1."), "has changed"
assert found["label_emb_0_0"].startswith("unet.add_embedding.linear_1."), "has changed"
assert found["add_embedding_linear_1"].startswith("unet.add.embedding.linear."), "has changed"
P
