"""What the README says of decoders comes from run files."""

from __future__ import annotations

from pathlib import Path

from eval import report

MADE = {"commit": "abc1234", "machine": "x86_64, 2 cores", "seconds": 60.0}


def _row(name: str, value: float, delta: float) -> dict:
    average = {"value": value, "by_seed": [value], "spread": None, "interval": [0.1, 0.9]}
    average |= {"delta": delta, "delta_interval": [-0.2, 0.1], "shorter_percent": 12.5}
    language = {"value": value, "truncated_tokens": 7}
    return {"name": name, "languages": {"en": language}, "average": average | {"seconds": 3.0}}


def test_mmlu_has_accuracies_and_bits():
    run = MADE | {
        "task": "mmlu",
        "metric": "accuracy",
        "model": "smol",
        "average_of": ["en"],
        "examples": {"en": 60},
        "settings": [_row("original", 25.0, 0.0), _row("dynamic", 30.0, 5.0)],
        "likelihood": [_row("original", 0.75, 0.0), _row("dynamic", 0.76, 0.01)],
        "sweep": [{"name": "dynamic", "points": [{"reduction": 0.0, "average": {"value": 25.0}}]}],
        "likelihood_sweep": [{}],
        "sweep_examples": 20,
        "sweep_choice": "evenly spread",
        "plot": "out/mmlu.svg",
        "likelihood_plot": "out/mmlu_bits.svg",
        "command": "python -m eval.mmlu",
    }
    assert report.kind(run, Path("x.json")) == "mmlu"
    said = report.TABLES["mmlu"]([run])
    assert "| dynamic | 30.0 | 30.0 (0.1 to 0.9) | +5.0 (-0.2 to +0.1) | 12.5 % | 3 |" in said
    assert "| original | 0.750 | 0.750 (0.100 to 0.900) |  |" in said
    assert "| dynamic | 0.760 | 0.760 (0.100 to 0.900) | +0.010 (-0.200 to +0.100) |" in said
    assert "by reduction, evenly spread 20 examples of each:" in said
    assert "(out/mmlu_bits.svg)" in said and "7 tokens cut off" in said


def test_mt_bench_has_a_line_a_setting():
    row = {
        "name": "dynamic",
        "tokens_dynamic": 900,
        "shorter_percent": 10.04,
        "new_tokens": 128,
        "characters": 500,
        "ended": 3,
        "answers": 16,
        "distinct_4": 0.98765,
        "prefill_seconds": 1.23,
        "decode_seconds": 4.56,
    }
    run = MADE | {"mt_bench": [row], "sweep": [row | {"name": "dynamic-50", "distinct_4": None}]}
    run |= {"model": "smol", "questions": 8, "max_new_tokens": 128, "command": "python -m x"}
    assert report.kind(run, Path("x.json")) == "mt_bench"
    said = report.TABLES["mt_bench"]([run])
    assert "| dynamic | 900 | 10.0 % | 128 | 500 | 3 of 16 | 0.988 | 1.2 | 4.6 |" in said
    assert "| dynamic-50 | 900 | 10.0 % | 128 | 500 | 3 of 16 |  | 1.2 | 4.6 |" in said


def test_efficiency_has_operations_hits_and_times():
    point = {
        "reduction": 100.0,
        "tokens": 789.4,
        "tokens_saved_percent": 14.1,
        "model_flops": 11.49e12,
        "hypernet_flops": 90.8e9,
        "hypernet_percent": 0.78,
        "hypernet_flops_uncached": 2.06e12,
        "total_flops": 11.58e12,
        "total_flops_saved_percent": 14.4,
        "kv_bytes": 98.7 * 2**20,
    }
    curve = {"capacity": 1024, "grown_to": 2048, "hits": [0, 90], "misses": [100, 10]}
    steps = [
        {"reduction": value, "tokens": tokens, "padded": 512.0, "prefill_ms": ms}
        | {"first_token_ms": ms + 1, "first_token_new_rows_ms": ms + 20}
        for value, tokens, ms in ((0.0, 512.0, 800.0), (100.0, 256.0, 420.0))
    ]
    part = {"prompts": 20, "missing_shots": 3, "points": [point], "cache": [curve]}
    run = MADE | {
        "efficiency": {"en": part, "de": part | {"missing_shots": 0}},
        "model": "mistral",
        "check": {"decoder": {"700": 0.999}, "hypernet": 0.98},
        "kv_dtype": "bfloat16",
        "cache_batch_size": 8,
        "latency": {"de": steps},
        "latency_prompts": 4,
        "latency_tokens": 512,
        "plot": "out/e.svg",
        "command": "python -m eval.efficiency",
    }
    assert report.kind(run, Path("x.json")) == "efficiency"
    said = report.TABLES["efficiency"]([run])
    assert "0.980 to 0.999 times XLA's count" in said and "(out/e.svg)" in said
    later = run | {"check": run["check"] | {"against": "the count of the products"}}
    said_later = report.TABLES["efficiency"]([later])
    assert "0.980 to 0.999 times the count of the products at up to 700" in said_later
    for cells in ("789 | 14.1 % | 11.49T | 90.8G | 0.8 % | 2.06T", "11.58T | 14.4 % | 98.7 MiB |"):
        assert cells in said
    # 90 of 200.
    assert "en 1024 (grown to 2048) rows 45 %" in said
    assert "(where a subject has them: 3 of 100 in en are missing)" in said
    assert "behind a cache of 1024 rows" in said
    assert "| de | 100 % | 256 | 512 | 420 | 0.53 | 0.50 | 421 | 440 |" in said


def test_large_vocabularies_have_a_table_each():
    files = {"out/text/wiki/de.txt"}
    runs = {
        "recall": {
            "recall": {"a/de.txt": [0.857, 0.99]},
            "k": 10,
            "queries": 150,
            "size": 1000,
            "leaves": [25, 25],
            "reorder": [20, 300],
            "milliseconds": [4.81, 6.1],
            "milliseconds_exact": 225.94,
            "milliseconds_original": 13.67,
            "original_size": 90,
        },
        "saving": {
            "task": "saving",
            "size": 1000,
            "files": {
                name: {
                    "tokens_static": 100,
                    "tokens_large": 60,
                    "pretokens": 50,
                    "share_of_saving": 0.8,
                    "mb_per_second": 1.834,
                    "mb_per_second_with_base": 0.33,
                }
                for name in files
            },
        },
        "likelihood": {
            "task": "likelihood",
            "size": 1000,
            "windows": 16,
            "prefix_tokens": 192,
            "continuation_tokens": 64,
            "files": {
                name: {
                    "tokens_static": 1024,
                    "tokens_large": 844,
                    "static_bits_per_byte": 1.1024,
                    "rows": {
                        "fvt": {
                            "bits_per_byte": 1.6135,
                            "above_static_percent": 46.36,
                            "above_static_interval": [36.0, 58.3],
                        },
                        "out/trained": {
                            "bits_per_byte": 1.3,
                            "above_static_percent": 20.0,
                            "above_static_interval": [10.0, 30.0],
                            "gap_closed": 0.571,
                            "gap_closed_interval": [0.5, 0.64],
                        },
                    },
                }
                for name in files
            },
        },
        "diversity": {
            "task": "diversity",
            "prompts": 50,
            "temperature": 1.0,
            "files": {
                name: {
                    "words": 2000,
                    "left_out": 3,
                    "static_distinct_4": 0.98,
                    "large_distinct_4": 0.991,
                    "difference": 0.011,
                    "difference_interval": [-0.01, 0.02],
                }
                for name in files
            },
        },
        "rewriting": {
            "task": "rewriting",
            "windows": 16,
            "files": {
                name: {
                    "words": {
                        "4": {
                            "bits_per_byte": 1.5,
                            "above_percent": 4.7,
                            "above_interval": [3.0, 6.0],
                            "cache_shorter_percent": 51.4,
                        }
                    }
                }
                for name in files
            },
        },
    }
    wanted = {
        "recall": [
            "| 25 leaves, 300 compared | 0.990 | 6.1 |",
            "| exact | 1 | 225.9 |",
        ],
        "saving": ["| wiki/de.txt | 100 | 60 | 50 | 80.0 % | 1.83 | 0.33 |"],
        "likelihood": [
            "| wiki/de.txt | fvt | 844 | 1.613 | +46.4 % (+36.0 to +58.3) |  |",
            "| wiki/de.txt | trained | 844 | 1.300 | +20.0 % (+10.0 to +30.0) | 57 % (50 to 64) |",
        ],
        "diversity": ["| wiki/de.txt | 2000 | 3 | 0.980 | 0.991 | +0.011 (-0.010 to +0.020) |"],
        "rewriting": ["| wiki/de.txt | 4 | 1.500 | +4.7 % (+3.0 to +6.0) | 51 % |"],
    }
    for name, run in runs.items():
        made = MADE | {"model": "smol", "command": f"python -m eval.{name}"} | run
        assert report.kind(made, Path("x.json")) == name
        said = report.TABLES[name]([made])
        assert all(line in said for line in wanted[name]), said
        assert "commit abc1234" in said and f"`python -m eval.{name}`" in said
