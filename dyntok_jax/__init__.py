"""Dynamic tokenization for pretrained language models."""
