"""How long one picture takes and how much memory: warm, batch 1, its parts beside the whole.

Each system is timed in a process of its own, so that none pays for what another left behind. What
was measured is kept in the run's folder: time is the one column that is not the same again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors import TiueError

ROUNDS, WARM = 9, 2
_TIMEOUT = 4 * 3600  # s of one system
PROMPTS = "a photo of a cat", "two red apples", "a house by the sea", "a boat on a lake"


class _Clock:
    """Seconds spent inside some modules, from hooks around them."""

    def __init__(self, device: Any) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)

    def now(self) -> float:
        from ..shared.measure import now

        return now(self.device)

    def watch(self, module: Any, name: str) -> None:
        began: list[float] = []
        module.register_forward_pre_hook(lambda *_: began.append(self.now()))

        def after(*_: Any) -> None:
            self.seconds[name] += self.now() - began.pop()

        module.register_forward_hook(after)


def measure(pipe: Any, *, side: int, decoders: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds (medians; the range of the whole) and bytes, for one picture at a time.

    Text encoder and image decoder are timed by themselves; "unet" is all the rest: UNet, sampler,
    and the way to a PIL image.
    """
    import torch

    from ..bench.memory import Peak

    device = torch.device(pipe.device)
    inner, clock = getattr(pipe, "pipe", pipe), _Clock(device)
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(inner, name, None) is not None:
            clock.watch(getattr(inner, name), "text")
    clock.watch(inner.vae.decoder, "vae")
    found: dict[str, list[float]] = defaultdict(list)
    peak = 0
    for i in range(WARM + rounds):
        prompt = f"{PROMPTS[i % len(PROMPTS)]} {i}"  # a new one: prompts may be remembered
        clock.seconds.clear()
        with Peak(device) as memory:
            start = clock.now()
            pipe(prompt, seed=i, width=side, height=side, decoders=decoders)
            whole = clock.now() - start
        if i < WARM:
            continue
        text, vae = clock.seconds["text"], clock.seconds["vae"]
        peak = max(peak, memory.bytes)
        for key, seconds in (("ms", whole), ("text", text), ("vae", vae)):
            found[key].append(1e3 * seconds)
        found["unet"].append(1e3 * (whole - text - vae))
    medians = {key: statistics.median(values) for key, values in found.items()}
    return {
        **medians,
        "low": min(found["ms"]),
        "high": max(found["ms"]),
        "rounds": rounds,
        "memory": peak or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "pixels": side,
    }


def measured(
    text: str,
    kept: Path,
    key: str,
    *,
    side: int,
    device: str | None,
    dtype: str | None,
    rounds: int,
) -> dict[str, Any]:
    """What `measure` found for the system that ``text`` names, now or in an earlier run.

    Raises:
        TiueError: the process that measures it failed.
    """
    from ..io.files import write_atomically

    file = kept / f"{key}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    order = {"system": text, "side": side, "device": device, "dtype": dtype, "rounds": rounds}
    command = [sys.executable, "-m", __name__, json.dumps(order)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        hours = _TIMEOUT // 3600
        raise TiueError(f"{text} took more than {hours} hours to be timed: try --no-time") from None
    try:
        result = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TiueError(f"{text} could not be timed ({why[:200]}): try --no-time") from None
    write_atomically(file, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _processor() -> str:
    from ..bench.run import processor

    return processor()


def _main() -> None:
    from ..baselines.find import find
    from ..baselines.load import load

    order = json.loads(sys.argv[1])
    found = find(order["system"])
    pipe = load(found, device=order["device"], dtype=order["dtype"])
    result = measure(
        pipe, side=order["side"], decoders=found.system.decoders, rounds=order["rounds"]
    )
    print(json.dumps(result))


if __name__ == "__main__":
    _main()
