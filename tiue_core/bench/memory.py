"""Peak memory while something runs."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``with Peak(device) as peak: ...``, then ``peak.bytes``: on a GPU what PyTorch allocated, on
    Linux what the process held, models included; 0 where neither can be asked."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                _RESET.write_text("5")  # the high-water mark of resident memory
            except OSError:
                self.device = torch.device("meta")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self.device.type == "cpu":
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM"):
                    self.bytes = 1024 * int(line.split()[1])
