"""``dyntok generate`` on a tiny random decoder."""

from __future__ import annotations

import json
import shutil

import pytest

from dyntok_jax import generate as generation
from dyntok_jax.embed.source import FvtRows, SourceEmbeddings
from dyntok_jax.large_vocabulary.vocabulary import LargeVocabulary, write_vocabulary
from dyntok_jax.models.weights import load_source
from dyntok_jax.text.base_tokens import BaseTokenizer

PROMPTS = [
    {"prompt": "The old dog doesn't mind"},
    {"messages": [{"role": "user", "content": "<|im_end|> lighthouses on this coast"}]},
    {"prompt": "Großvater sagt"},
]
SHORT = ("--max-new-tokens", 6)


def test_texts_counts_and_seconds(dyntok, decoder):
    run = dyntok("generate", "--model", decoder, "--rows", "fvt", *SHORT, "-", stdin=PROMPTS)
    assert run.code == 0, run.err
    assert len(run.records) == 3 and "tokens before" in run.err
    for record in run.records:
        assert record["tokens"]["new"] == len(record["ids"]) <= 6
        assert record["tokens"]["prompt_dynamic"] < record["tokens"]["prompt_static"]
        assert record["kv_cache"]["dynamic"] < record["kv_cache"]["static"]
        assert set(record["seconds"]) == {"prefill", "decode"}
        assert record["finish"] in ("end", "length") and record["truncated"] == 0
    # The content's special token is text: it takes several tokens.
    static = dyntok("tokenize", "--model", decoder, "--layout", "messages", "--reduction", 0, "-",
                    stdin=PROMPTS[1:2])  # fmt: skip
    assert run.records[1]["tokens"]["prompt_static"] == len(static.records[0]["tokens"])


def test_help_names_all_that_is_written(dyntok, decoder):
    arguments = ("--rows", "fvt", *SHORT, "--codebook", 2, "-")
    run = dyntok("generate", "--model", decoder, *arguments, stdin=PROMPTS[:1])
    (record,) = run.records
    assert len(record["codebook"]) == 2
    parts = (part for value in record.values() if isinstance(value, dict) for part in value)
    shown = dyntok("generate", "--help").out
    for name in (*record, *parts):
        assert f'"{name}"' in shown, name


def test_the_last_word_is_merged_on_request(dyntok, decoder):
    arguments = "--model", decoder, "--rows", "fvt"
    prompt = "The old dog sees lighthouses"
    for command, line, name in (
        (("generate", "--max-new-tokens", 1), {"prompt": prompt}, "prompt_dynamic"),
        (("score",), {"prompt": prompt, "choices": [" a"]}, "dynamic"),
    ):
        ending, whole = (
            dyntok(*command, *arguments, *kept, "-", stdin=[line]).records[0]["tokens"][name]
            for kept in ((), ("--kept-words", 0))
        )
        assert ending == whole + 4  # li gh tho us es


def test_drafts_change_no_text(dyntok, decoder):
    arguments = ("generate", "--model", decoder, "--rows", "fvt", "--max-new-tokens", 30)
    plain = dyntok(*arguments, "-", stdin=PROMPTS).records
    found = dyntok(*arguments, "--lookup-tokens", 4, "-", stdin=PROMPTS).records
    assert [record["ids"] for record in found] == [record["ids"] for record in plain]
    run = dyntok(*arguments, "--lookup-tokens", 4, "--codebook", 1, "-", stdin=PROMPTS)
    assert run.code != 0 and "codebook 1: valid is 0 with lookup_tokens" in run.err


def test_streaming_shows_the_same_text(dyntok, decoder):
    draws = ("--temperature", 1.5, "--top-k", 50, "--seed", 3)
    arguments = ("generate", "--model", decoder, "--rows", "fvt", *SHORT, *draws, "-")
    plain = dyntok(*arguments, stdin=PROMPTS[::2]).records
    for every in ((), ("--stream-every", 4)):
        run = dyntok(*arguments, "--stream", *every, stdin=PROMPTS[::2])
        assert [r["ids"] for r in run.records] == [r["ids"] for r in plain]
        shown = run.err.split("\n3 lines")[0].split("\n2 lines")[0]
        assert plain[0]["text"] + "\n\n" + plain[1]["text"] in shown


@pytest.mark.parametrize(("every", "steps"), [((), 1), (("--stream-every", 4), 4)])
def test_streams_look_at_the_texts_as_often_as_asked(dyntok, decoder, monkeypatch, every, steps):
    real, seen = generation.generate, []

    def noted(model, prompts, how, *rest):
        seen.append(how.steps_together)
        return real(model, prompts, how, *rest)

    monkeypatch.setattr(generation, "generate", noted)
    arguments = ("generate", "--model", decoder, "--rows", "fvt", *SHORT, "--stream", *every, "-")
    assert dyntok(*arguments, stdin=PROMPTS[:1]).code == 0
    assert seen == [steps]


@pytest.mark.parametrize(
    ("arguments", "lines", "said"),
    [
        (("--top-p", 0), PROMPTS, "top_p 0.0: valid is above 0 and up to 1"),
        (("--temperature", -1), PROMPTS, "temperature -1.0: valid is 0, or 1e-06 to"),
        (("--temperature", "nan"), PROMPTS, "temperature nan: valid is 0, or"),
        (("--temperature", 1e-300), PROMPTS, "temperature 1e-300: valid is 0, or"),
        (("--repetition-penalty", 1e300), PROMPTS, "repetition_penalty 1e+300: valid is"),
        (("--eos-bias", 1e300), PROMPTS, "eos_bias 1e+300: valid is"),
        (("--seed", 10**30), PROMPTS, f"seed {10**30}: valid is a number of 64 bits"),
        (("--max-new-tokens", 0), PROMPTS, "max_new_tokens 0: valid is a number from 1"),
        (("--max-new-tokens", 4000), PROMPTS, "reads 1024 tokens, prompt included"),
        (("--stop", ""), PROMPTS, "stop ''"),
        (("--stop", "\udcff"), PROMPTS, r"stop '\udcff': valid is a string"),
        (("--stream", "--merge-together"), PROMPTS, "--merge-together with --stream"),
        (("--stream", "--batch-size", 8), PROMPTS, "--batch-size 8 with --stream"),
        (("--stream-every", 4), PROMPTS, "--stream-every 4: it goes with --stream"),
        (
            ("--stream", "--stream-every", 2, "--vocabulary", "/x", "--index", "/y"),
            PROMPTS,
            "--stream-every: with a ScaNN index",
        ),
        (("--stream", "--stream-every", 0), PROMPTS, "--stream-every"),
        (
            ("--temperature", 1, "--top-k", 10**9),
            PROMPTS,
            "top_k 1000000000: valid is a number up to",
        ),
        (("--codebook", -1), PROMPTS, "codebook -1"),
        (("--codebook", 10**12), PROMPTS, "from 0 to 1024, the tokens that"),
        (("--index", "/nowhere"), PROMPTS, "--index /nowhere: it searches a large vocabulary"),
        (("--vocabulary", "", "--reduction", 0), PROMPTS, "no large vocabulary there"),
        ((), [[1, 2]], "line 1: a list; valid is an object\n"),
        ((), [{"text": "a"}], "line 1: needed is one of the fields 'prompt' and 'messages'"),
        ((), [{"prompt": "a"}, {"prompt": 3}], "line 2: field 'prompt' is a number"),
        ((), [{"messages": []}], "field 'messages' is not a list"),
        (
            ("--max-new-tokens", 1020, "--reduction", 0),
            [{"prompt": "old dog mind"}],
            "standard input, line 1: 6 tokens, and there is room for 4 before the new",
        ),
        (("--vocabulary", "/nowhere", "--reduction", 0), PROMPTS, "no large vocabulary there"),
    ],
)
def test_mistakes_are_one_line(dyntok, decoder, arguments, lines, said):
    run = dyntok("generate", "--model", decoder, "--rows", "fvt", *arguments, "-", stdin=lines)
    assert run.code != 0 and said in run.err and run.err.count("\n") == 1, run.err
    assert run.out == ""


LARGE = ("--vocabulary", "/nowhere")
DRAWN = ("--temperature", 0.5)
MERGED = ("--reduction", 50)
UNMERGED = ("--reduction", 0)


@pytest.mark.parametrize(
    ("idle", "without", "needed"),
    [
        (("--top-k", 3), (), DRAWN),
        (("--top-p", 0.5), (), DRAWN),
        (("--min-p", 0.5), LARGE, DRAWN),
        (("--seed", 1), ("--repetition-penalty", 1.1), DRAWN),
        (("--candidates", 3), DRAWN, LARGE),
        (("--candidates", 3), LARGE, DRAWN),
        (("--candidates", 3), LARGE, ("--repetition-penalty", 1.1)),
        (("--candidates", 3), LARGE, ("--eos-bias", 1)),
        (("--rows", "fvt"), LARGE, MERGED),
        (("--rows", "default", "--language", 0), LARGE, MERGED),
        (("--language", 0), LARGE, MERGED),
        (("--base-rows", "own"), LARGE, MERGED),
        (("--kept-words", 1), LARGE, MERGED),
        (("--merge-together",), LARGE, MERGED),
        (("--kept-words", 1), UNMERGED, MERGED),
        (("--kept-words", 0), (*LARGE, *UNMERGED), MERGED),
        (("--merge-together",), UNMERGED, MERGED),
        (("--codebook", 3), UNMERGED, MERGED),
    ],
)
def test_options_that_would_change_nothing_are_refused(dyntok, tmp_path, idle, without, needed):
    arguments = ("generate", "--model", tmp_path, *without, *idle)
    run = dyntok(*arguments, "-", stdin=PROMPTS)
    assert run.code == 2 and run.err.startswith(f"dyntok: {idle[0]}: ") and needed[0] in run.err
    assert run.out == "" and run.err.count("\n") == 1
    run = dyntok(*arguments, *needed, "-", stdin=PROMPTS)
    assert run.code == 1 and "the folder has neither tokenizer.json" in run.err, run.err


def test_prompts_cut_by_a_large_vocabulary_need_no_rows(dyntok, decoder, tmp_path, caplog):
    tokenizer = BaseTokenizer.from_folder(decoder)
    write_vocabulary(tmp_path / "large", tokenizer, ["Ġlighthouses"], "tiny", {})
    vocabulary = LargeVocabulary.load(tmp_path / "large", tokenizer)
    own = SourceEmbeddings(*load_source(decoder))
    vocabulary.rows_file.predict(vocabulary.row_tokens, FvtRows(own, tokenizer), {})
    arguments = ("generate", "--model", decoder, *SHORT, "--vocabulary", vocabulary.folder)
    run = dyntok(*arguments, "-", stdin=[{"prompt": "The old lighthouses"}])
    assert run.code == 0, run.err
    # No hypernetwork ships for this model, which is said where one would be asked.
    assert "hypernetwork" not in caplog.text
    tokens = run.records[0]["tokens"]
    assert tokens["prompt_dynamic"] == tokens["prompt_static"] - 4  # li gh tho us es
    merged = dyntok(*arguments, *MERGED, "-", stdin=[{"prompt": "The old lighthouses"}])
    assert merged.code == 0 and "hypernetwork" in caplog.text


def test_lines_that_cannot_be_continued_are_named(dyntok, decoder, tmp_path):
    lines = tmp_path / "lines.jsonl"
    long = json.dumps({"prompt": "old dog mind"})
    lines.write_text(f'\n{{"prompt": "a"}}\n\n{long}\n{long}\n', "utf-8")
    few = ("--max-new-tokens", 1020, "--reduction", 0)
    run = dyntok("generate", "--model", decoder, "--rows", "fvt", *few, lines)
    assert run.code == 1 and f"{lines}, line 4: 6 tokens, and there is room for 4" in run.err
    model = shutil.copytree(decoder, tmp_path / "decoder")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}", "utf-8")
    run = dyntok("generate", "--model", model, "--rows", "fvt", *SHORT, "-", stdin=PROMPTS)
    said = "dyntok: standard input, line 2: the chat template refuses the messages: no system role"
    assert run.code == 1 and run.err == f"{said}\n"


def test_a_prompt_too_long_is_cut_and_counted(dyntok, decoder):
    long = {"prompt": "The old dog doesn't mind the lighthouses on this coast at all"}
    options = ("--max-new-tokens", 1016, "--truncate", "left", "--reduction", 0, "--stop", "a")
    run = dyntok("generate", "--model", decoder, *options, "-", stdin=[long])
    assert run.code == 0, run.err
    (record,) = run.records
    # Nothing is merged, so that nothing is saved.
    assert record["tokens"]["prompt_dynamic"] == record["tokens"]["prompt_static"] == 8
    assert record["kv_cache"]["dynamic"] == record["kv_cache"]["static"]
    assert record["truncated"] > 0
    assert f"{record['truncated']} tokens truncated" in run.err
    assert json.dumps(record["text"]).find("a") < 0
