"""Defaults of the user's own: a configuration file, and environment variables.

What the command line says comes first, then `TIUE_COMMAND_OPTION` (such as `TIUE_GENERATE_OUT`),
then the file, then the command's own default. The file is `$TIUE_CONFIG`, or `tiue/config.yaml` in
`$XDG_CONFIG_HOME` (by default `~/.config`), with a section for each command:

    generate:
      out: pictures
      student: stickers
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from ..errors import TiueError


def config_file() -> Path:
    """Where the configuration lies, whether it is there or not."""
    named = os.environ.get("TIUE_CONFIG")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named).expanduser() if named else folder / "tiue" / "config.yaml"


def defaults(commands: Iterable[str], group: Any) -> dict[str, dict[str, Any]]:
    """The file's defaults by command and parameter, as click's ``default_map`` takes them.

    Args:
        commands: names of all commands.
        group: the click group; sections of commands that are not in it are not looked into.

    Raises:
        TiueError: the file is named but missing, is no YAML, or has a section or an option that
            there is not.
    """
    path = config_file()
    if not path.is_file():
        if "TIUE_CONFIG" in os.environ:
            raise TiueError(f"{path} does not exist: check $TIUE_CONFIG")
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        raise TiueError(f"{path} cannot be read as YAML: mend it, or move it away") from None
    if not isinstance(content, dict):
        raise TiueError(f"{path} has no sections: give one for each command, such as 'generate:'")
    found: dict[str, dict[str, Any]] = {}
    for command, section in content.items():
        _known(path, "command", command, list(commands))
        if not isinstance(section, dict):
            raise TiueError(f"{path}: '{command}' has no options below it: give 'option: value'")
        if command in group.commands:
            names = _parameters(group.commands[command])
            for option in section:
                _known(path, f"option of {command}", option, list(names))
            found[command] = {names[option]: value for option, value in section.items()}
    return found


def configured(context: typer.Context, name: str) -> bool:
    """Whether a parameter's value comes from the file or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("DEFAULT_MAP", "ENVIRONMENT")


def _parameters(command: Any) -> dict[str, str]:
    """Options as they are typed, without dashes, to the names of parameters."""
    options = [one for one in command.params if one.param_type_name == "option"]
    return {opt.lstrip("-"): one.name for one in options for opt in one.opts if opt[:2] == "--"}


def _known(path: Path, what: str, name: Any, names: list[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1) or sorted(names)
        raise TiueError(f"{path}: '{name}' is no {what}: try {' or '.join(close)}")
