"""Tests of the readers of jaxprs."""

import jax
import jax.numpy as jnp
import pytest

from lla_jax.core import jaxprs


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_an_output_depends_on_the_inputs_that_it_reads(wrap):
    closed = jax.make_jaxpr(wrap(lambda a, b, c: (a * b, c + 1)))(1.0, 2.0, 3.0)
    assert jaxprs.inputs_of(closed, [True, False]) == [True, True, False]
    assert jaxprs.inputs_of(closed, [False, True]) == [False, False, True]


def test_an_output_of_a_loop_depends_on_the_rows_that_it_reads():
    closed = jax.make_jaxpr(lambda a, b: jax.lax.map(lambda x: (x[0] ** 2, x[1] > 0), (a, b)))(jnp.ones(3), jnp.ones(3))
    assert jaxprs.inputs_of(closed, [False, True]) == [False, True]


def test_float_types_are_found_in_nested_equations():
    f = jax.jit(lambda x: jnp.sum(x.astype(jnp.bfloat16)).astype(jnp.float32))
    assert jaxprs.float_types(jax.make_jaxpr(f)(jnp.ones(3))) == {"float32", "bfloat16"}
