"""Texts come out of every kind of source as they went in, and mistakes are named."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyntok_jax.types import DyntokError
from train.text_files import text_of, windows
from train.text_sources import Stream, TextSource, open_stream, open_texts

TEXTS = ["ein Haus", "Bäume und\u2028Straßen", "你好", "a", "zwei  Worte"]


def source(files: Path | str, **fields) -> TextSource:
    return TextSource("de", files=str(files), **fields)


def local(files: Path | str, max_chars: int = 100, **fields) -> list[str]:
    return list(open_texts(source(files, **fields), max_chars))


@pytest.fixture
def files(tmp_path) -> Path:
    """TEXTS as a file of every kind."""
    lines = "\ufeff" + "\r\n".join(TEXTS[:2]) + "\n \n\n" + "\n".join(TEXTS[2:])
    (tmp_path / "a.txt").write_bytes(lines.encode())
    records = [json.dumps({"text": text, "id": i}) for i, text in enumerate([*TEXTS, None, " "])]
    (tmp_path / "a.jsonl").write_text("\n\n".join(records), "utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(records).encode()))
    table = pa.table({"text": [*TEXTS, None], "id": list(range(6))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    return tmp_path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file_gives_its_texts(files, kind):
    assert local(files / f"a.{kind}") == TEXTS


def test_texts_can_be_read_in_any_order(files):
    texts = open_texts(source(files / "a.txt"), 100)
    assert [texts[3], texts[-1], texts[1], *texts[1:3]] == [
        TEXTS[3],
        TEXTS[4],
        TEXTS[1],
        *TEXTS[1:3],
    ]


def test_a_glob_reads_its_files_in_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert local(tmp_path / "*.txt") == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_lines_are_counted_from_one_with_the_blank_ones(files):
    assert local(files / "a.txt", lines="2-5") == [TEXTS[1], TEXTS[2]]
    assert local(files / "a.txt", lines="1,6-7", exclude_lines="6") == [TEXTS[0], TEXTS[4]]
    assert local(files / "a.parquet", exclude_lines="1-3") == TEXTS[3:]


def test_long_texts_are_cut_at_spaces():
    assert list(windows(" eins  zwei drei vier ", 9)) == ["eins", "zwei drei", "vier"]
    assert list(windows("eins zwei", 4)) == ["eins", "zwei"]
    assert list(windows("abcdefg", 3)) == ["abc", "def", "g"]
    assert list(windows("ดีกี้", 3)) == ["ดี", "กี้"]  # marks stay with their letter


@given(st.text(alphabet="ab ก้\u3000ä\n", max_size=60), st.integers(1, 12))
def test_windows_lose_nothing_but_white_space(text, max_chars):
    cut = list(windows(text, max_chars))
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(0 < len(window) <= max_chars and window == window.strip() for window in cut)


def test_windows_of_a_file_are_those_of_its_lines(tmp_path):
    text = "Über die  Brücke ging 你好你好你好 der\u3000Großvater\n"
    (tmp_path / "a.txt").write_text(text * 2, "utf-8")
    assert local(tmp_path / "a.txt", 7) == list(windows(text, 7)) * 2


MISTAKES = {
    "a file that is not there": ("none.txt", {}, "no such file"),
    "a glob of nothing": ("*.nothing", {}, "matches no file"),
    "an empty file": ("empty.txt", {}, "empty.txt is empty"),
    "blank lines only": ("blank.txt", {}, "holds no text"),
    "another encoding": ("latin.txt", {}, r"line 2: not UTF-8 \(byte 0xfc at position 2\)"),
    "another kind": ("a.csv", {}, r"valid are \.txt, \.jsonl, \.jsonl\.gz, \.parquet"),
    "a folder": ("folder", {}, "is no file"),
    "lines beyond the end": ("a.txt", {"lines": "5-8"}, "line 8 is asked for; it has 7 lines"),
    "lines of several": ("a.*", {"lines": "1-2"}, "of one file, and 5 match"),
    "a column of jsonl": ("a.jsonl", {"column": "x"}, "line 1: no column 'x'; it has id, text"),
    "a column of parquet": ("a.parquet", {"column": "x"}, "no column 'x'; it has id, text"),
    "a column of numbers": ("a.parquet", {"column": "id"}, "'id' holds int, not strings"),
    "no JSON": ("bad.jsonl", {}, "line 1: not JSON"),
    "no object": ("list.jsonl", {}, "line 1: not a JSON object"),
    "no parquet": ("bad.parquet", {}, "not readable as parquet"),
    "no gzip": ("bad.jsonl.gz", {}, "cannot be read"),
    "gzip cut off": ("cut.jsonl.gz", {}, "cannot be read"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_files_are_named_in_one_line(files, case):
    (files / "folder").mkdir()
    for name in ("bad.jsonl", "bad.parquet", "bad.jsonl.gz", "a.csv"):
        (files / name).write_text("{ no\n")
    (files / "empty.txt").touch()
    (files / "blank.txt").write_text("\n \n")
    (files / "list.jsonl").write_text("[1]\n")
    (files / "latin.txt").write_bytes("gut\nfünf\n".encode("latin-1"))
    (files / "cut.jsonl.gz").write_bytes((files / "a.jsonl.gz").read_bytes()[:-12])
    name, fields, message = MISTAKES[case]
    with pytest.raises(DyntokError, match=message) as error:
        local(files / name, **fields)
    assert name.lstrip("*").split(".")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_in_a_column_of_a_file(tmp_path, kind):
    parts = [{"en": "two", "de": "zwei"}, None, {"en": "one", "de": None}]
    rows = [{"premise": part, "a.b": str(i)} for i, part in enumerate(parts)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    columns = {"premise.en": ["two", "one"], "premise.de": ["zwei"], "a.b": ["0", "1", "2"]}
    for column, texts in columns.items():
        assert local(tmp_path / f"a.{kind}", column=column) == texts
    with pytest.raises(DyntokError, match=r"no column '(premise\.)?fr'; it has .*\bde\b"):
        local(tmp_path / f"a.{kind}", column="premise.fr")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "0 of files, dataset and tfds are given"),
        ({"files": "a.txt", "dataset": "b"}, "2 of files, dataset and tfds"),
        ({"files": "a.txt", "weight": 0.0}, "must be above 0"),
        ({"files": "a.txt", "streaming": True}, "streaming does not go with files"),
        ({"files": "a.txt", "split": "test"}, "split does not go with files"),
        ({"tfds": "a", "config_name": "b"}, "config_name does not go with tfds"),
        ({"dataset": "a", "lines": "1-2"}, "lines does not go with dataset"),
        ({"dataset": "hf://datasets/a/*.jsonl", "config_name": "b"}, "config_name does not go"),
        ({"dataset": "hf://datasets/a/*.csv"}, r"valid are files \.jsonl, \.jsonl\.gz and"),
        ({"files": "a.txt", "lines": "3-2"}, "valid is like"),
        ({"files": "a.txt", "exclude_lines": "0"}, "valid is like"),
        ({"files": "a.txt", "lines": "9" * 5000}, "lines '.{,50}': valid is like"),
        ({"files": "a.txt", "lines": "1-٣"}, "valid is like"),
    ],
)
def test_mistakes_in_a_source_are_named(fields, message):
    with pytest.raises(DyntokError, match=message):
        TextSource("de", **fields)


def test_a_part_of_a_column_is_read():
    record = {"a": {"b": b"gut", "c": 1}, "a.d": "besser"}
    assert [text_of(record, column, "x") for column in ("a.b", "a.d")] == ["gut", "besser"]
    for column, message in (("a.x", "no column 'x'; it has b, c"), ("a.c", "holds int")):
        with pytest.raises(DyntokError, match=message):
            text_of(record, column, "x")


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory) -> Iterator[Path]:
    """Four shards of five texts: a folder that ``datasets`` loads by its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        folder = tmp_path_factory.mktemp("hub")
        for shard in range(4):
            table = pa.table({"text": [f"{shard}-{i}" for i in range(5)], "n": list(range(5))})
            pq.write_table(table, folder / f"train-{shard}.parquet")
        yield folder


SHARDS = [f"{shard}-{i}" for shard in range(4) for i in range(5)]


def hub(folder: Path, **fields) -> list[str]:
    return list(open_texts(TextSource("de", dataset=str(folder), **fields), 100))


def hub_stream(folder: Path, *part: int, **fields) -> Stream:
    source = TextSource("de", dataset=str(folder), streaming=True, **fields)
    return open_stream(source, *part)


def test_a_dataset_is_read_whole(hub_folder):
    assert hub(hub_folder) == SHARDS


def test_a_dataset_is_streamed_from_any_position(hub_folder):
    stream = hub_stream(hub_folder)
    assert stream.read(7) == SHARDS[:7]
    position = json.dumps(stream.position())
    assert stream.read(100) == SHARDS[7:]
    assert stream.read(1) == []
    stream.seek(None)
    assert stream.read(2) == SHARDS[:2]
    again = hub_stream(hub_folder)
    again.seek(json.loads(position))
    assert again.read(100) == SHARDS[7:]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_stream_disjoint_parts(hub_folder, processes):
    parts = [hub_stream(hub_folder, i, processes).read(99) for i in range(processes)]
    assert all(parts)
    assert sorted(chain(*parts)) == SHARDS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"column": "x"}, "no column 'x'; it has n, text"),
        ({"split": "test"}, "Unknown split|Bad split"),
        ({"config_name": "de"}, "BuilderConfig 'de' not found"),
    ],
)
def test_mistakes_in_a_dataset_are_named(hub_folder, fields, message):
    with pytest.raises(DyntokError, match=message):
        hub(hub_folder, **fields)
    with pytest.raises(DyntokError, match=message):
        hub_stream(hub_folder, **fields).read(1)


def latin_lines(folder: Path) -> None:
    (folder / "train.jsonl").write_bytes('{"text": "gut"}\n{"text": "fünf"}\n'.encode("latin-1"))


def latin_text(folder: Path) -> None:
    (folder / "train.txt").write_bytes("gut\nfünf\n".encode("latin-1"))


def latin_parquet(folder: Path) -> None:
    raw = pa.array(["gut".encode("latin-1"), "fünf".encode("latin-1")], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"text": strings}), folder / "train.parquet")


def broken_lines(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"text": "gut"}\n{no')


NOT_UTF8 = "can't decode byte 0xfc"
DAMAGES = [
    (latin_lines, NOT_UTF8),
    (latin_text, NOT_UTF8),
    (latin_parquet, NOT_UTF8),
    (broken_lines, "JSON parse error"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_dataset_is_named_with_the_reason(tmp_path, monkeypatch, damage, reason):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "damaged"
    folder.mkdir()
    damage(folder)
    for read in (hub, lambda folder: hub_stream(folder).read(9)):
        with pytest.raises(DyntokError) as error:
            read(folder)
        message = str(error.value)
        assert message.startswith(f"dataset {folder} (de): cannot be ") and reason in message
        assert "\n" not in message


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory) -> str:
    """Ten texts, prepared as TFDS keeps them."""
    import tensorflow_datasets as tfds

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int32})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                yield i, {"text": f"übung {i}", "n": i}

    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyText(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


EXERCISES = [f"übung {i}" for i in range(10)]


def test_tfds_is_read_whole(tfds_folder):
    texts = open_texts(TextSource("de", tfds=tfds_folder), 100)
    assert sorted(texts) == EXERCISES


def test_tfds_is_streamed_from_any_position_in_disjoint_parts(tfds_folder):
    name = TextSource("de", tfds=tfds_folder, streaming=True)
    streams = [open_stream(name, i, 3) for i in range(3)]
    parts = [stream.read(2) + stream.read(99) for stream in streams]
    assert sorted(chain(*parts)) == EXERCISES
    assert [stream.read(1) for stream in streams] == [[], [], []]
    streams[1].seek(None)
    streams[1].read(1)
    again = open_stream(name, 1, 3)
    again.seek(json.loads(json.dumps(streams[1].position())))
    assert again.read(99) == parts[1][1:]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"column": "x"}, "no column 'x'; it has n, text"), ({"split": "test"}, "Unknown split")],
)
def test_mistakes_in_tfds_are_named(tfds_folder, fields, message):
    with pytest.raises(DyntokError, match=message):
        open_texts(TextSource("de", tfds=tfds_folder, **fields), 100)


def test_a_damaged_tfds_is_named_with_the_reason(tfds_folder, tmp_path):
    shutil.copytree(tfds_folder, folder := tmp_path / "tiny_text" / "1.0.0")
    (data,) = folder.glob("*.array_record*")
    raw = data.read_bytes()
    # The sum that the file keeps of its records is no longer theirs.
    data.write_bytes(raw.replace("übung".encode(), b"\xff" * 6))
    source = TextSource("de", tfds=str(folder), streaming=True)
    with pytest.raises(DyntokError, match=r"tfds .*1\.0\.0 \(de\): cannot be read \(.+\)$"):
        open_stream(source).read(9)


def test_an_unknown_tfds_is_named_in_one_line():
    with pytest.raises(DyntokError, match=r"tfds nonesuch .*not found") as error:
        open_texts(TextSource("de", tfds="nonesuch"), 100)
    assert len(str(error.value)) < 400
