"""Products of matrices, and the dtypes in which they are rounded and summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Matmul precision that makes float32 mean float32: TPUs and GPUs round otherwise."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def widened(dtype: DTypeLike) -> jnp.dtype:
    """Dtype of sums, norms and the softmax of arrays of this one: float32; of float64 itself."""
    return jnp.promote_types(dtype, jnp.float32)


def rounds() -> bool:
    """Whether ``jax.default_matmul_precision("bfloat16")`` holds."""
    setting = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return setting == "bfloat16"


@jax.custom_vjp
def product(x: Float[Array, "... I"], kernel: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """``x @ kernel`` of arrays of one dtype, summed and returned in float32 (float64 of that).

    Summed so, products in bfloat16 are closer, and on CPUs several times faster. The gradients are
    products of that dtype too: left to itself JAX would multiply the float32 gradient of the sum,
    as slowly as if all were float32. Where ``jax.default_matmul_precision`` is "bfloat16" float32
    factors are rounded to it, on any device: by themselves CPUs would not follow that setting.
    """
    return contracted(x, kernel, (x.ndim - 1,), (0,))


def _product_forward(x: jax.Array, kernel: jax.Array) -> Any:
    return product(x, kernel), (x, kernel)


def _product_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> Any:
    x, kernel = kept
    gradient, last = gradient.astype(x.dtype), x.ndim - 1
    others = tuple(range(last))
    of_x = contracted(gradient, kernel, (last,), (1,))
    of_kernel = contracted(x, gradient, others, others)
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


def contracted(a: jax.Array, b: jax.Array, axes_a: Sequence[int], axes_b: Sequence[int]) -> Any:
    """Sums of products over these axes, as :func:`product` takes and returns them."""
    if rounds():
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    dimensions = ((axes_a, axes_b), ((), ()))
    exact, wide = precision(a.dtype), widened(a.dtype)
    return jax.lax.dot_general(a, b, dimensions, precision=exact, preferred_element_type=wide)


product.defvjp(_product_forward, _product_backward)
