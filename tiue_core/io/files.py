"""Files: written whole or not at all, and read with suspicion.

Weights come from strangers, so they are looked at before a loader sees them: a pickle can run
code when it is read, and a safetensors header can lie about what follows it.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ..errors import TiueError

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HEADER_LIMIT = 100_000_000  # bytes; the bound of the safetensors library itself
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


# --- written whole -------------------------------------------------------------------------


def write_atomically(
    path: Path, data: bytes, *, overwrite: bool = True, make_folder: bool = True
) -> None:
    """Write `data` so that `path` holds all of it or does not change.

    The bytes go to a temporary file in the same folder, reach the disk, and only then get their
    name. With `overwrite=False` an existing file is left alone and FileExistsError is raised,
    also when two processes race for the name.

    Raises:
        TiueError: the folder cannot be made or written, or the disk is full.
        FileExistsError: `path` exists and `overwrite` is False.
    """
    temporary = path.with_name(f".tiue-{secrets.token_hex(8)}.part")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _name_if_free(temporary, path)
    except FileExistsError:
        if path.exists() and not overwrite:
            raise
        raise TiueError(f"{path.parent} is a file: give a folder to write to") from None
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def own_file(folder: Path, stem: str, suffix: str, mark: bytes) -> Path:
    """A name for a file that is made anew each time: free, or of one that begins with `mark`.

    Somebody else's file of that name stays, and ours is called `stem-tiue`.
    """
    for name in [stem, f"{stem}-tiue", *(f"{stem}-tiue{number}" for number in range(1, 1000))]:
        path = folder / (name + suffix)
        try:
            with path.open("rb") as file:
                if mark in file.read(4096):
                    return path
        except FileNotFoundError:
            return path
        except OSError:
            continue
    raise TiueError(f"{folder / stem}{suffix} is taken: choose another folder")


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, would survive a power cut."""
    if os.name != "posix":  # elsewhere folders cannot be opened, nor what is only read be flushed
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Make `folder` and write a byte in it, so that hours of work do not end in an error.

    Raises:
        TiueError: the folder cannot be made or written.
    """
    probe = folder / f".tiue-probe-{os.getpid()}"
    write_atomically(probe, b"\n")
    probe.unlink(missing_ok=True)


def _name_if_free(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, it fails when the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: nearly as good
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def explain(error: OSError, path: Path) -> TiueError:
    """An error of the file system in the words of this library."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TiueError(f"no space left to write {path}: free some, or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return TiueError(f"{path.parent} cannot be written: choose a folder you may write to")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return TiueError(f"{path.parent} is not a folder: give a folder to write to")
    reason = error.strerror or type(error).__name__
    return TiueError(f"{path} cannot be written ({reason}): choose another folder")


def safetensors_of(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the same bytes for the same content.

    The library writes metadata in random order, and a file's hash tells pictures apart.
    """
    from safetensors.torch import save

    whole = save(dict(tensors), dict(metadata))
    length = int.from_bytes(whole[:8], "little")
    text = _sorted_header(json.loads(whole[8 : 8 + length]))
    text += b" " * (-len(text) % 8)  # as the format has it, so that tensors are aligned
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def _sorted_header(header: dict[str, Any]) -> bytes:
    if "__metadata__" in header:
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; `read_header` has found it sound."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


# --- read with suspicion -------------------------------------------------------------------


def refuse_pickle(path: Path) -> None:
    """Raise TiueError if `path` is a pickle by its name or by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    # A header's length may begin as a pickle does; a pickle's next bytes are no such length.
    header = int.from_bytes(start[:8], "little") < path.stat().st_size and start[8:] == b"{"
    if path.suffix.lower() in PICKLES or (start.startswith(_PICKLE_MAGIC) and not header):
        raise TiueError(
            f"{path} is a pickle, which can run code when it is read: convert it to .safetensors"
        )


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file, its header checked against its size.

    Raises:
        TiueError: the file is missing, a pickle, truncated, or its header is not what the format
            asks for (length, JSON, dtypes, shapes, offsets that cover the data exactly once).
    """
    if not path.is_file():
        raise TiueError(f"{path} does not exist: check the path")
    try:
        refuse_pickle(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8 or not 2 <= length <= _HEADER_LIMIT:
                raise _broken(path, "it is truncated, or not a safetensors file")
            raw = file.read(length)
    except OSError as error:
        raise TiueError(f"{path} cannot be read ({error.strerror}): check the file") from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise _broken(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a table of tensors")
    header.pop("__metadata__", None)
    _check_offsets(path, header, size - 8 - length)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def check_headers(paths: Iterable[Path]) -> None:
    """Have `read_header` look at each of these files."""
    for path in paths:
        read_header(path)


def _check_offsets(path: Path, header: dict, room: int) -> None:
    spans = []
    for name, entry in header.items():
        try:
            bits, shape = _BITS[entry["dtype"]], entry["shape"]
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise _broken(path, f"the entry of '{name[:80]}' is malformed") from None
        if not isinstance(shape, list) or not all(_is_size(n) for n in (*shape, begin, end)):
            raise _broken(path, f"the entry of '{name[:80]}' is malformed")
        if not begin <= end <= room:
            raise _broken(path, f"'{name[:80]}' reaches past the end of the file")
        if prod(shape) * bits != (end - begin) * 8:
            raise _broken(path, f"'{name[:80]}' has not the size that its shape asks for")
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _broken(path, "its tensors overlap or leave gaps")
        position = end
    if position != room:
        raise _broken(path, "bytes follow its last tensor")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _broken(path: Path, why: str) -> TiueError:
    return TiueError(f"{path} cannot be used, {why}: download or export it again")


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the contents of `paths`, in the order given, names left out."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(file_hash(path)))
    return total.hexdigest()


def tensors_hash(path: Path) -> str:
    """SHA-256 (hex) over what a safetensors file holds: tensors and metadata, by name.

    The library writes metadata in random order, so a file's own hash says less.
    """
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        said = json.dumps(header.pop("__metadata__", None), sort_keys=True)
        digest = hashlib.sha256(said.encode())
        for name, entry in sorted(header.items()):
            begin, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(start + begin)
            for at in range(begin, end, 1 << 20):
                digest.update(file.read(min(1 << 20, end - at)))
    return digest.hexdigest()


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order, in place: the same bytes for the same content."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        text = _sorted_header(json.loads(file.read(length)))
        if len(text) <= length:  # the library writes JSON as compactly
            file.seek(8)
            file.write(text.ljust(length))


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of one file.

    The hub's cache names large files by that very hash: there it is read off the name.
    """
    blob = path.resolve()
    if path.is_symlink() and blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
