"""Run by a test in a process of its own: four host devices, with shardings of two kinds."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from ngd_core.testing import assert_close

N = 16


def loss_fn(p, x, y):
    return jnp.mean(jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) @ p["u"] - y) ** 2, axis=-1))


def main():
    r = np.random.default_rng(0)
    x, y = jnp.asarray(r.standard_normal((N, 3))), jnp.asarray(r.standard_normal((N, 4)))
    sizes = {"w": (3, 4), "b": (4,), "u": (4, 4)}  # factors of one size, inverted as one stack
    params = {k: jnp.asarray(0.5 * r.standard_normal(s)) for k, s in sizes.items()}
    layers = ngd_jax.report(loss_fn, params, x, y)
    often = {"factor_every": 2, "inverse_every": 5, "damping": 0.1}
    optimizers = {
        "kfac": ngd_jax.kfac(layers, 0.05, **often),
        "ekfac": ngd_jax.ekfac(layers, 0.05, **often),
        "sngd": ngd_jax.sngd(layers, 0.05, **often),
        "fngd": ngd_jax.fngd(layers, 0.05, batch_size=N, steps_per_epoch=4),
        "projective": ngd_jax.projective_kfac(layers, 0.05, **often),
        "sofim": ngd_jax.sofim(0.5, rho=0.5),
    }
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    split = {"w": columns, "b": whole, "u": columns}
    for name, optimizer in optimizers.items():

        def step(params, state, x, y, optimizer=optimizer):
            _, grads, records = ngd_jax.value_and_grad(loss_fn)(params, x, y)
            updates, state = optimizer.update(grads, state, params, records=records)
            return optax.apply_updates(params, updates), state

        def train(params, x, y, step=step, optimizer=optimizer):
            state = optimizer.init(params)
            return jax.lax.fori_loop(0, 20, lambda _, both: step(*both, x, y), (params, state))[0]

        train = jax.jit(train)
        want = train(params, x, y)
        for place in (dict.fromkeys(params, whole), split)[: 2 if name == "kfac" else 1]:
            placed = jax.tree.map(jax.device_put, params, place)
            got = train(placed, jax.device_put(x, over), jax.device_put(y, over))
            assert len(got["w"].sharding.device_set) == 4
            for k in params:
                assert_close(np.asarray(got[k]), np.asarray(want[k]), size=1000, kappa=1000)
        assert not np.allclose(want["w"], params["w"], rtol=1e-2)
        print(name)


main()
