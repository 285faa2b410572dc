#!/usr/bin/env bash
# diffusers 0.42.1: of a LoRA in kohya's naming, a text encoder's attention without `out_proj` is left
# out whole, without an error: its names are recognised by that one layer. The same matrices with an
# `out_proj` of zeros beside them are loaded.
# Seen: q_proj has no adapter without out_proj, and one with it; the MLP has one either way.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "diffusers==0.42.1" "transformers==5.24.0" "peft==0.21.2" \
  "torch==2.13.0" accelerate
"$place/env/bin/python" -W ignore - <<'P'
import diffusers, torch
from diffusers import StableDiffusionPipeline as Pipeline
from transformers import CLIPTextConfig, CLIPTextModel

diffusers.logging.set_verbosity_error()
print("diffusers", diffusers.__version__)


def pair(name, inside, outside, scale=1.0):
    return {
        f"{name}.lora_down.weight": torch.randn(2, inside),
        f"{name}.lora_up.weight": scale * torch.randn(outside, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }


size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
for out_proj in (False, True):
    encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, **size))
    home = "lora_te_text_model_encoder_layers_0_"
    tensors = {**pair(home + "self_attn_q_proj", 32, 32), **pair(home + "mlp_fc1", 32, 64)}
    if out_proj:
        tensors |= pair(home + "self_attn_out_proj", 32, 32, scale=0.0)
    state, alphas = Pipeline.lora_state_dict(tensors)
    Pipeline.load_lora_into_text_encoder(state, alphas, encoder, adapter_name="a")
    found = [name for name, _ in encoder.named_modules() if name.endswith("q_proj.lora_A.a")]
    print(f"out_proj {out_proj}: q_proj has an adapter: {bool(found)}")
    assert any(name.endswith("fc1.lora_A.a") for name, _ in encoder.named_modules())
    assert bool(found) == out_proj, "this has changed"
P
