"""Embedding rows of dynamic tokens: where they come from, and the cache that holds them."""
