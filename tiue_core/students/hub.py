"""The Hugging Face hub: one download, licence first, pinned from then on.

The registry may not know a student's commit. Then the first download asks the hub for it once and
notes it in `tiue-students.json` in the hub's own home folder (`HF_HOME`), together with the licence
that was accepted; every later load uses that very commit, on-line or off. To move on to a newer
one, name it (`owner/name@main`) or delete the entry.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TiueError
from ..io.files import write_atomically
from .folder import whole_set

if TYPE_CHECKING:
    from .registry import AcceptLicense

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+").fullmatch
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def cached(hub_id: str, revision: str | None, file: str = "model_index.json") -> Path | None:
    """The snapshot that has `file`, in the hub's cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    revision = revision or pins().get(hub_id, {}).get("revision") or "main"
    found = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found).parents[file.count("/")] if isinstance(found, str) else None


def download(
    hub_id: str,
    revision: str | None,
    accept: "AcceptLicense",
    terms: str | None,
    bar: type | None = None,
    needed: Callable[[str, list[str]], list[str]] | None = None,
) -> Path:
    """Download what a student needs, and nothing else, after its licence was accepted.

    Args:
        bar: a tqdm class to show progress with; by default the hub's own.
        needed: picks the files, of a repository's name and files; by default a student's.

    Returns:
        The snapshot's folder, named by the commit.

    Raises:
        TiueError: off-line, no such repository, licence not accepted, or no safetensors there.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise TiueError(
            f"{hub_id} is not in the local cache and HF_HUB_OFFLINE is set: unset it to download"
        )
    pinned = pins().get(hub_id, {}).get("revision")
    try:
        info = HfApi().model_info(hub_id, revision=revision or pinned)
    except Exception as error:
        raise _explain(hub_id, revision or pinned, error) from error
    if terms is None:
        license = getattr(info.card_data, "license", None) or "no licence stated"
        terms = f"{hub_id}: {license}, https://huggingface.co/{hub_id}"
    if not (accept(terms) if callable(accept) else accept):
        raise TiueError(
            f"the licence is not accepted ({terms}): "
            "pass --accept-license, or accept_license=True in Python"
        )
    files = (needed or needed_of_student)(hub_id, [one.rfilename for one in info.siblings or []])
    try:
        folder = snapshot_download(hub_id, revision=info.sha, allow_patterns=files, tqdm_class=bar)
    except Exception as error:
        raise _explain(hub_id, info.sha, error) from error
    if revision is None and info.sha is not None:
        pin(hub_id, info.sha, terms)
    return Path(folder)


def folder_of(name: str | Path, accept: "AcceptLicense") -> Path:
    """A folder with one model: one on this disk, or a hub id, downloaded if need be.

    Raises:
        TiueError: neither, or the hub has only pickles.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID(str(name)):
        raise TiueError(f"{name} does not exist: check the path")
    return model_of(str(name), accept)


def model_of(hub_id: str, accept: "AcceptLicense") -> Path:
    """The folder of a repository with one model, downloaded if need be; never one on this disk
    that happens to have its name."""
    here = cached(hub_id, None, "config.json")
    return here or download(hub_id, None, accept, None, needed=needed_of_model)


def needed_of_model(hub_id: str, files: list[str]) -> list[str]:
    """The files of a repository that is one model: config, tokenizer, one set of weights."""
    flat = [file for file in files if "/" not in file]
    weights = [file for file in flat if file.endswith(".safetensors")]
    if not weights:
        raise _only_pickles(hub_id)
    chosen, _ = whole_set(weights)
    return [file for file in flat if file.endswith((".json", ".txt"))] + (chosen or weights)


def needed_of_student(hub_id: str, files: list[str], folders: Sequence[str] = FOLDERS) -> list[str]:
    """The files a student is read from; the fp16 variant only where it is all there is."""
    wanted = ["model_index.json"]
    for name in folders:
        inside = [file for file in files if file.startswith(name + "/") and file.count("/") == 1]
        weights = [file for file in inside if file.endswith(".safetensors")]
        chosen, _ = whole_set([file.removeprefix(name + "/") for file in weights])
        wanted += [file for file in inside if file.endswith((".json", ".txt"))]
        wanted += [f"{name}/{file}" for file in chosen] or weights
    if "model_index.json" not in files or not any(f.startswith("unet/") for f in wanted):
        raise TiueError(f"{hub_id} has no UNet: name a Stable Diffusion-like diffusers repository")
    if not any(file.startswith("unet/") and file.endswith(".safetensors") for file in wanted):
        raise _only_pickles(hub_id)
    return wanted


def _only_pickles(hub_id: str) -> TiueError:
    return TiueError(
        f"{hub_id} holds only pickles, which can run code when they are read: "
        "look for a repository with .safetensors files"
    )


def pins() -> dict[str, Any]:
    """What was pinned: hub id -> revision, licence."""
    try:
        content = json.loads(_pin_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, dict)}


def pin(hub_id: str, revision: str, license: str | None = None) -> None:
    """Use this commit from now on; where that cannot be noted, say so and go on."""
    entry = {"revision": revision, **({"licence": license} if license else {})}
    text = json.dumps({**pins(), hub_id: entry}, indent=2, sort_keys=True)
    try:
        write_atomically(_pin_file(), text.encode() + b"\n")
    except TiueError as error:
        warnings.warn(f"{hub_id} is not pinned: {error}", stacklevel=2)


def _pin_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "tiue-students.json"


def _explain(hub_id: str, revision: str | None, error: Exception) -> TiueError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return TiueError(f"{hub_id} asks for a login: accept its terms there, then `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return TiueError(f"{hub_id} has no revision '{revision}': check it, or leave it out")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return TiueError(f"no student '{hub_id}' on the hub or on this disk: check the name")
    if isinstance(error, OSError) and error.errno == 28:
        return TiueError(f"no space left to download {hub_id}: free some, or set HF_HOME")
    return TiueError(
        f"{hub_id} is not on this disk and the hub cannot be reached ({type(error).__name__}): "
        "check the path or the network"
    )
