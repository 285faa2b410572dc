#!/usr/bin/env bash
# lycoris-lora 4.1.3: a DoRA at strength 0 is not off. `get_merged_weight` hands the multiplier to
# the magnitude alone: (W + dW) (1 + m (dora_scale / |W + dW| - 1)), so that m = 0 leaves W + dW.
# Seen: a plain LoRA at strength 0 changes nothing; a DoRA at strength 0 is dW away.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q "lycoris-lora==4.1.3" "torch==2.13.0" einops toml tqdm
"$place/env/bin/python" - <<'P'
import logging
import lycoris, torch
from torch import nn

logging.disable(logging.CRITICAL)
print("lycoris-lora 4.1.3, torch", torch.__version__)
for dora in (False, True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Sequential"]})
    network = lycoris.create_lycoris(
        net, 1.0, algo="lora", linear_dim=2, linear_alpha=2.0, dora_wd=dora
    )
    before = net[0].weight.detach().clone()
    module = network.loras[0]
    with torch.no_grad():
        network.apply_to()
        for weight in (module.lora_up.weight, module.lora_down.weight):
            weight.copy_(torch.randn_like(weight))
        network.restore()
        added = module.lora_up.weight @ module.lora_down.weight
        network.merge_to(0.0)
    left = ((net[0].weight - before).norm() / added.norm()).item()
    print(f"{'DoRA' if dora else 'LoRA'} merged at strength 0: {left:.4f} of dW is left")
    assert abs(left - dora) < 1e-3, "this has changed"
P
