"""XNLI with trained adapters: accuracy by language, in every setting of one config.

    python -m eval.xnli --config configs/eval/xnli_e5.yaml --sweep --out out/xnli.json

``--files de=dev-de.tsv`` evaluates local files of that form (premise, hypothesis, label) instead of
the config's data. With ``--sweep`` a CSV and a plot of all reductions stand beside the JSON.
"""

from __future__ import annotations

from dyntok_jax.tasks.registry import TASKS
from eval.adapters import run


def main() -> None:
    """The command."""
    run(TASKS["xnli"], __doc__)


if __name__ == "__main__":
    main()
