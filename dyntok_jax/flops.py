"""What a program costs, counted before it is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


def product_flops(function: Any, *inputs: Any) -> int:
    """Floating-point operations of all matrix products of a function, on all devices together.

    A multiplication and an addition are two. The compiler's own count takes the body of a loop over
    layers once, however often it runs; here it counts as often as it runs. The bodies of loops
    without a fixed number of turns, which no training step has around its products, count once.
    """
    whole = jax.make_jaxpr(function)(*inputs).jaxpr
    # Gradients that nobody asks for, such as a frozen kernel's, stand there and are not computed.
    needed, _ = dce_jaxpr(whole, [True] * len(whole.outvars))
    return _of_program(needed)


def _of_program(program: core.Jaxpr) -> int:
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            total += _of_product(equation)
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = (part for value in equation.params.values() for part in _programs(value))
        total += turns * sum(map(_of_program, inner))
    return total


def _of_product(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left: Any = equation.invars[0].aval
    out: Any = equation.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)


def _programs(value: Any) -> list[core.Jaxpr]:
    """Programs in a parameter of an operation: of a loop, a call, or the branches of a choice."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [part for item in value for part in _programs(item)]
    return []
