"""Models from the Hugging Face hub, through its own client and its own cache."""

from __future__ import annotations

import json
from pathlib import Path

_TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]


class HubError(Exception):
    """The hub did not give the model; the message is the reason, one line."""


def snapshot(
    repository: str,
    *,
    weights: bool = True,
    local_only: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Path:
    """The folder of a repository's files in the hub client's cache, downloaded where missing.

    Only safetensors, JSON and tokenizer files are taken, and none from subfolders.

    Args:
        repository: `organisation/name`.
        weights: take all of these files, not the tokenizer's alone.
        local_only: no network; only what an earlier download left.
        force: download anew.
        progress: show the client's progress bars.

    Raises:
        HubError: no network, no such repository, no access, or nothing in the cache.
    """
    import huggingface_hub
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                allow_patterns=_MODEL_FILES if weights else _TOKENIZER_FILES,
                ignore_patterns=["*/*"],
                etag_timeout=5,
                local_files_only=local_only,
                force_download=force,
                tqdm_class=None if progress else Silent,
            )
        )
    # The client lets errors of several libraries through; each only means: not from here.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise HubError(reason) from error


def is_complete(folder: Path, weights: bool) -> bool:
    """Whether a folder holds a tokenizer and, if `weights`, a config and every weight file."""
    if not (folder / "tokenizer.json").is_file():
        return False
    if not weights:
        return True
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", *shards))
