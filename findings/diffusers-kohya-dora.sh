#!/usr/bin/env bash
# diffusers 0.42.1: DoRA in kohya's names (`NAME.dora_scale` beside lora_up and lora_down) is read
# as a plain LoRA; its magnitudes are dropped with one line in the log.
# Seen: the very same tensors with and without dora_scale.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "diffusers==0.42.1" "peft==0.21.2" "transformers==5.24.0" \
  "torch==2.13.0" accelerate
cd "$place"
"$place/env/bin/python" -W ignore - <<'P'
import diffusers, torch
from diffusers import StableDiffusionPipeline

print("diffusers", diffusers.__version__)
name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
plain = {
    f"{name}.lora_down.weight": torch.randn(2, 32),
    f"{name}.lora_up.weight": torch.randn(32, 2),
    f"{name}.alpha": torch.tensor(2.0),
}
dora = {**plain, f"{name}.dora_scale": torch.full((32, 1), 3.0)}
one, two = (StableDiffusionPipeline.lora_state_dict(dict(file)) for file in (plain, dora))
print(*two[0], sep="\n")
same = one[0].keys() == two[0].keys() and all(torch.equal(one[0][k], two[0][k]) for k in one[0])
print("the same as without dora_scale:", same)
assert same and not any("dora" in key or "magnitude" in key for key in two[0]), "this has changed"
P
