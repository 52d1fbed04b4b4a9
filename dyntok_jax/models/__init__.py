"""Pretrained models over given embedding rows."""
