"""The parts of ``generate``: settings, compiled programs, and the batch that runs them."""
