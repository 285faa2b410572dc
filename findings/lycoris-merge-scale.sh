#!/usr/bin/env bash
# lycoris-lora 4.1.3: what `merge_to` writes for LoHa and LoKr is not what `forward` adds:
# `get_diff_weight` multiplies by alpha / rank what `get_weight` has multiplied by it already.
# Seen: with alpha 1 and rank 2 the merge is half of what the layer was trained as.
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
for algo, expected in (("lora", 1.0), ("loha", 0.5), ("lokr", 0.5)):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Sequential"]})
    network = lycoris.create_lycoris(
        net, 1.0, algo=algo, linear_dim=2, linear_alpha=1.0, decompose_both=True, factor=8
    )
    x = torch.randn(3, 64)
    with torch.no_grad():
        before = net(x)
        network.apply_to()
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight))
        added = net(x) - before
        network.restore()
        network.merge_to(1.0)
        merged = net(x) - before
    ratio = ((merged * added).sum() / added.square().sum()).item()
    print(f"{algo}: merged / forward = {ratio:.4f}")
    assert abs(ratio - expected) < 1e-3, "this has changed"
P
