"""Named entities with trained adapters: F1 of exact spans by set, in every setting of one config.

    python -m eval.uner --config configs/eval/uner_e5.yaml --sweep --out out/uner.json

``--files ru_pud=ru_pud-ud-test.iob2`` evaluates local files of that form (words and tags) instead
of the config's data. With ``--sweep`` a CSV and a plot of all reductions stand beside the JSON.

A word without a token of its own (cut off, or nothing after tokenization) is predicted as O and
counted in ``unread_words``; tags of other entities are read as O and counted in ``mapped_tags``.
"""

from __future__ import annotations

from dyntok_jax.tasks.registry import TASKS
from eval.adapters import run


def main() -> None:
    """The command."""
    run(TASKS["uner"], __doc__)


if __name__ == "__main__":
    main()
