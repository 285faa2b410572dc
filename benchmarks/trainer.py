"""Samples a second of the teacher's update, as it was and as it is.

    python benchmarks/trainer.py

The miniature's UNet, one thread, batch 64: autocast with the CPU's fused attention, with
attention written out (``train/attention.py``), and that with freed memory kept
(``optimize/cpu.py``). Taken in turn, the best of each.
"""

from __future__ import annotations

import copy
import time

import torch

from tiue_core import TiuePipeline
from tiue_core.optimize.cpu import keep_pages
from tiue_core.train.attention import written_out

BATCH, ROUNDS = 64, 4


def main() -> None:
    torch.set_num_threads(1)
    fused = TiuePipeline.from_pretrained("stickers-teacher").unet.float().requires_grad_(True)
    plain = written_out(copy.deepcopy(fused))
    noise, words = torch.randn(BATCH, 4, 16, 16), torch.randn(BATCH, 32, 128)
    timesteps = torch.randint(0, 1000, (BATCH,))

    def autocast(unet: torch.nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            made = unet(noise, timesteps, words).sample
        made.float().square().mean().backward()

    ways = {
        "fused attention": (lambda: autocast(fused), False),
        "attention written out": (lambda: autocast(plain), False),
        "and pages kept": (lambda: autocast(plain), True),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, (way, keep) in ways.items():
            keep_pages(keep)
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name}: {BATCH / seconds:.0f} samples/s")


if __name__ == "__main__":
    main()
