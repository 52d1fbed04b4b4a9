"""Tasks: their examples, labels on tokens, and figures of predictions; no network is in here."""
