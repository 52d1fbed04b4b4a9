"""Tiny tokenizers and models, as folders."""

from tiny_folders import decoder, encoder, folders

__all__ = ["decoder", "encoder", "folders"]
