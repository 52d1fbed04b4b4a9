"""The hub's own client takes the right files, from a server with the hub's interface."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dyntok_jax.model_store.hub import HubError, is_complete, snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled",
    "README.md": b"read me",
    "onnx/config.json": b"{}",
    "modeling_custom.py": b"raise SystemExit",
}


def answer_to(path: str) -> tuple[bytes, str] | None:
    """Content and tag that the hub gives for a path, None where it has nothing."""
    info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": name}
        for name, content in FILES.items()
    ]
    if path.startswith("/api/models/org/tiny/tree/"):
        return json.dumps(tree).encode(), "tree"
    if path.startswith("/api/models/org/tiny"):
        return json.dumps(info).encode(), "info"
    name = path.partition(f"/org/tiny/resolve/{COMMIT}/")[2]
    return (FILES[name], hashlib.sha1(FILES[name]).hexdigest()) if name in FILES else None


class Hub(BaseHTTPRequestHandler):
    def answer(self, body: bool) -> None:
        answer = answer_to(self.path)
        content, tag = answer or (b"", "")
        self.send_response(200 if answer else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{tag}"')
        if not answer:
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Error-Message", "Repository not found")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        unset = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN")
        yield {name: value for name, value in os.environ.items() if name not in unset} | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        server.shutdown()
        thread.join()


def call(environment: dict[str, str], arguments: str) -> subprocess.CompletedProcess[str]:
    # The client reads its environment once, when it is imported: hence a process of its own.
    program = f"from dyntok_jax.model_store.hub import snapshot\nprint(snapshot({arguments}))"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def test_only_safe_files_are_taken(environment: dict[str, str]):
    done = call(environment, "'org/tiny'")
    folder = Path(done.stdout.strip())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert done.stderr == ""
    offline = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert call(offline, "'org/tiny', local_only=True").stdout == done.stdout


def test_tokenizer_alone(environment: dict[str, str]):
    folder = Path(call(environment, "'org/tiny', weights=False").stdout.strip())
    assert sorted(os.listdir(folder)) == ["tokenizer.json", "tokenizer_config.json"]
    assert is_complete(folder, weights=False) and not is_complete(folder, weights=True)


def test_unknown_repository_is_one_line(environment: dict[str, str]):
    done = call(environment, "'org/none'")
    assert done.returncode and "HubError: 404 Client Error" in done.stderr.splitlines()[-1]


def test_nothing_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError) as error:
        snapshot("org/never-fetched", local_only=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        (["tokenizer.json"], False, True),
        (["tokenizer.json", "config.json"], True, False),
        (["config.json", "model.safetensors"], True, False),
        (["tokenizer.json", "model.safetensors"], True, False),
        (["tokenizer.json", "config.json", "model.safetensors"], True, True),
        ([], False, False),
    ],
)
def test_complete_folders(tmp_path: Path, names: list[str], weights: bool, expected: bool):
    for name in names:
        (tmp_path / name).write_text("{}")
    assert is_complete(tmp_path, weights) is expected


def test_every_shard_counts(tmp_path: Path):
    for name in ("tokenizer.json", "config.json", "a.safetensors"):
        (tmp_path / name).write_text("{}")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not is_complete(tmp_path, weights=True)
    (tmp_path / "b.safetensors").write_text("")
    assert is_complete(tmp_path, weights=True)
