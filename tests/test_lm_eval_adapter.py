"""The model for lm-evaluation-harness, against the harness's own for transformers.

What the adapter takes from the package is tested without the harness: ``ids_layout`` in
text/test_layouts.py, ``target_scores`` in test_scoring.py. The adapter itself cannot be imported
without the harness; only what is held against transformers needs torch too.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_folders import decoder, folders  # noqa: F401

from dyntok_jax.model_store import list_models, resolve
from dyntok_jax.types import DyntokError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed ([lm-eval])")
# The harness's libraries warn of one another.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "tests" / "fixtures" / "harness_tasks"
REAL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def tiny(
    decoder: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny decoder, whose tokenizer transformers takes as it is, and can decode with."""
    folder = tmp_path_factory.mktemp("tiny") / "decoder"
    shutil.copytree(decoder, folder)
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for name, fields in (
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("tokenizer.json", {"decoder": {"type": "ByteLevel", **byte_level}}),
    ):
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(content | fields), "utf-8")
    weights = load_file(folder / "model.safetensors")
    # With large tied rows each token would follow itself.
    weights["model.embed_tokens.weight"] *= 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Samples of a task, by document: what the model answered to each request."""
    monkeypatch.chdir(ROOT)
    import lm_eval  # pyright: ignore[reportMissingImports]
    from datasets import config
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from dyntok_jax import lm_eval_adapter  # noqa: F401

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)

    def run(model: str, task: str, arguments: dict[str, Any], **options: Any) -> list[Any]:
        found = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[task],
            task_manager=tasks,
            bootstrap_iters=0,
            **options,
        )
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        return [response[0] for sample in samples for response in sample["resps"]]

    return run


def of_transformers(folder: Path, **arguments: Any) -> dict[str, Any]:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    return {"pretrained": str(folder), "dtype": "float32", "device": "cpu", **arguments}


def check_scores(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 30
    np.testing.assert_allclose([s for s, _ in ours], [s for s, _ in theirs], atol=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize(("max_length", "chat"), [(None, False), (40, False), (None, True)])
def test_scores_at_0_are_those_of_transformers(harness, tiny, max_length, chat):
    length = {} if max_length is None else {"max_length": max_length}
    options = {"apply_chat_template": chat, "batch_size": 4}
    theirs = harness("hf", "tiny_choices", of_transformers(tiny, **length), **options)
    given = {"model": str(tiny), "rows": "base", "reduction": 0, **length}
    check_scores(harness("dyntok", "tiny_choices", given, **options), theirs)


@pytest.mark.parametrize("max_length", [1024, 7])
def test_whole_texts_are_scored_in_the_same_windows(harness, tiny, max_length):
    theirs = harness("hf", "tiny_texts", of_transformers(tiny, max_length=max_length))
    given = {"model": str(tiny), "rows": "base", "reduction": 0, "max_length": max_length}
    ours = harness("dyntok", "tiny_texts", given)
    assert len(ours) == 12
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_texts_at_0_are_those_of_transformers(harness, tiny, chat):
    options = {"apply_chat_template": chat, "batch_size": 4}
    theirs = harness("hf", "tiny_answers", of_transformers(tiny), **options)
    given = {"model": str(tiny), "rows": "base", "reduction": 0}
    ours = harness("dyntok", "tiny_answers", given, **options)
    assert ours == theirs
    assert len(set(ours)) > 3


def test_the_command(tiny, monkeypatch, tmp_path, capsys):
    import datasets.config

    from dyntok_jax.cli import dyntok

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    given = ["lm-eval", "--model", "dyntok", "--model_args", f"model={tiny},rows=fvt,reduction=50"]
    dyntok.main(
        [*given, "--include_path", str(TASKS), "--tasks", "tiny_choices,tiny_answers"],
        standalone_mode=False,
    )
    assert re.search(r"\|tiny_choices *\|.*\|acc *\|", capsys.readouterr().out)


@pytest.mark.slow
def test_real_scores_at_0_are_those_of_transformers(harness):
    if not any(entry.name == REAL and entry.cached for entry in list_models()):
        pytest.skip(f"{REAL} is not there (dyntok models pull {REAL})")
    theirs = harness("hf", "tiny_choices", of_transformers(resolve(REAL)), batch_size=8)
    given = {"model": REAL, "reduction": 0, "batch_size": 8}
    ours = harness("dyntok", "tiny_choices", given, batch_size=1)
    check_scores(ours, theirs)
    assert any(greedy for _, greedy in ours)
    theirs = harness("hf", "tiny_answers", of_transformers(resolve(REAL)), batch_size=8)
    ours = harness("dyntok", "tiny_answers", given)
    assert ours == theirs
    assert any(ours)


def test_contexts_are_merged_and_what_is_scored_is_not(tiny):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    half, whole = (DyntokLM(str(tiny), "fvt", reduction) for reduction in (50, 100))
    encode = whole.tok_encode
    text = "The lighthouse keeper", " climbed the stairs"
    requests = [(text, *whole._encode_pair(*text)), (None, [1], encode("Geschichten"))]
    seen = []
    for model in (half, whole):
        scores = model._loglikelihood_tokens(requests, disable_tqdm=True)
        assert all(score < 0 and greedy is False for score, greedy in scores)
        seen.append([score for score, _ in scores])
    assert seen[0][0] != seen[1][0]
    # Behind the opening token alone there is nothing to merge.
    assert seen[0][1] == pytest.approx(seen[1][1], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": 120}, "120"),
        ({"reduction": "half"}, "reduction 'half': valid is 0 to 100"),
        ({"boundary": "pretokens"}, "did you mean 'pretoken'"),
        ({"batch_size": "auto"}, "batch_size 'auto'"),
        ({"max_length": 0}, "max_length 0"),
        ({"kept_words": -1}, "kept_words -1: valid is a number from 0"),
        ({"seed": "x"}, "seed 'x': valid is a whole number"),
        ({"index": "/nowhere"}, "index /nowhere: it is of a large vocabulary"),
    ],
)
def test_values_that_are_not_valid(tiny, arguments, message):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    with pytest.raises(DyntokError, match=message):
        DyntokLM(str(tiny), "fvt", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "tiny", "reductoin": 50}, "unknown 'reductoin'.*did you mean 'reduction'"),
        ({"reduction": 50}, "model=NAME"),
    ],
)
def test_arguments_that_are_not_there(arguments, message):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    with pytest.raises(DyntokError, match=message):
        DyntokLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": None})


def test_a_continuation_that_does_not_fit(tiny):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    model = DyntokLM(str(tiny), "fvt", max_length=4)
    with pytest.raises(DyntokError, match="a continuation of 5 tokens; valid are 4"):
        model._loglikelihood_tokens([(None, [1], [5, 6, 7, 8, 9])], disable_tqdm=True)


def test_the_last_word_of_a_context_is_merged_on_request(tiny):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    def scored(**given):
        model = DyntokLM(str(tiny), "fvt", **given)
        context, ending = (model.tok_encode(text) for text in ("The old lighthouses", " here"))
        assert model._settings({}).kept_words == given.get("kept_words", 1)
        return model._loglikelihood_tokens([(None, context, ending)])[0][0]

    assert abs(scored() - scored(kept_words=0)) > 1e-3
    assert scored(kept_words=9) == pytest.approx(scored(reduction=0), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"until": "\n"}, {"stop": ("\n",), "max_new_tokens": 256, "temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0, "stop": ()}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "top_k": 50}),
        ({"do_sample": True, "temperature": 1.0, "top_k": 3}, {"temperature": 1.0, "top_k": 3}),
        ({"max_tokens": 5, "until": ["a", ""]}, {"max_new_tokens": 5, "stop": ("a",)}),
    ],
)
def test_what_a_task_says_of_generation(tiny, given, wanted):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    settings = DyntokLM(str(tiny), "fvt", 30, "word", 4)._settings(given)
    assert settings.reduction == 30 and settings.boundary == "word" and settings.batch_size == 4
    assert {name: getattr(settings, name) for name in wanted} == wanted


def test_draws_are_the_seeds_and_not_the_batches(tiny):
    from types import SimpleNamespace

    from dyntok_jax.lm_eval_adapter import DyntokLM

    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
    texts = ("The lighthouse", "Alle Kinder", "The lighthouse")
    requests = [SimpleNamespace(args=(text, how)) for text in texts]

    def answers(**arguments):
        return DyntokLM(str(tiny), "fvt", **arguments).generate_until(requests, disable_tqdm=True)

    first = answers(seed=1)
    assert first == answers(seed=1, batch_size=3) != answers(seed=2)
    assert first[0] != first[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"num_beams": 4}, "num_beams: valid are until"), ({"max_gen_toks": 1024}, "max_gen_toks")],
)
def test_generation_that_is_not_possible(tiny, given, message):
    from dyntok_jax.lm_eval_adapter import DyntokLM

    with pytest.raises(DyntokError, match=message):
        DyntokLM(str(tiny), "fvt")._settings(given)
