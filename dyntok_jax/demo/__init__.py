"""The demonstration: 14 languages on a real encoder and a real decoder."""
