"""A model from its config and its safetensors files: built empty, held against them, then filled.

diffusers' and transformers' own loaders choose among files of several formats, follow an index to
whatever it names, and log what they could not fill or use. Here the files are chosen beforehand
(`folder.weights`), no others are opened, and a weight that is missing, left over, of another
shape or no floating-point number is an error. The classes are theirs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import TiueError
from ..io.files import read_header
from ..io.messages import first_line
from . import portable
from .configs import check_values, flat, load_scheduler
from .folder import read_json, weights
from .low_rank import add_low_rank

#: In CLIP's files and of no use to a text encoder: the image's side, what compares both, indices.
_OF_CLIP = re.compile(
    r"(^|\.)position_ids$|^logit_scale$|^(text|visual)_projection\.weight$|^vision_model\."
)
_MOST_TENSORS = 10_000
_LARGEST = 10_000_000  # of any number in a config: widths, vocabularies, sizes
_NO_LIMIT = 1_000_000  # tokens; transformers says 1e30 where nothing does
_WRAPPER = "text_model."  # of CLIPTextModel's names; transformers 5.6 does without


def load_model(kind: Any, folder: Path, dtype: Any = None) -> Any:
    """A model of diffusers or transformers from a folder with its config and weights, for use.

    Args:
        kind: its class.
        dtype: of all its weights; default float32.

    Raises:
        TiueError: no such files, or config and weights do not belong together.
    """
    tensors = read_tensors(weights(folder))
    return fill(empty(kind, folder), tensors, folder, dtype)


def load_unet(folder: Path, dtype: Any = None, adapter: Path | None = None) -> Any:
    """A UNet by itself, from the folder that holds its config and weights.

    ``adapter`` is a file of matrices that become part of the weights (see `low_rank`).
    """
    from diffusers import UNet2DConditionModel

    unet = load_model(UNet2DConditionModel, folder, dtype)
    if adapter is not None:
        add_low_rank(unet, read_tensors([adapter]))
    return unet


def empty(kind: Any, folder: Path) -> Any:
    """A model as its config says, without memory for its weights.

    Raises:
        TiueError: the config is not one of this class.
    """
    from accelerate import init_empty_weights

    config = read_json(folder / "config.json", "copy the folder again")
    _check_depth(config, folder)
    check_values(getattr(kind, "config_class", None) or kind, config, folder / "config.json")
    try:
        with init_empty_weights(include_buffers=False):
            if hasattr(kind, "config_class") and kind.config_class is not None:
                return kind(kind.config_class.from_dict(config))
            return kind.from_config(config)
    except Exception as error:  # constructors assert, index and raise as they please
        raise TiueError(
            f"{folder / 'config.json'} does not describe a {kind.__name__} "
            f"({first_line(error)}): copy the folder again"
        ) from error


def _check_depth(config: Any, folder: Path) -> None:
    """Refuse a config of more layers than its files hold tensors, before anything is built."""
    try:
        tensors = sum(len(read_header(file)) for file in weights(folder))
    except TiueError:  # weights that come from elsewhere, for which this is the shape
        tensors = _MOST_TENSORS
    for key, value in config.items():
        numbers = [n for n in flat(value) if isinstance(n, int) and not isinstance(n, bool)]
        if any(not -1 <= n < _LARGEST for n in numbers):
            raise TiueError(f"{folder / 'config.json'}: {key} is {value!r:.80}: copy it again")
        depth = ("layer" in key and "norm" not in key) or ("num_" in key and "blocks" in key)
        if depth and (sum(numbers) > max(tensors, 1) or min(numbers, default=1) < 0):
            raise TiueError(
                f"{folder / 'config.json'} says {key} is {value!r:.80}, and its files hold "
                f"{tensors} tensors: copy the folder again"
            )


def fill(model: Any, tensors: dict[str, Any], source: Path, dtype: Any = None) -> Any:
    """Give an empty model its weights, under any of the names that they have had.

    Args:
        tensors: by name; emptied on the way, so that no weight is held twice.
        source: where they are from, for messages.

    Raises:
        TiueError: one is missing, left over, of another shape or no floating-point number; it
            names the first.
    """
    import torch

    dtype = dtype or torch.float32
    wanted = model.state_dict()
    of_text = not hasattr(model, "_fix_state_dict_keys_on_load")
    if not of_text:  # diffusers' own renaming, of old autoencoders' attention
        model._fix_state_dict_keys_on_load(tensors)
    state = {}
    for name in list(tensors):
        tensor, ours = tensors.pop(name), _renamed(name, wanted) if of_text else name
        if ours not in wanted:
            if of_text and _OF_CLIP.search(name):
                continue
            raise TiueError(
                f"{source} holds weights that {type(model).__name__} has no place for, {name} for "
                "one: its config.json and its weights do not belong together"
            )
        if tensor.shape != wanted[ours].shape:
            there, here = tuple(tensor.shape), tuple(wanted[ours].shape)
            raise TiueError(
                f"{source}: {name} is {there}, its config says {here}: its config.json and its "
                "weights do not belong together"
            )
        if not tensor.is_floating_point() and wanted[ours].is_floating_point():
            raise TiueError(
                f"{source}: {name} holds integers, not weights: use a file in float16 or float32"
            )
        state[ours] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    missing = wanted.keys() - state.keys()
    if missing:
        raise TiueError(
            f"{source} lacks {len(missing)} of {len(wanted)} weights of {type(model).__name__}, "
            f"{min(missing)} for one (some of its tensors are missing): copy it again"
        )
    model.load_state_dict(state, assign=True)
    return model.eval()


def read_tensors(files: Iterable[Path]) -> dict[str, Any]:
    """All tensors of some files, whose headers are checked first.

    Raises:
        TiueError: one is no sound safetensors file, or two hold the same tensor.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in files:
        twice = read_header(file).keys() & tensors.keys()
        if twice:
            raise TiueError(f"{file} holds {min(twice)} a second time: copy the folder again")
        tensors |= load_file(file)
    return tensors


def class_of(folder: Path, name: str) -> Any:
    """The class that a folder's index names for one of its models.

    Raises:
        TiueError: there is none of that name in diffusers or transformers.
    """
    import diffusers
    import transformers

    libraries: Mapping[str, tuple[Any, Any]] = {
        "diffusers": (diffusers, diffusers.ModelMixin),
        "transformers": (transformers, transformers.PreTrainedModel),
    }
    index = read_json(folder / "model_index.json", "copy the folder again")
    library, kind = index[name]
    module, parent = libraries[library]
    found = getattr(module, str(kind), None)
    if not isinstance(found, type) or not issubclass(found, parent):
        raise TiueError(f"{folder} wants a {kind} of {library} as its {name}: there is none")
    return found


def load_components(folder: Path, names: Iterable[str], dtype: Any = None) -> dict[str, Any]:
    """These models, tokenizers and the scheduler of a diffusers folder, by name."""
    parts = {}
    index = read_json(folder / "model_index.json", "copy the folder again")
    for name in names:
        if name.startswith("tokenizer"):
            parts[name] = load_tokenizer(folder / name, "Fast" in str(index.get(name)))
        elif name == "scheduler":
            parts[name] = load_scheduler(folder)
        else:  # diffusers takes a dtype for each, too
            own = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
            parts[name] = load_model(class_of(folder, name), folder / name, own)
    for name in parts:
        encoder = parts.get(name.replace("tokenizer", "text_encoder"))
        most = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        if name.startswith("tokenizer") and most and parts[name].model_max_length > _NO_LIMIT:
            parts[name].model_max_length = most  # its config is missing, or does not say
    return parts


def load_tokenizer(folder: Path, fast: bool = False) -> Any:
    """CLIP's tokenizer, from the files of older releases or the one of newer ones.

    Args:
        fast: as ``CLIPTokenizerFast``, which transformers before 5 tells from ``CLIPTokenizer``.

    Raises:
        TiueError: there is none that can be read.
    """
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    old = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not old and not (folder / "tokenizer.json").is_file():
        raise TiueError(f"{folder} has no tokenizer: copy the folder again")
    kind = CLIPTokenizerFast if fast else CLIPTokenizer
    said = folder / "tokenizer_config.json"
    if said.is_file():
        read_json(said, "copy the folder again")
    try:
        if old or fast or issubclass(CLIPTokenizerFast, CLIPTokenizer):
            return kind.from_pretrained(str(folder), local_files_only=True)
        with TemporaryDirectory() as place:  # transformers 4 reads none but the older files
            for name in ("tokenizer.json", "tokenizer_config.json"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, Path(place) / name)
            portable.tokenizer(Path(place))
            return kind.from_pretrained(place, local_files_only=True)
    except Exception as error:  # of JSON, of Rust, of types
        raise TiueError(
            f"the tokenizer in {folder} cannot be read ({first_line(error)}): copy it again"
        ) from error


def _renamed(name: str, wanted: Mapping[str, Any]) -> str:
    """A text encoder's weight under the name that the installed transformers gives it."""
    other = name.removeprefix(_WRAPPER) if name.startswith(_WRAPPER) else _WRAPPER + name
    return other if name not in wanted and other in wanted else name
