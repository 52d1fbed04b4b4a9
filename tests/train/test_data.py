"""Batches follow from seed and position, in the asked proportions, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import draccus
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyntok_jax.types import DyntokError
from train.data import DataConfig, TextBatch, batches
from train.task import Loaded
from train.text_sources import TextSource


def keep(batch: TextBatch):
    """The texts themselves, so that tests see them."""
    return batch, sum(map(len, batch.texts))


class SomeOnly:
    """Finds nothing in batches of even seeds, or of any."""

    def __init__(self, none: bool = False):
        self.none = none

    def __call__(self, batch: TextBatch):
        return None if self.none or batch.seed % 2 == 0 else keep(batch)


def fail(batch: TextBatch):
    raise DyntokError(f"cannot read {batch.texts[0]}")


def die(batch: TextBatch):
    os._exit(9)


def write(folder: Path, language: str, count: int, **fields) -> TextSource:
    path = folder / f"{language}.txt"
    path.write_text("".join(f"{language} {i}\n" for i in range(count)))
    return TextSource(language, files=str(path), **fields)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    sources = write(tmp_path, "de", 30), write(tmp_path, "sw", 10), write(tmp_path, "th", 7)
    return DataConfig(sources, exponent=0.5, texts=4, workers=0)


def drawn(config: DataConfig, count: int, **options) -> list[Loaded]:
    options = {"prepare": keep, "seed": 1} | options
    return list(islice(batches(config, **options), count))


def texts(loaded: list[Loaded]) -> list[str]:
    return [text for item in loaded for text in item.batch.texts]


def test_same_seed_same_batches(config):
    first = drawn(config, 30)
    assert first == drawn(config, 30)
    assert texts(first) != texts(drawn(config, 30, seed=2))
    assert len({item.batch.seed for item in first}) == 30
    for item in first:
        assert [text.split()[0] for text in item.batch.texts] == item.batch.languages
        assert item.tokens == sum(map(len, item.batch.texts))


def test_workers_change_nothing(config):
    here = drawn(config, 20)
    assert drawn(dataclasses.replace(config, workers=2), 20) == here


@pytest.mark.parametrize("at", [1, 9, 25])
def test_a_resumed_run_gets_the_following_batches(config, at):
    loaded = drawn(config, 40, prepare=SomeOnly())
    position = json.loads(json.dumps(loaded[at - 1].position))
    assert drawn(config, 40 - at, prepare=SomeOnly(), position=position) == loaded[at:]
    assert loaded[-1].position["batch"] == 40 + loaded[-1].position["skipped"]
    assert loaded[-1].position["skipped"] > 5


def test_every_epoch_is_another_order_of_the_same_texts(tmp_path):
    config = DataConfig((write(tmp_path, "de", 10),), texts=5, workers=0)
    read = texts(drawn(config, 8))
    epochs = [read[i : i + 10] for i in range(0, 40, 10)]
    assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_read_disjoint_parts_of_the_same_languages(tmp_path):
    config = DataConfig((write(tmp_path, "de", 60), write(tmp_path, "sw", 60)), texts=4, workers=0)
    both = [drawn(config, 7, process_index=i, process_count=2) for i in range(2)]
    read = [texts(loaded) for loaded in both]
    assert not set(read[0]) & set(read[1])
    for first, second in zip(*both, strict=True):
        assert first.batch.languages == second.batch.languages
        assert first.batch.seed == second.batch.seed
    # 240 texts a process: two epochs of each language, over both processes.
    read = [texts(drawn(config, 60, process_index=i, process_count=2)) for i in range(2)]
    assert set(read[0]) | set(read[1]) == {
        f"{name} {i}" for name in ("de", "sw") for i in range(60)
    }
    counts = Counter(read[0] + read[1])
    for language in ("de", "sw"):
        of_language = [count for text, count in counts.items() if text.startswith(language)]
        assert max(of_language) - min(of_language) <= 1


@pytest.mark.parametrize("one_language", [False, True])
@pytest.mark.parametrize(
    ("exponent", "expected"), [(1.0, (0.6, 0.2, 0.2)), (0.0, (1 / 3,) * 3), (2.0, (9, 1, 1))]
)
def test_languages_come_in_proportion(tmp_path, one_language, exponent, expected):
    sources = (
        write(tmp_path, "de", 30),
        write(tmp_path, "sw", 10),
        write(tmp_path, "th", 5, weight=2.0),
    )
    config = DataConfig(sources, exponent, one_language, texts=4, workers=0)
    loaded = drawn(config, 2000)
    counts = Counter(language for item in loaded for language in item.batch.languages)
    draws = 2000 if one_language else 8000
    for language, share in zip(("de", "sw", "th"), expected, strict=True):
        share = share / sum(expected)
        deviation = (share * (1 - share) / draws) ** 0.5
        assert abs(counts[language] / 8000 - share) < 4 * deviation
    mixed = [len(set(item.batch.languages)) for item in loaded]
    assert (max(mixed) == 1) == one_language


def test_sources_of_a_language_share_it(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("x\n" * 10)
    sources = write(tmp_path, "de", 30), write(tmp_path, "sw", 40)
    more = TextSource("de", files=str(other), weight=3.0)
    loaded = drawn(DataConfig((*sources, more), exponent=0.0, texts=4, workers=0), 2000)
    counts = Counter(text.split()[0] for text in texts(loaded))
    assert abs(counts["sw"] / 8000 - 1 / 2) < 0.025
    assert abs(counts["x"] / 8000 - 1 / 4) < 0.02


@pytest.fixture
def streams(tmp_path, monkeypatch) -> DataConfig:
    """Two streamed datasets, read in blocks of 8, and a file."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("train.data.STREAM_BLOCK", 8)
    sources = [write(tmp_path, "th", 500)]
    for language, count in (("de", 23), ("sw", 11)):
        (tmp_path / language).mkdir()
        table = pa.table({"text": [f"{language} {i}" for i in range(count)]})
        pq.write_table(table, tmp_path / language / "train.parquet")
        weight = 2.0 if language == "sw" else 1.0
        source = TextSource(
            language, dataset=str(tmp_path / language), streaming=True, weight=weight
        )
        sources.append(source)
    return DataConfig(tuple(sources), texts=4, workers=0)


def test_streams_resume_and_restart(streams):
    loaded = drawn(streams, 40)
    positions = json.loads(json.dumps([item.position for item in loaded]))
    for at in (1, 7, 18, 39):
        assert drawn(streams, 40 - at, position=positions[at - 1]) == loaded[at:]
    swahili = [text for text in texts(loaded) if text.startswith("sw")]
    assert set(swahili[:11]) == set(swahili[11:22]) == {f"sw {i}" for i in range(11)}
    assert swahili[:8] != [f"sw {i}" for i in range(8)]
    assert set(swahili[:8]) == {f"sw {i}" for i in range(8)}


def test_streams_go_on_in_as_many_parts(streams):
    """A stream's place is of the texts of one part; files are read by turns, in any number."""
    position = drawn(streams, 3)[-1].position
    with pytest.raises(DyntokError, match="as many parts as before, 1; these are 2"):
        batches(streams, keep, seed=0, position=position, process_index=0, process_count=2)
    files = dataclasses.replace(streams, sources=streams.sources[:1])
    position = drawn(files, 3)[-1].position
    both = [
        list(
            islice(
                batches(files, keep, seed=0, position=position, process_index=i, process_count=2), 2
            )
        )
        for i in range(2)
    ]
    seen = [*texts(drawn(files, 3)), *texts(both[0]), *texts(both[1])]
    assert len(set(seen)) == len(seen) == 3 * 4 + 2 * 2 * 4


def test_with_a_stream_the_weights_alone_count(streams):
    counts = Counter(text.split()[0] for text in texts(drawn(streams, 500)))
    for language, share in (("de", 0.25), ("sw", 0.5), ("th", 0.25)):
        assert abs(counts[language] / 2000 - share) < 0.05


def test_a_stream_without_texts_is_named(tmp_path, streams):
    pq.write_table(pa.table({"text": ["", None, " "]}), tmp_path / "de" / "train.parquet")
    with pytest.raises(DyntokError, match=r"dataset .*\(de\): holds no text"):
        drawn(streams, 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_useless_batches_are_an_error(config, workers):
    config = dataclasses.replace(config, workers=workers)
    with pytest.raises(DyntokError, match="100 batches in a row held nothing to train on"):
        drawn(config, 1, prepare=SomeOnly(none=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_preparation_is_raised_here(config, workers):
    config = dataclasses.replace(config, workers=workers)
    with pytest.raises(DyntokError, match=r"^cannot read \w\w \d+$"):
        drawn(config, 1, prepare=fail)


def test_a_worker_that_dies_is_an_error(config):
    with pytest.raises(DyntokError, match="a worker process of the input side died"):
        drawn(dataclasses.replace(config, workers=1), 1, prepare=die)


def test_a_position_of_other_sources_is_refused(config):
    position = drawn(config, 1)[0].position
    fewer = dataclasses.replace(config, sources=config.sources[:2])
    with pytest.raises(DyntokError, match=r"of 3 sources, data\.sources has 2"):
        batches(fewer, keep, seed=1, position=position)


def test_other_texts_than_before_are_refused(config, tmp_path):
    position = drawn(config, 3)[-1].position
    write(tmp_path, "sw", 11)
    with pytest.raises(DyntokError, match=r"sw\.txt: 11 texts, 10 before; resume with the texts"):
        batches(config, keep, seed=1, position=position)


def test_a_missing_file_is_told_before_the_first_batch(config):
    missing = dataclasses.replace(config, sources=(TextSource("de", files="none.txt"),))
    with pytest.raises(DyntokError, match="no such file"):
        batches(missing, keep, seed=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": 0}, "^texts: 0 is not at least 1$"),
        ({"workers": -1}, "workers: -1"),
        ({"sources": ()}, "^sources is empty"),
    ],
)
def test_bad_settings_are_named(config, fields, message):
    with pytest.raises(DyntokError, match=message):
        dataclasses.replace(config, **fields)


def test_a_config_is_read_from_plain_values(config):
    assert draccus.decode(DataConfig, draccus.encode(config)) == config
    with pytest.raises(Exception, match="column_name"):
        draccus.decode(DataConfig, {"sources": [{"language": "de", "column_name": "x"}]})


SCRIPT = """
import sys, time
from train.data import DataConfig, batches
from train.text_sources import TextSource

def keep(batch):
    return batch, 1

if __name__ == "__main__":
    config = DataConfig((TextSource("de", files=sys.argv[1]),), texts=2, workers=2)
    loaded = batches(config, keep, seed=1)
    next(loaded)
    print("ready", flush=True)
    if sys.argv[2] == "stay":
        time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts SCRIPT in a process group of its own and waits for its first batch."""
    write(tmp_path, "de", 10)
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start_script(what: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", tmp_path / "de.txt", what],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n"
        return process

    yield start_script
    for process in started:
        process.kill()
        process.communicate()


def descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(descendants(int(c)) for c in children))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc of Linux")
def test_workers_do_not_outlive_a_killed_run(start):
    process = start("stay")
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.kill()
    end = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc of Linux")
def test_a_signal_to_the_group_does_not_reach_the_workers(start):
    process = start("stay")
    workers = {pid for pid in descendants(process.pid) if b"spawn_main" in cmdline(pid)}
    assert len(workers) == 2
    end = time.monotonic() + 20
    while process.pid in map(os.getpgid, workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert process.pid not in map(os.getpgid, workers)


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_run_that_ends_with_batches_begun_does_not_hang(start):
    process = start("end")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.parametrize("changes", [{"exponent": float("nan")}, {"exponent": -1e4}])
def test_shares_that_are_no_numbers(config, changes):
    with pytest.raises(DyntokError, match="give no shares"):
        next(batches(dataclasses.replace(config, workers=0, **changes), keep, seed=0))
