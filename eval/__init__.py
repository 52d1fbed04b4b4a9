"""Evaluation, run from the checkout: ``python -m eval.bench``."""
