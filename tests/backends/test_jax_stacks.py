"""On CPUs no factorisation takes a stack: jaxlib's threads would wait for each other for ever."""

import re

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import pytest
from harness import rng, spd
from ngd_jax._stacks import FACTORISATIONS, NUMPY

from ngd_core.testing import assert_close

N = 4
STACK = re.compile(r"@lapack_\w+.*tensor<\d+x\d+x\d+xf")
MAKERS = {
    "kfac": (ngd_jax.kfac, {}),
    "kfac, exact": (ngd_jax.kfac, {"damping_split": "exact"}),
    "ekfac": (ngd_jax.ekfac, {}),
    "sngd": (ngd_jax.sngd, {}),
    "projective": (ngd_jax.projective_kfac, {}),
    "fngd": (ngd_jax.fngd, {"batch_size": N, "steps_per_epoch": 2}),
}


def equal_layers(params, x):
    """Layers of one shape, which the core takes as a stack, and a layer of two groups."""
    for w in params["dense"]:
        x = jnp.tanh(x @ w)
    x = jax.lax.conv_general_dilated(
        x[:, :, None], params["groups"], (1,), "VALID", feature_group_count=2
    )
    return jnp.mean(jnp.square(jnp.sum(x, (1, 2))))


@pytest.mark.parametrize("name", MAKERS)
def test_no_step_hands_lapack_a_stack(name):
    make, options = MAKERS[name]
    params = {"dense": [jnp.eye(N) + k for k in range(3)], "groups": jnp.ones((2, N // 2, 1))}
    x = jnp.ones((N, N))
    optimizer = make(ngd_jax.report(equal_layers, params, x), 0.1, **options)

    def step(params, state, x):
        _, grads, records = ngd_jax.value_and_grad(equal_layers)(params, x)
        return optimizer.update(grads, state, params, records=records)

    lowered = jax.jit(step).lower(params, optimizer.init(params), x).as_text()
    assert "@lapack_" in lowered
    assert not STACK.search(lowered)


@pytest.mark.parametrize("name", FACTORISATIONS)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_one_after_the_other_gives_what_a_stack_gives(name, lead):
    m = np.broadcast_to(spd(rng(0), N, 10.0), (*lead, N, N))
    m = jnp.asarray(m * np.arange(1.0, 1.0 + max(1, np.prod(lead))).reshape(*lead, 1, 1))
    got = jax.tree.leaves(jax.jit(getattr(NUMPY.linalg, name))(m))
    expected = jax.tree.leaves(getattr(jnp.linalg, name)(m))
    for x, y in zip(got, expected, strict=True):
        assert x.shape == y.shape
        assert_close(np.asarray(x), np.asarray(y), size=N, kappa=10.0)
