"""Tables in the README come from run files, and from nowhere else."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval import report, report_rows

RETRIEVAL = {
    "model": "e5",
    "rows": ["static", "fvt", "runs/default"],
    "texts": 499,
    "reduction": 100.0,
    "max_pieces": None,
    "languages": {
        "de": {
            "accuracy": {"static": 98.0, "fvt": 88.0, "runs/default": 96.0},
            "gap_closed": {"runs/default": 0.8},
            "reduction_text_only": 31.4,
        }
    },
    "mean": {
        "accuracy": {"static": 98.0, "fvt": 88.0, "runs/default": 96.0},
        "gap_closed": {"runs/default": 0.8},
        "reduction_text_only": 31.4,
    },
    "command": "python -m eval.retrieval",
    "commit": "abc1234",
    "seconds": 120.0,
}
CONTINUATION = {
    "model": "smollm2",
    "windows": 20,
    "prefix_tokens": 192,
    "kept_words": 1,
    "continuation_tokens": 64,
    "files": {
        "text/wiki/de.txt": {
            "static_bits_per_byte": 2.5,
            "reductions": [
                {
                    "reduction": 50.0,
                    "prefix_shorter_percent": 21.7,
                    "rows": {
                        "fvt": {
                            "above_static_percent": 6.94,
                            "above_static_interval": [5.0, 8.0],
                        },
                        "out/trained": {
                            "above_static_percent": 1.74,
                            "above_static_interval": [1.0, 2.0],
                            "gap_closed": 0.75,
                            "gap_closed_interval": [0.7, 0.8],
                        },
                    },
                }
            ],
        }
    },
    "command": "python -m eval.continuation",
    "commit": "abc1234",
}

AVERAGE = {"by_seed": [70.0, 72.0], "value": 71.0, "spread": 1.41, "interval": [69.0, 73.0]}
TASK = {
    "task": "uner",
    "metric": "F1",
    "model": "e5",
    "average_of": ["de"],
    "examples": {"de": 1000},
    "settings": [
        {
            "name": name,
            "reduction": reduction,
            "languages": {
                "de": {"value": 71.0, "delta": delta, "shorter_percent": 25.0}
                | {"truncated_tokens": 3, "unread_words": 2, "cut_rows": cut}
            },
            "average": AVERAGE
            | {"delta": delta, "delta_interval": [-2.0, 0.5], "shorter_percent": 25.0}
            | {"delta_seeds": [42, 43], "seconds": 12.0},
        }
        for name, reduction, delta, cut in (("original", 0, 0.0, 0), ("word", 100, -1.0, 4))
    ],
    "sweep": [
        {
            "name": "word",
            "points": [
                {"reduction": r, "average": {"value": 71 - r / 50, "by_seed": [1.0, 2.0]}}
                for r in (0.0, 50.0)
            ],
        }
    ],
    "sweep_examples": 500,
    "plot": "out/uner.svg",
    "command": "python -m eval.uner",
    "commit": "abc1234",
    "machine": "x86_64, 2 cores",
    "seconds": 60.0,
}


def test_settings_have_intervals_and_what_was_not_read():
    table = report.TABLES["uner"]([TASK])
    mean = "71.0 ± 1.4 (69.0 to 73.0)"
    assert f"| original | 2 | 71.0 | {mean} |  | 25.0 % | 12 |" in table
    assert f"| word | 2 | 71.0 | {mean} | -1.0 (-2.0 to +0.5) | 25.0 % | 12 |" in table
    timed = [
        row | {"average": row["average"] | {"processor_seconds": 30.0}} for row in TASK["settings"]
    ]
    later = report.TABLES["uner"]([TASK | {"settings": timed}])
    assert "| seconds | processor seconds |" in later and "| 25.0 % | 12 | 30 |" in later
    # The same in all lines, or of the lines that have any.
    assert "In all 3 tokens cut off; 2 words without a token, read as O; rows of" in table
    assert "rows of the first pieces only: 4 in word." in table
    assert "means over seeds, the first 500 examples of each" in table
    assert "| word | 71.0 | 70.0 |" in table and "(out/uner.svg)" in table
    assert report.kind(TASK, Path("x.json")) == "uner"


def test_settings_that_merge_have_differences_by_language():
    table = report.TABLES["uner"]([TASK])
    assert "Δ by language (tokens saved):" in table and "| word | -1.0 (25 %) |" in table
    assert "| original | 0.0" not in table and "| original | +0.0" not in table


def test_a_setting_with_a_control_has_its_difference_to_that_too():
    original, word = TASK["settings"]
    average = word["average"] | {"control_delta": -1.25, "control_interval": [-2.0, -0.5]}
    average |= {"control_seeds": [42]}
    settings = [original | {"control": None}, word | {"control": "longer", "average": average}]
    table = report.TABLES["uner"]([TASK | {"settings": settings}])
    said = "\n\nword against longer: -1.2 (-2.0 to -0.5), over the seeds that both have.\n\n"
    assert said in table
    unpaired = settings[1] | {"average": average | {"control_seeds": None}}
    table = report.TABLES["uner"]([TASK | {"settings": [settings[0], unpaired]}])
    assert "(-2.0 to -0.5), over all seeds of each." in table
    assert " against " not in report.TABLES["uner"]([TASK])


def test_seeds_are_counted_by_setting():
    original, word = TASK["settings"]
    one = {"by_seed": [71.0], "spread": None, "delta_seeds": [42]}
    mixed = TASK | {"settings": [original, word | {"average": word["average"] | one}]}
    table = report.TABLES["uner"]([mixed])
    assert "means over seeds ± their standard deviation, Δ over the seeds shared with the" in table
    assert "|  | seeds | de | mean |" in table and "| original | 2 | 71.0 | 71.0 ± 1.4" in table
    assert "| word | 1 | 71.0 | 71.0 (69.0 to 73.0) |" in table
    unknown = word["average"] | one | {"delta_seeds": None}
    table = report.TABLES["uner"]([TASK | {"settings": [original, word | {"average": unknown}]}])
    assert "Δ between means over all seeds where none is known to be shared" in table
    single = [row | {"average": row["average"] | one} for row in (original, word)]
    points = [{"reduction": 0.0, "average": {"value": 71.0, "by_seed": [71.0]}}]
    sweep = [{"name": "word", "points": points}]
    table = report.TABLES["uner"]([TASK | {"settings": single, "sweep": sweep}])
    assert "seed" not in table


def test_tables_stand_between_their_marks(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- retrieval -->\nold\n<!-- /retrieval -->\nbetween\n"
        "<!-- continuation --><!-- /continuation -->\nafter\n"
    )
    runs = []
    for name, run in (("a", RETRIEVAL), ("b", CONTINUATION)):
        runs.append(tmp_path / f"{name}.json")
        runs[-1].write_text(json.dumps(run))
    monkeypatch.setattr(sys, "argv", ["eval.report", *map(str, runs), str(readme)])
    report.main()
    text = readme.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| de | 98.0 | 88.0 | 96.0 | 80 % | 31 % |" in text
    assert "| static | fvt | trained | trained closes |" in text
    fvt, trained = "+6.9 % (+5.0 to +8.0)", "+1.7 % (+1.0 to +2.0) | 75 % (70 to 80)"
    assert f"| wiki/de.txt | 20 | 50 % | 22 % | 2.500 | {fvt} | {trained} |" in text
    report.main()
    assert readme.read_text() == text


def test_plots_are_found_from_the_readme_beside_their_run(tmp_path, monkeypatch):
    readme, run = tmp_path / "README.md", tmp_path / "kept" / "uner.json"
    readme.write_text("<!-- uner --><!-- /uner -->")
    run.parent.mkdir()
    run.write_text(json.dumps(TASK))
    monkeypatch.setattr(sys, "argv", ["eval.report", str(run), str(readme)])
    report.main()
    assert "(kept/uner.svg)" in readme.read_text()


def test_distillation_stands_with_torch_or_without():
    run = {
        "model": "e5",
        "shape": [24, 64],
        "batches": 8,
        "repeats": 3,
        "jax": {"float32": 0.41234, "bfloat16": 1.2},
        "torch": {},
        "loop_steps": 60,
        "idle_share": 0.0213,
        "command": "python -m eval.bench_distill",
        "commit": "abc1234",
        "machine": "x86_64, 2 cores",
    }
    table = report.TABLES["distill"]
    torch = {"torch": {"float32": 0.5, "bfloat16": 0.8}, "versions": {"torch": "2.13"}}
    shown = table([run | torch])
    assert "x86_64, 2 cores, torch 2.13, e5, batches 24×64, 3 × 8 steps:" in shown
    assert "products in float32 | 0.412, torch 0.500: 0.82× | ≥ 1.3× |" in shown
    both = "| 1.200, torch 0.800: 1.50× (2.40× plain torch in float32) | ≥ 1.3× |"
    assert f"products in bfloat16 {both}" in shown
    without = table([run | {"torch_skipped": "torch is not installed"}])
    assert "products in bfloat16 | 1.200 (torch is not installed) | ≥ 1.3× |" in without
    assert "devices wait for a batch | 2.1 % | ≤ 10 % |" in without
    assert report.kind(run, Path("a.json")) == "distill"


def test_steps_of_an_adapter_stand_with_torch_or_without():
    run = {
        "model": "e5",
        "adapter": "uner",
        "rank": 64,
        "sequences": 32,
        "products": "bfloat16",
        "merged": {
            "reduction": 75.0,
            "rows": "fvt",
            "share_of_time": 0.8123,
            "share_of_time_known_rows": 0.7612,
            "share_of_tokens": 0.7456,
        },
        "command": "python -m eval.bench_lora",
        "commit": "abc1234",
        "machine": "x86_64, 2 cores",
    }
    table = report.TABLES["lora"]
    torch = {"jax_s": 1.6, "configured_s": 0.8, "torch_s": 1.0, "steps": 200}
    torch |= {"jax_ratio": 0.62, "configured_ratio": 1.254, "f1_jax": 61.23, "f1_torch": 61.3}
    torch |= {"apart_50": 2e-5, "apart": 0.0031}
    shown = table([run | torch])
    assert "all in float32 | 1.60 s, transformers and peft 1.00 s: 0.62× | ≥ 1.2× |" in shown
    assert "products in bfloat16 | 0.80 s, transformers" in shown and "1.25×" in shown
    assert (
        "| losses apart from theirs, all in float32 | 2.0e-05 in 50 steps, 3.1e-03 in 200 |"
        in shown
    )
    assert "| F1 after them | 61.2, theirs 61.3 | within 0.5 |" in shown
    # Without held-out examples there is no figure of them.
    unread = {name: value for name, value in (run | torch).items() if not name.startswith("f1_")}
    assert "3.1e-03 in 200 |" in table([unread]) and "after them" not in table([unread])
    compared = {name: run[name] for name in ("model", "adapter", "command", "commit", "machine")}
    compared |= {"rank": 64, "sequences": 32, "dtype": "float64", "steps": 200}
    compared |= {"apart_50": 1e-13, "apart": 2e-9, "f1_jax": 61.2, "f1_torch": 61.2}
    double = table([compared])
    assert "theirs, all in float64 | 1.0e-13 in 50 steps, 2.0e-09 in 200 |" in double
    assert "a step of" not in double and report.kind(compared, Path("a.json")) == "lora"
    without = table([run | {"torch_skipped": "torch is not installed"}])
    assert "rank 64, 32 sequences | torch is not installed | ≥ 1.2× |" in without
    measured = "0.81, 0.76 once the rows are known (0.75 of the tokens)"
    assert f"75 % reduction, fvt rows, ÷ static | {measured} | ≤ 0.85 |" in without
    assert report.kind(run, Path("a.json")) == "lora"
    del run["merged"]["share_of_time_known_rows"]
    assert "| 0.81 (0.75 of the tokens) | ≤ 0.85 |" in table([run | torch])


def test_the_readme_has_the_tables_of_the_committed_runs():
    readme = Path(__file__).parents[2] / "README.md"
    runs: dict[str, list[Any]] = {}
    for path in sorted((readme.parent / "eval" / "results").glob("*.json")):
        run = json.loads(path.read_text("utf-8"))
        runs.setdefault(report.kind(run, path), []).append(report._with_plots(run, path, readme))
    text = readme.read_text("utf-8")
    for name, found in runs.items():
        table = report.TABLES[name](found)
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text, name


def test_names_of_rows_are_as_short_as_tells_them_apart():
    assert report_rows.short_names(["static", "out/a/hypernet"]) == ["static", "hypernet"]
    trained = ["out/a/hypernet", "out/b/hypernet"]
    assert report_rows.short_names(["fvt", *trained]) == ["fvt", "a/hypernet", "b/hypernet"]


def test_a_name_stays_in_its_cell():
    shown = report_rows.table(["", "a|b"], [["one\r\ntwo", "<own> *rows*"]])
    assert shown == "|  | a\\|b |\n| --- | --- |\n| one two | \\<own> \\*rows\\* |"


def test_continuation_names_the_command_of_every_run():
    second = CONTINUATION | {"command": "python -m eval.continuation --text b.txt"}
    table = report.TABLES["continuation"]([CONTINUATION, second])
    first, other = CONTINUATION["command"], second["command"]
    assert f"```\n{first}\n{other}\n```" in table


def test_a_continuation_with_rows_that_another_lacks_leaves_its_cells_empty():
    more = copy.deepcopy(CONTINUATION)
    for figures in more["files"].values():
        for part in figures["reductions"]:
            *_, last = part["rows"].values()
            part["rows"]["more"] = last
    table = report.TABLES["continuation"]([CONTINUATION, more])
    header, _, first, *_, last = [line for line in table.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    place, closes = columns.index("more"), columns.index("more closes")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (first, last)]
    assert [len(row) for row in cells] == [len(columns)] * 2
    assert cells[0][place] == cells[0][closes] == ""
    assert cells[1][place] == cells[1][place - 1] != "" != cells[1][closes]


def test_a_continuation_of_unmerged_prefixes_has_no_gap():
    run = json.loads(json.dumps(CONTINUATION))
    (part,) = run["files"]["text/wiki/de.txt"]["reductions"]
    part |= {"reduction": 0.0, "prefix_shorter_percent": 0.0}
    for row in part["rows"].values():
        row |= {"above_static_percent": 0.0, "above_static_interval": [0.0, 0.0]}
    part["rows"]["out/trained"] |= {"gap_closed": None, "gap_closed_interval": None}
    above = "+0.0 % (+0.0 to +0.0)"
    table = report.TABLES["continuation"]([run])
    assert f"| 0 % | 0 % | 2.500 | {above} | {above} |  |" in table
    part["rows"]["fvt"]["above_static_interval"] = None
    assert f"| 2.500 | +0.0 % | {above} |  |" in report.TABLES["continuation"]([run])


def test_continuations_of_a_text_stand_together_by_reduction():
    whole, other = copy.deepcopy(CONTINUATION), copy.deepcopy(CONTINUATION)
    (path,) = whole["files"]
    whole["files"][path]["reductions"][0]["reduction"] = 100.0
    other["files"] = {"text/wiki/en.txt": other["files"].pop(path)}
    table = report.TABLES["continuation"]([whole, other, CONTINUATION])
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| wiki/")]
    places = [(line[1].strip(), line[3].strip()) for line in lines]
    assert places == [("wiki/de.txt", "50 %"), ("wiki/de.txt", "100 %"), ("wiki/en.txt", "50 %")]


def test_a_readme_is_no_run(tmp_path, command):
    run = tmp_path / "run.json"
    run.write_text(json.dumps(RETRIEVAL))
    found = command(report.main, run, run)
    assert found.code == 2 and "run.json: is read too" in found.err
    assert json.loads(run.read_text()) == RETRIEVAL


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "not a run of"),
        (None, "not a run of"),
        ({"task": ["xnli"]}, "not a run of"),
        ({"task": "uner", "metric": "F1"}, "no whole run of uner (KeyError('settings'))"),
        (TASK | {"plot": 5}, "no whole run of uner"),
        (TASK | {"examples": [1]}, "no whole run of uner"),
        (CONTINUATION | {"files": {}}, "no whole run of continuation"),
        ("", "not JSON"),
        ('{"step": 1}\n{"step": 2}\n', "not JSON (Extra data"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_run_is_refused_and_nothing_changes(tmp_path, command, content, words):
    readme, run = tmp_path / "README.md", tmp_path / "run.json"
    readme.write_text("<!-- uner --><!-- /uner --><!-- continuation --><!-- /continuation -->")
    before = readme.read_text()
    run.write_text(content if isinstance(content, str) else json.dumps(content))
    found = command(report.main, run, readme)
    assert found.code == 2 and f"run.json: {words}" in found.err and found.err.count("\n") == 1
    assert readme.read_text() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text", "no <!-- retrieval --> in it"),
        ("a\n<!-- retrieval -->\nkept", "marks of retrieval in line 2;"),
        ("<!-- /retrieval -->\n<!-- retrieval -->", "marks of retrieval in line 1, 2;"),
        ("<!-- retrieval -->\nkept\n" * 2 + "<!-- /retrieval -->", "in line 1, 3, 5;"),
        ("<!-- retrieval -->\nkept\n<!-- uner -->\n<!-- /retrieval -->", "in line 1, 4;"),
        (b"\xff", "not UTF-8 (byte 1)"),
        (None, "No such file"),
    ],
)
def test_marks_that_are_refused(tmp_path, command, text, words):
    readme, run = tmp_path / "README.md", tmp_path / "run.json"
    run.write_text(json.dumps(RETRIEVAL))
    if text is not None:
        readme.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = command(report.main, run, readme)
    assert found.code == 2 and "README.md" in found.err and words in found.err
    assert found.err.count("\n") == 1
    if isinstance(text, str):
        assert readme.read_text() == text


def test_a_readme_keeps_its_ends_of_lines(tmp_path, command):
    readme, run = tmp_path / "README.md", tmp_path / "run.json"
    run.write_bytes(b"\xef\xbb\xbf" + json.dumps(RETRIEVAL | {"command": "\udcff"}).encode())
    readme.write_bytes(b"a\r\n<!-- retrieval --><!-- /retrieval -->\r\n")
    for _ in range(2):
        assert command(report.main, run, readme).code == 0
        text = readme.read_bytes()
        assert text.count(b"\n") == text.count(b"\r\n") > 9 and b"`\\udcff`" in text


def test_options_that_are_wrong_are_one_line(command):
    found = command(report.main, "run.json")
    assert found.code == 2 and found.err.count("\n") == 1 and "required: readme" in found.err
