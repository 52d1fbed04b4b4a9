"""Training, run from the checkout; nothing here is installed."""
