"""Rotary positions (Su et al. 2021), as Llama and Mistral use them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotary = tuple[Float[Array | np.ndarray, "... J"], Float[Array | np.ndarray, "... J"]]
"""Cosines and sines of positions' angles."""


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches the long wavelengths.

    Attributes:
        low_freq_factor: wavelengths above ``original_positions / low_freq_factor`` are stretched.
        high_freq_factor: those below ``original_positions / high_freq_factor`` are kept; between
            the two the change is gradual.
        original_positions: context length before stretching.
    """

    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class RotaryConfig:
    """Angles of rotary positions.

    Attributes:
        theta: base of the wavelengths.
        factor: by how much wavelengths are stretched, all of them unless ``llama3`` is given.
        llama3: stretch the long ones only.
    """

    theta: float = 10_000.0
    factor: float = 1.0
    llama3: Llama3Scaling | None = None


def frequencies(config: RotaryConfig, width: int) -> Float[np.ndarray, " J"]:
    """Radians per position of the H/2 pairs of a head of width H, float32."""
    base = config.theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if config.llama3 is None:
        return (base / config.factor).astype(np.float32)
    scaling = config.llama3
    turns = scaling.original_positions * base / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (base * (kept + (1 - kept) / config.factor)).astype(np.float32)


def rotary_table(
    config: RotaryConfig, positions: Int[Array | np.ndarray, " ..."], width: int
) -> Rotary:
    """Cosines and sines of every position's angles, float32 (..., J), J = H/2.

    Of positions in numpy they are computed by numpy.
    """
    angles = positions[..., None].astype(np.float32) * frequencies(config, width)
    functions = np if isinstance(angles, np.ndarray) else jnp
    return functions.cos(angles), functions.sin(angles)


def rotate(
    x: Float[Array, "B T N H"],
    cos: Float[Array | np.ndarray, "B T J"],
    sin: Float[Array | np.ndarray, "B T J"],
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (i, i + H/2) of every head by the angles of ``cos`` and ``sin``."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
