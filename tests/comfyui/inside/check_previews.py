"""Previews while sampling: what ComfyUI's own previewer shows beside the decoded picture, small."""

import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from harness import told

import comfy.utils  # isort: skip
import latent_preview  # isort: skip
import nodes as stock  # isort: skip
from comfy import latent_formats  # isort: skip

PROMPTS = (
    "a cat on a red background",
    "a frog on a blue background",
    "a boat on a yellow background",
    "a gift on a green background",
)


@pytest.fixture
def shown(monkeypatch):
    """The previews that a run sends to the page."""
    pictures = []

    def keep(_value, _total, preview, **_more):
        if preview is not None:
            pictures.append(np.asarray(preview[1], float))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", keep)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    return pictures


def runs(nodes, model, clip, way):
    """(samples) of every prompt, by one of the ways through ComfyUI."""
    for seed, prompt in enumerate(PROMPTS):
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        if way == "One-Pass Sampler":
            yield nodes.OnePassSampler(model, positive, latent, seed)["samples"]
        else:
            patched = nodes.PatchModel(model)
            (out,) = stock.KSampler().sample(
                patched, seed, 1, 1.0, "euler", "normal", positive, positive, latent
            )
            yield out["samples"]


def small(vae, samples):
    """(h, w, 3): the decoded picture, every 8 x 8 pixels their mean."""
    pixels = vae.decode(samples).movedim(-1, 1).float()
    return 255 * torch.nn.functional.avg_pool2d(pixels, 8)[0].movedim(0, -1).numpy()


def likeness(shown, wanted):
    """The least correlation of the three colours, and the root mean square of what is apart."""
    shown, wanted = np.concatenate(shown), np.concatenate(wanted)
    channels = [np.corrcoef(shown[..., c].ravel(), wanted[..., c].ravel())[0, 1] for c in range(3)]
    return min(channels), np.sqrt(np.mean((shown - wanted) ** 2))


@pytest.mark.parametrize("way", ["One-Pass Sampler", "KSampler"])
def test_previews_have_the_students_own_colours(nodes, shown, way):
    model, clip, vae = nodes.LoadStudent("stickers")
    samples = list(runs(nodes, model, clip, way))
    wanted = [small(vae, latents) for latents in samples]
    assert [picture.shape for picture in shown] == [(16, 16, 3)] * len(PROMPTS)
    ours, apart = likeness(shown, wanted)

    def by(factors, bias):
        look = latent_preview.Latent2RGBPreviewer(factors, bias)
        inside = [model.model.process_latent_in(latents) for latents in samples]
        return likeness(
            [np.asarray(look.decode_latent_to_preview(z), float) for z in inside], wanted
        )

    theirs, _ = by(latent_formats.SD15().latent_rgb_factors, None)

    from tiue_pack.nodes.native import colours

    inside = torch.cat([model.model.process_latent_in(latents) for latents in samples])
    pixels = torch.from_numpy(np.stack(wanted)).movedim(-1, 1) / 127.5 - 1
    best, _ = by(*(found.tolist() for found in colours.solve(inside, pixels)))
    told.append(
        f"preview, {way}: correlation {ours:.3f} ({apart:.0f} grey levels apart); Stable "
        f"Diffusion's colours {theirs:.3f}, fitted to the pictures {best:.3f}"
    )
    assert ours > 0.9 and theirs < 0.5
    assert ours > best - 0.05  # flat colours tell as much as the pictures themselves


def test_a_saved_student_keeps_its_colours(nodes, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    parts = nodes.LoadStudent("stickers")
    nodes.SaveStudent(*parts, "mine")
    paths, extensions = folder_paths.folder_names_and_paths["checkpoints"]
    places = ([*paths, str(tmp_path / "checkpoints")], extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", places)
    folder_paths.filename_list_cache.clear()
    again, _, _ = nodes.LoadStudent("checkpoints/mine.safetensors")
    ours = torch.tensor(parts[0].model.latent_format.latent_rgb_factors)
    theirs = torch.tensor(again.model.latent_format.latent_rgb_factors)
    assert (ours - theirs).abs().max() < 0.01


def test_a_preview_by_a_tiny_decoder_is_not_stable_diffusions(nodes, tmp_path, monkeypatch):
    """--preview-method taesd with its file there: it would paint other colours."""
    import folder_paths
    from comfy.taesd.taesd import Decoder
    from safetensors.torch import save_file

    save_file(Decoder().state_dict(), tmp_path / "taesd_decoder.safetensors")
    places = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", places)
    folder_paths.filename_list_cache.clear()
    model, _, _ = nodes.LoadStudent("stickers")
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    look = latent_preview.get_previewer(model.load_device, latent_formats.SD15())
    assert type(look) is latent_preview.TAESDPreviewerImpl
    look = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    assert type(look) is latent_preview.Latent2RGBPreviewer
