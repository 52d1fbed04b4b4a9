"""Batch-wise merging of neighbouring base tokens (paper, Algorithm 1)."""
