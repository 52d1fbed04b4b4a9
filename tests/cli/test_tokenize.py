"""``dyntok tokenize`` and the command line itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dyntok_jax.text.byte_level import to_text

ROOT = Path(__file__).parents[2]
TEXTS = [
    {"text": "the lighthouse and the other lighthouse"},
    {"text": "the dog, the dogs"},
]


def text_of(record) -> str:
    return to_text(record["tokens"][1:-1])


def test_all_merges_leave_one_token_a_pretoken(dyntok, folders):
    run = dyntok("tokenize", "--tokenizer", folders["unigram"], "-", stdin=TEXTS)
    assert run.code == 0
    assert run.records[0]["tokens"] == [
        "<s>", "Ġthe", "Ġlighthouse", "Ġand", "Ġthe", "Ġother", "Ġlighthouse", "</s>",
    ]  # fmt: skip
    assert run.records[1]["tokens"] == ["<s>", "Ġthe", "Ġdog", ",", "Ġthe", "Ġdogs", "</s>"]
    assert "2 lines: " in run.err and "saved" in run.err


def test_no_merges_leave_base_tokens_whose_text_is_the_same(dyntok, folders):
    none = dyntok("tokenize", "--tokenizer", folders["unigram"], "--merges", 0, "-", stdin=TEXTS)
    some = dyntok(
        "tokenize", "--tokenizer", folders["unigram"], "--reduction", 50, "-", stdin=TEXTS
    )
    everything = dyntok("tokenize", "--tokenizer", folders["unigram"], "-", stdin=TEXTS)
    lengths = [sum(len(r["tokens"]) for r in run.records) for run in (none, some, everything)]
    assert lengths[0] > lengths[1] > lengths[2]
    for runs in zip(none.records, some.records, everything.records, strict=True):
        assert len({text_of(record) for record in runs}) == 1


@pytest.mark.parametrize("backend", ["host", "device"])
def test_trace_replays_to_the_result(dyntok, folders, tmp_path, backend):
    trace, stdin = tmp_path / "trace.jsonl", [*TEXTS, {"text": "other dogs"}]
    common = ("tokenize", "--tokenizer", folders["fallback_bpe"], "--batch-size", 2)
    base = dyntok(*common, "--merges", 0, "-", stdin=stdin).records
    run = dyntok(*common, "--backend", backend, "--trace", trace, "-", stdin=stdin)
    merges = [json.loads(line) for line in trace.read_text().splitlines()]
    assert {merge["batch"] for merge in merges} == {0, 1}
    for number, (record, wanted) in enumerate(zip(base, run.records, strict=True)):
        tokens = record["tokens"]
        for merge in (merge for merge in merges if merge["batch"] == number // 2):
            assert merge["count"] >= 1
            tokens = replaced(tokens, *merge["pair"])
        # Boundaries may keep a pair apart that the trace merges elsewhere, never the reverse.
        assert tokens == wanted["tokens"]


def replaced(tokens, left, right):
    merged, i = [], 0
    while i < len(tokens):
        both = tokens[i : i + 2] == [left, right]
        merged.append(left + right if both else tokens[i])
        i += 2 if both else 1
    return merged


def test_layouts(dyntok, folders):
    command = ("tokenize", "--tokenizer", folders["unigram"], "--layout")
    pair = dyntok(*command, "pair", "-", stdin=[{"premise": "the dog", "hypothesis": "dogs"}])
    assert pair.records[0]["tokens"] == ["<s>", "Ġthe", "Ġdog", "</s>", "</s>", "Ġdogs", "</s>"]
    words = dyntok(*command, "words", "-", stdin=[{"words": ["the", "dogs", "mind"]}])
    assert words.records[0]["word_ids"] == [None, 0, 1, 2, None]
    prompt = dyntok(*command, "prompt", "-", stdin=[{"prompt": "the dog"}])
    assert prompt.records[0]["tokens"] == ["<s>", "Ġthe", "Ġdog"]
    messages = [{"messages": [{"role": "user", "content": "the <s> dog"}]}]
    chat = dyntok(*command, "messages", "-", stdin=messages)
    assert chat.records[0]["tokens"][0] == "<s>" and chat.code == 0


def test_truncation_is_counted(dyntok, folders):
    arguments = ("tokenize", "--tokenizer", folders["unigram"], "--max-length", 4, "--merges", 0)
    run = dyntok(*arguments, "-", stdin=TEXTS)
    assert [len(record["tokens"]) for record in run.records] == [4, 4]
    assert all(record["tokens"][-1] == "</s>" for record in run.records)
    cut = sum(record["truncated"] for record in run.records)
    assert cut > 0 and f"{cut} tokens truncated" in run.err


def test_per_sample_merges_every_line_alone(dyntok, folders):
    stdin = [{"text": "dog dog dog lighthouse"}, {"text": "lighthouse"}]
    arguments = ("tokenize", "--tokenizer", folders["byte_bpe"], "--layout", "text", "--merges", 1)
    together = dyntok(*arguments, "-", stdin=stdin).records
    apart = dyntok(*arguments, "--per-sample", "-", stdin=stdin).records
    alone = dyntok(*arguments, "-", stdin=stdin[1:]).records
    assert apart[1] == alone[0]
    assert apart[1] != together[1]


def test_pretty_shows_boundaries_before_and_after(dyntok, folders):
    arguments = ("tokenize", "--tokenizer", folders["unigram"], "--format", "pretty", "-")
    before, after = dyntok(*arguments, stdin=[{"text": "lighthouse"}]).out.splitlines()
    assert before.count("│") > after.count("│") == 2
    assert "lighthouse" in after


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\x00\x01", "\ud800 lone", "<s></s>", "a" * 1_000_000, "wörter " * 50_000],
    ids=["empty", "spaces", "control", "surrogate", "special", "one-word", "many-words"],
)
@pytest.mark.parametrize("family", ["byte_bpe", "fallback_bpe", "unigram", "wordpiece"])
def test_odd_texts_work(dyntok, folders, family, text):
    run = dyntok("tokenize", "--tokenizer", folders[family], "-", stdin=[{"text": text}])
    assert run.code == 0, run.err
    assert len(run.records) == 1


def test_ten_thousand_empty_lines_work(dyntok, folders):
    run = dyntok("tokenize", "--tokenizer", folders["unigram"], "-", stdin=[{"text": ""}] * 10_000)
    assert run.code == 0
    assert run.records == [{"tokens": ["<s>", "</s>"], "truncated": 0}] * 10_000
    blank = dyntok("tokenize", "--tokenizer", folders["unigram"], "-", stdin=b"\n" * 10_000)
    assert (blank.code, blank.out) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["tokenise"], b"", "did you mean 'tokenize'"),
        (["tokenize", "--reductoin", "5", "-"], b"", "Did you mean '--reduction'"),
        (["tokenize", "-"], b"", "--tokenizer DIR or --model NAME"),
        (["tokenize", "--tokenizer", "T", "--boundary", "words", "-"], b"", "mean 'word'"),
        (["tokenize", "--tokenizer", "T", "--layout", "txt", "-"], b"", "mean 'text'"),
        (["tokenize", "--tokenizer", "T", "--reduction", "-1", "-"], b"", "0 to 100"),
        (["tokenize", "--tokenizer", "T", "--reduction", "101", "-"], b"", "0 to 100"),
        (["tokenize", "--tokenizer", "T", "--reduction", "nan", "-"], b"", "0 to 100"),
        (["tokenize", "--tokenizer", "T", "--merges", "-1", "-"], b"", "number from 0"),
        (
            ["tokenize", "--tokenizer", "T", "--merges", "1", "--reduction", "1", "-"],
            b"",
            "not both",
        ),
        (
            ["tokenize", "--tokenizer", "T", "--max-length", "1", "-"],
            b'{"text": "a"}',
            "at least 2",
        ),
        (["tokenize", "--tokenizer", "T", "--batch-size", "0", "-"], b"", "x>=1"),
        (["tokenize", "--tokenizer", "T", "-"], b'{"text": "a"}\nno', "line 2: not JSON"),
        (["tokenize", "--tokenizer", "T", "-"], b'{"text": "a"}\n{}', "line 2: no field 'text'"),
        (["tokenize", "--tokenizer", "T", "-"], b'{"text": 5}', "line 1: field 'text' is a number"),
        (["tokenize", "--tokenizer", "T", "-"], b"[]", "line 1: a list"),
        (["tokenize", "--tokenizer", "T", "-"], b'{"text": "\xff"}', "not UTF-8 (byte 0xff"),
        (["tokenize", "--tokenizer", "T", "nowhere.jsonl"], b"", "nowhere.jsonl: No such file"),
        (["tokenize", "--tokenizer", "/nowhere", "-"], b"", "no tokenizer.json"),
        (["tokenize", "--model", "smollm3", "-"], b"", "smollm2-135m-instruct"),
        (["models", "pull", "multilingual-e5-smal"], b"", "multilingual-e5-small"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(dyntok, folders, arguments, stdin, said):
    arguments = [folders["unigram"] if word == "T" else word for word in arguments]
    run = dyntok(*arguments, stdin=stdin)
    assert run.code in (1, 2)
    assert run.out == ""
    assert run.err.count("\n") == 1 and run.err.startswith("dyntok: ")
    assert said in run.err


def test_a_failed_trace_leaves_no_file(dyntok, folders, tmp_path):
    trace = tmp_path / "no" / "trace.jsonl"
    arguments = ("tokenize", "--tokenizer", folders["unigram"], "--trace", trace, "-")
    run = dyntok(*arguments, stdin=TEXTS)
    assert run.code == 1 and "cannot be written" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["models", "tokenize", "rows", "encode", "score", "demo"])
def test_help_has_an_example(dyntok, command):
    run = dyntok(command, "--help")
    assert run.code == 0
    assert "Example:" in run.out and f"dyntok {command}" in run.out


def test_nothing_is_written_over_what_is_read(dyntok, folders, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"text": "the dog"}\n')
    link = tmp_path / "link.jsonl"
    link.symlink_to(lines)
    for trace in (lines, link, tmp_path):
        run = dyntok("tokenize", "--tokenizer", folders["unigram"], "--trace", trace, lines)
        assert run.code == 1 and run.out == "" and run.err.count("\n") == 1
    assert lines.read_text() == '{"text": "the dog"}\n'


def test_pipes_are_not_replaced_and_links_are_followed(dyntok, folders, tmp_path):
    arguments = ("tokenize", "--tokenizer", folders["unigram"], "--trace")
    pipe, target, link = (tmp_path / name for name in ("pipe", "target", "link"))
    os.mkfifo(pipe)
    run = dyntok(*arguments, pipe, "-", stdin=TEXTS)
    assert run.code == 1 and "no regular file" in run.err and pipe.is_fifo()
    link.symlink_to(target)
    assert dyntok(*arguments, link, "-", stdin=TEXTS).code == 0
    assert link.is_symlink() and target.read_text().startswith('{"batch"')


def test_a_tiny_reduction_is_one_merge(dyntok, folders, tmp_path):
    trace = tmp_path / "trace.jsonl"
    arguments = ("tokenize", "--tokenizer", folders["unigram"], "--reduction", "1e-12")
    dyntok(*arguments, "--trace", trace, "-", stdin=TEXTS)
    assert len(trace.read_text().splitlines()) == 1


def closed(arguments, redirections, **environment):
    """The command in a process of its own, with streams as a shell gives them."""
    command = shlex.join([sys.executable, "-c", "from dyntok_jax.cli import main; main()"])
    shell = f"{command} {shlex.join(map(str, arguments))} {redirections}"
    env = os.environ | environment
    return subprocess.run(["bash", "-c", shell], capture_output=True, env=env, cwd=ROOT)


def test_closed_streams_are_no_traceback(folders, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "Großvater"}\n', "utf-8")
    arguments = ["tokenize", "--tokenizer", folders["unigram"], "--merges", "all", file]
    done = closed(arguments, ">&-")
    assert done.returncode == 1
    assert done.stderr == b"dyntok: standard output is closed; give it a place, such as /dev/null\n"
    done = closed(arguments, "2>&-", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "ĠGroÃŁvater" in done.stdout.decode("utf-8")
    done = closed([*arguments[:-1], tmp_path / "nowhere"], "2>&-")
    assert done.returncode == 1 and done.stdout == b""
