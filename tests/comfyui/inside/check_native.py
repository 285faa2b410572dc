"""What ComfyUI hangs on a MODEL reaches the student: LoRA, ControlNet, low VRAM, hooks, FreeU."""

from pathlib import Path

import pytest
import tiny
import torch
from harness import CAPPABLE, TOLERANCE, Student

import comfy.controlnet  # isort: skip
import comfy.model_management as memory  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
import nodes as stock  # isort: skip

PROMPT = "a dog on a blue background"
HINT = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def lora(student, tmp_path):
    """A LoRA file, and the student's pipeline with that LoRA merged by hand."""
    pipe = student.pipe
    with torch.inference_mode(False):
        file = tmp_path / "style.safetensors"
        changes = tiny.lora(file, pipe.unet, pipe.text_encoder)
        models = {"lora_unet": pipe.unet, "lora_te": pipe.text_encoder}
        kept = {}
        for key, change in changes.items():
            prefix, _, name = key.partition(":")
            weight = models[prefix].get_submodule(name).weight
            kept[key] = weight, weight.detach().clone()
            weight.data += change.view(weight.shape) * 0.8
    yield file
    for weight, value in kept.values():
        weight.data.copy_(value)


def with_lora(student, file):
    weights = comfy.utils.load_torch_file(str(file), safe_load=True)
    return comfy.sd.load_lora_for_models(student.model, student.clip, weights, 0.8, 0.8)


def test_lora_through_the_stock_loader(student, nodes, lora):
    plain = nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(2), 3)
    model, clip = with_lora(student, lora)
    assert len(model.patches) == sum("unet" in key for key in tiny_keys(lora))
    out = nodes.OnePassSampler(model, student.condition(PROMPT, clip), student.latent(2), 3)
    reference = student.reference(PROMPT, 3, count=2)
    assert student.distance(plain["samples"], reference) > 100 * TOLERANCE
    assert student.difference(out["samples"], reference) <= TOLERANCE


def tiny_keys(file):
    return {key.split(".")[0] for key in comfy.utils.load_torch_file(str(file), safe_load=True)}


@pytest.fixture
def low_vram(monkeypatch):
    """Every model is loaded as if next to nothing of it fitted."""
    load = memory.LoadedModel.model_load

    def load_little(self, lowvram_model_memory=0, force_patch_weights=False):
        return load(self, 0.1, force_patch_weights)

    memory.unload_all_models()
    monkeypatch.setattr(memory.LoadedModel, "model_load", load_little)
    yield
    memory.unload_all_models()


def test_low_vram(student, nodes, lora, low_vram):
    """Loaded anew: ComfyUI 0.33 forgets a LoRA of a text encoder that was once loaded whole."""
    fresh = Student(student.folder)
    model, clip = with_lora(fresh, lora)
    out = nodes.OnePassSampler(model, student.condition(PROMPT, clip), student.latent(), 3)
    assert model.lowvram_patch_counter() > 0
    assert student.difference(out["samples"], student.reference(PROMPT, 3)) <= TOLERANCE


@pytest.fixture
def wide(tmp_path):
    """A student for whose widths ComfyUI's loader takes an ordinary ControlNet; and one."""
    with torch.inference_mode(False):
        widths = {"block_out_channels": (64, 128, 192)}
        made = Student(tiny.student(tmp_path / "student", **widths))
        file = tmp_path / "controlnet.safetensors"
        return made, file, tiny.controlnet(file, {**tiny.UNET, **widths})


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_controlnet(nodes, wide, guidance):
    compare_with_controlnet(nodes, *wide, guidance)


def test_control_lora(nodes, student, tmp_path):
    file = tmp_path / "control-lora.safetensors"
    with torch.inference_mode(False):
        theirs = tiny.control_lora(file, student.pipe.unet)
    compare_with_controlnet(nodes, student, file, theirs, 1.0)


@pytest.mark.parametrize("start, end, on", [(0.24, 0.26, True), (0.26, 1, False), (0, 0.24, False)])
def test_a_controlnet_acts_at_the_one_noise_level(nodes, student, tmp_path, start, end, on):
    """As the help page says: it is off where its percentages leave out 0.249."""
    file = tmp_path / "control-lora.safetensors"
    with torch.inference_mode(False):
        tiny.control_lora(file, student.pipe.unet)
    control = comfy.controlnet.load_controlnet(str(file))
    positive, _ = stock.ControlNetApplyAdvanced().apply_controlnet(
        student.condition(PROMPT), student.condition(""), control, HINT, 0.7, start, end
    )
    out = nodes.OnePassSampler(student.model, positive, student.latent(), 5)["samples"]
    moved = student.distance(out, student.reference(PROMPT, 5))
    assert moved > 100 * TOLERANCE if on else moved <= TOLERANCE


def compare_with_controlnet(nodes, made, file, theirs, guidance):
    """A ControlNet through ComfyUI's own loader, against diffusers' residuals in SplitUNet."""
    from tiue_pack.tiue_core import SplitUNet, draw_noise

    ours = comfy.controlnet.load_controlnet(str(file), model_options={"dtype": torch.float32})
    positive, negative = made.condition(PROMPT), made.condition("")
    positive, negative = stock.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, ours, HINT, 0.7, 0.0, 1.0
    )
    out = nodes.OnePassSampler(
        made.model, positive, made.latent(2), 5, guidance=guidance, negative=negative
    )

    schedule, unet = made.pipe.schedule(), SplitUNet(made.pipe.unet)
    noise = draw_noise([5, 6], (4, 16, 16))

    def one_way(prompt):
        embeds = made.pipe.encode_prompt([prompt]).expand(2, -1, -1)
        t = schedule.timesteps[0]
        down, mid = theirs(
            noise, t, embeds, HINT.movedim(-1, 1).expand(2, -1, -1, -1), 0.7, return_dict=False
        )
        features = unet.encode(
            noise,
            t,
            embeds,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )
        return schedule.combine(noise, unet.decode(features, schedule.timesteps, embeds))

    reference = one_way(PROMPT)
    plain = made.reference(PROMPT, 5, count=2)
    assert (reference - plain).abs().max() > 100 * TOLERANCE
    if guidance != 1:
        against = one_way("")
        reference = against + guidance * (reference - against)
    assert made.difference(out["samples"], reference) <= TOLERANCE


def test_hooks_and_three_kinds_of_wrappers(student, nodes, lora):
    """A LoRA as a hook on the prompt gives what the LoRA loader gives."""
    import comfy.hooks
    from comfy.patcher_extension import WrappersMP

    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append(executor.class_obj)
        return executor(*args, **kwargs)

    model = student.model.clone()
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL, WrappersMP.CALC_COND_BATCH):
        model.add_wrapper(kind, wrapper)
    weights = comfy.utils.load_torch_file(str(lora), safe_load=True)
    hooks = comfy.hooks.create_hook_lora(weights, 0.8, 0.8)
    _, clip = with_lora(student, lora)
    positive = comfy.hooks.set_hooks_for_conditioning(student.condition(PROMPT, clip), hooks)
    out = nodes.OnePassSampler(model, positive, student.latent(), 3)
    assert len(calls) == 3
    assert student.difference(out["samples"], student.reference(PROMPT, 3)) <= TOLERANCE


def test_freeu_does_not_leak_between_decoders(student, nodes):
    """FreeU writes into the features it is given: K decoders at once and one by one must agree."""
    from comfy_extras.nodes_freelunch import FreeU

    widths = student.model.model.diffusion_model.model_channels
    node = FreeU()
    patch = getattr(node, "patch", None) or node.execute
    model = patch(student.model, 1.3, 1.4, 0.9, 0.2)[0]

    def doubled(h, hsp, options):
        h[:, : h.shape[1] // 2] *= 1.1  # in place, as FreeU does
        return h, hsp

    model.set_model_output_block_patch(doubled)
    positive = student.condition(PROMPT)
    together = nodes.OnePassSampler(model, positive, student.latent(), 3)["samples"]
    single = nodes.OnePassSampler(model, positive, student.latent(), 3, chunk=1)["samples"]
    plain = nodes.OnePassSampler(student.model, positive, student.latent(), 3)["samples"]
    assert widths and (together - single).abs().max() <= TOLERANCE
    assert (together - plain).abs().max() > 100 * TOLERANCE


def test_regions(student, nodes):
    """Two prompts side by side: each half is as its own prompt alone would have it."""
    left = stock.ConditioningSetArea().append(student.condition(PROMPT), 64, 128, 0, 0, 1.0)[0]
    right = stock.ConditioningSetArea().append(student.condition("a cat"), 64, 128, 64, 0, 1.0)[0]
    both = stock.ConditioningCombine().combine(left, right)[0]
    out = nodes.OnePassSampler(student.model, both, student.latent(), 3)["samples"]
    assert out.isfinite().all() and out.std() > 0.1


# --- memory --------------------------------------------------------------------------------


@pytest.fixture
def cap(monkeypatch):
    """Memory for no more than so many images in a decoder; returns the sizes that were tried."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from tiue_pack.nodes.native import unet

    tried = []

    def limit(images):
        run = unet.forward_timestep_embed

        def checked(block, h, *args):
            if isinstance(h, torch.Tensor):
                tried.append(len(h))
                if len(h) > images:
                    raise torch.OutOfMemoryError("out of memory (of this test)")
            return run(block, h, *args)

        monkeypatch.setattr(unet, "forward_timestep_embed", checked)
        return tried

    assert UNetModel
    return limit


@pytest.mark.parametrize("images, chunk", [(4, 2), (2, 1)])
def test_it_halves_its_chunk_when_memory_runs_out(student, nodes, cap, images, chunk):
    positive = student.condition(PROMPT)
    expected = nodes.OnePassSampler(student.model, positive, student.latent(2), 3)["samples"]
    tried = cap(images)
    out = nodes.OnePassSampler(student.model, positive, student.latent(2), 3)["samples"]
    assert set(tried) == {2, 4, 8} if chunk == 1 else {2, 8, 4}
    assert (out - expected).abs().max() <= TOLERANCE


@pytest.mark.skipif(not CAPPABLE, reason="needs glibc's mallopt")
def test_it_halves_its_chunk_when_the_real_allocator_refuses(student, nodes, monkeypatch):
    """Room is taken from the process until four decoders at once do not fit any more."""
    import resource

    from tiue_pack.nodes.native import unet

    tried = []
    decode = unet.ComfyUNet._decode

    def counted(self, features, timesteps, *rest):
        tried.append(len(timesteps))
        return decode(self, features, timesteps, *rest)

    positive, latent = student.condition(PROMPT), student.latent(2, 48, 48)
    expected = nodes.OnePassSampler(student.model, positive, latent, 3)["samples"]
    monkeypatch.setattr(unet.ComfyUNet, "_decode", counted)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    for room in range(160, 0, -1):  # MB
        tried.clear()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room * 2**20, limit[1]))
        try:
            out = nodes.OnePassSampler(student.model, positive, latent, 3)["samples"]
        except RuntimeError as error:  # how finely memory can be taken is the allocator's own
            if tried[:1] == [4] and "memory" in str(error):
                pytest.skip(f"at {room} MB not even one decoder fits where four did just before")
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
        if tried != [4]:
            break
    print(f"{room} MB: {tried} decoders at once")
    assert room < 160 and tried[:2] == [4, 2]
    assert (out - expected).abs().max() <= TOLERANCE


def test_one_decoder_that_does_not_fit_is_an_error(student, nodes, cap):
    cap(1)
    with pytest.raises(torch.OutOfMemoryError):
        nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(2), 3)


def test_the_chunk_follows_free_memory(student, nodes, monkeypatch):
    from tiue_pack.nodes.native import onepass

    shape = [2 * 2, 4, 16, 16]
    room = student.model.model.memory_required(shape) + 1  # for two decoders of two images
    monkeypatch.setattr(onepass.model_management, "get_free_memory", lambda *_: room)
    schedule = onepass.made_of(student.model).schedule()
    student.model.pre_run()
    sampling = student.model.get_model_object("model_sampling")
    one_pass = onepass.OnePass.on(student.model.model, sampling, schedule, onepass.SamplerOptions())
    chunk = one_pass._chunk(torch.zeros(2, 4, 16, 16))
    assert chunk == 2


def test_memory_is_estimated_for_the_decoders(student, nodes, monkeypatch):
    import comfy.sampler_helpers as helpers

    shapes = []
    estimate = helpers.estimate_memory
    monkeypatch.setattr(
        helpers,
        "estimate_memory",
        lambda model, shape, *rest, **more: (
            shapes.append(list(shape)) or estimate(model, shape, *rest, **more)
        ),
    )
    nodes.OnePassSampler(student.model, student.condition(PROMPT), student.latent(3), 3)
    assert shapes == [[12, 4, 16, 16]]


def test_interrupt_stops_before_the_next_chunk(student, nodes, monkeypatch):
    from tiue_pack.nodes.native import unet

    decoded = []
    decode = unet.ComfyUNet._decode

    def interrupting(self, features, timesteps, *rest):
        decoded.append(timesteps.tolist())
        memory.interrupt_current_processing()
        return decode(self, features, timesteps, *rest)

    monkeypatch.setattr(unet.ComfyUNet, "_decode", interrupting)
    positive = student.condition(PROMPT)
    with pytest.raises(memory.InterruptProcessingException):
        nodes.OnePassSampler(student.model, positive, student.latent(), 3, chunk=1)
    assert decoded == [[751]]
    monkeypatch.undo()
    out = nodes.OnePassSampler(student.model, positive, student.latent(), 3)
    assert student.difference(out["samples"], student.reference(PROMPT, 3)) <= TOLERANCE
