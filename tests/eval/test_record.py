"""Options, files and figures of evaluation commands."""

from __future__ import annotations

import argparse
import io
import json
import sys

import numpy as np
import pytest

from dyntok_jax.types import DyntokError
from eval import record, vocabulary_saving
from eval.bootstrap import interval


def test_lists_between_commas():
    assert record.names("static, fvt") == ["static", "fvt"]
    assert record.numbers("681,7") == [681, 7]
    assert record.percents("50,100") == [50.0, 100.0]
    assert record.line_range("501-1000") == (501, 1000)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (record.names, "fvt,"),
        (record.names, "fvt,fvt"),
        (record.numbers, "0"),
        (record.numbers, "1.5"),
        (record.numbers, "7,07"),
        (record.percents, "50,101"),
        (record.percents, "nan"),
        (record.percents, "50,50.0"),
        (record.percent, "50,100"),
        (record.percent, "half"),
        (record.positive, "0"),
        (record.line_range, "5"),
        (record.line_range, "0-5"),
        (record.line_range, "6-5"),
    ],
)
def test_options_that_are_refused(parse, text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="valid"):
        parse(text)


def test_the_command_says_how_products_were_rounded(monkeypatch):
    monkeypatch.setattr("sys.argv", ["record.py", "--out", "a b.json"])
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    assert record._command("eval.recall") == "python -m eval.recall --out 'a b.json'"
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "bfloat16")
    rounded = "JAX_DEFAULT_MATMUL_PRECISION=bfloat16 python -m eval.recall --out 'a b.json'"
    assert record._command("eval.recall") == rounded


def test_the_commit_without_a_history_is_what_was_said(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNTOK_COMMIT", raising=False)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "eval" / "record.py"))
    assert record.git_commit() == "unknown"
    # A checkout, and no git or none of its commits.
    (tmp_path / ".git").mkdir()
    assert record.git_commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.git_commit() == "unknown"
    monkeypatch.setenv("DYNTOK_COMMIT", "abc1234")
    assert record.git_commit() == "abc1234"


@pytest.mark.parametrize("columns", [40, 200])
def test_what_is_printed_is_the_table_of_the_file(command, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    row = {"bits_per_byte": 1.2345, "above_percent": -3.21, "above_interval": (-4.0, -2.0)}
    row["cache_shorter_percent"] = 31.4
    # Numbers as keys, as only the memory has them.
    files = {"a/long/place/of.txt": {"words": {1: row, 4: row | {"above_interval": None}}}}

    def measure(options):
        return {"task": "rewriting", "model": "m", "windows": 3, "files": files}

    def main():
        record.run(record.Parser("eval.rewriting"), measure, names_model=False)

    # A name that is not UTF-8.
    run = command(main, "--out", tmp_path / "\udcff.json")
    assert run.code == 0 and "\\udcff.json" in "".join(run.out.split())
    # No cell is cut, however narrow the place.
    assert " place/of.txt 1 1.234 -3.2 % (-4.0 to -2.0) 31 % " in run.shown
    assert " place/of.txt 4 1.234 -3.2 % 31 %" in run.shown and "…" not in run.out


@pytest.mark.parametrize(
    "content", ["a text\n", "model: e5\n", '{"model_type": "bert"}', "[1]", "2"]
)
def test_what_no_evaluation_wrote_is_not_written_over(command, tmp_path, content):
    out = tmp_path / "out"
    out.write_text(content, "utf-8")

    def main():
        parser = record.Parser("eval.rewriting")
        record.run(parser, lambda _: pytest.fail("it was measured"), names_model=False)

    run = command(main, "--out", out)
    assert run.code == 2 and "out: is there and no evaluation wrote it" in run.err
    assert run.err.count("\n") == 1 and out.read_text("utf-8") == content


@pytest.mark.parametrize("older", ["", '{"task": "rewriting", "commit": "abc1234"}'])
def test_an_older_measurement_is_written_over(command, tmp_path, older):
    out = tmp_path / "out.json"
    out.write_text(older, "utf-8")
    figures = {"task": "rewriting", "model": "m", "windows": 3, "files": {}}

    def main():
        record.run(record.Parser("eval.rewriting"), lambda _: figures, names_model=False)

    assert command(main, "--out", out).code == 0
    assert json.loads(out.read_text("utf-8"))["windows"] == 3


@pytest.fixture
def measured(command, tmp_path):
    """A command that measures nothing, with a table beyond ASCII, and the file it writes."""
    part = {"static_distinct_4": 1, "large_distinct_4": 1, "difference": 0, "words": 1}
    part |= {"difference_interval": None, "left_out": 0}
    figures = {"task": "diversity", "model": "größer", "prompts": 3, "temperature": 1}
    figures["files"] = {"straße.txt": part}

    def main():
        record.run(record.Parser("eval.diversity"), lambda _: figures, names_model=False)

    out = tmp_path / "out.json"
    return lambda: command(main, "--out", out), out


def test_a_table_that_cannot_be_shown_is_one_line(measured, monkeypatch):
    run, out = measured
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        found = run()
    assert found.code == 2 and "out.json is written, its table not shown: No space" in found.err
    assert found.err.count("\n") == 1 and json.loads(out.read_text("utf-8"))["prompts"] == 3


def test_a_table_is_shown_in_ascii(measured, monkeypatch):
    run, _ = measured
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert run().code == 0 and rb"stra\xdfe.txt" in shown.getvalue()


def test_lines_are_counted_from_one(tmp_path):
    path = tmp_path / "xx.txt"
    # Only a line feed ends a line.
    path.write_bytes("\ufeffa\x85b\u2028c\nd\n\ne\n".encode())
    assert record.read_lines(path, None) == ["a\x85b\u2028c", "d", "", "e"]
    assert record.read_lines(path, (2, 3)) == ["d", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a\xff", r"not UTF-8 \(byte 2\)"),
        (b"a\nb\n", "2 lines"),
        (None, "No such"),
    ],
)
def test_files_that_are_refused(tmp_path, content: bytes | None, message: str):
    path = tmp_path / "xx.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DyntokError, match=message):
        record.read_lines(path, (2, 3))


@pytest.mark.parametrize(
    "texts", [["--text", "a.txt", "b.txt", "a.txt"], ["--text", "a.txt", "--mmlu", "./a.txt"]]
)
def test_a_file_that_is_given_twice_is_named(command, tmp_path, monkeypatch, texts):
    monkeypatch.chdir(tmp_path)
    run = command(vocabulary_saving.main, *texts, "--model=m", "--vocabulary=v", "--out=o.json")
    assert run.code == 2 and "a.txt: is given twice" in run.err and run.err.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def test_the_gap_closed():
    assert record.gap_closed(98.0, 83.0, 95.0) == pytest.approx(0.8)
    # Of bits, fewer are better.
    assert record.gap_closed(1.0, 1.2, 1.3) == pytest.approx(-0.5)
    assert record.gap_closed(98.0, 98.0, 99.0) is None


def test_the_interval_of_a_mean_is_the_normal_one():
    samples = np.random.default_rng(1).standard_normal(400)
    found = interval(lambda total: total / 400, samples)
    spread = 1.96 * samples.std() / np.sqrt(400)
    expected = samples.mean() - spread, samples.mean() + spread
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=0.1 * spread)


def test_paired_samples_cancel():
    static = np.random.default_rng(1).uniform(1, 100, 50)
    found = interval(lambda static, other: other / static, static, 1.5 * static)
    assert found is not None
    np.testing.assert_allclose(found, (1.5, 1.5))


def test_no_interval_where_the_figure_is_not_defined():
    assert interval(lambda total: 1 / total, np.array([0.0, 1.0])) is None
