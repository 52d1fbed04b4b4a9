"""The commands at the head of a config's file."""

from __future__ import annotations

import shlex
from pathlib import Path


def commands(path: Path, module: str) -> list[list[str]]:
    """Of each of the head's commands of a module the ``key=value`` that it overrides.

    Args:
        path: the file; other configs' commands are an error.
        module: such as ``train.lora``.
    """
    head = path.read_text("utf-8").split("model:")[0]
    lines = [line[1:] for line in head.splitlines() if line.startswith("#   ")]
    variables: dict[str, str] = {}
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f'"${name}"', shlex.quote(value)).replace(f"${name}", value)
        words = shlex.split(line)
        if len(words) == 1:
            name, _, value = words[0].partition("=")
            variables[name] = value
        elif words[:3] == ["python", "-m", module]:
            assert words[3:5] == ["--config", "/".join(path.parts[-3:])]
            found.append(words[5:])
    return found
