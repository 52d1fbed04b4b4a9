"""From text to base tokens, on the host: numpy only, never jax."""
