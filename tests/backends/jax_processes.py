"""One of several processes that train together, run by a test: rank, number, port, file."""

import sys

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

N = 8
SIZES = {"w": (3, 4), "b": (4,), "u": (4, 2)}
SHAPES = {k: jax.ShapeDtypeStruct(size, "float64") for k, size in SIZES.items()}


def loss_fn(p, x, y):
    return jnp.mean(jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) @ p["u"] - y) ** 2, axis=-1))


def numbers():
    """Parameters and the batch of all processes."""
    r = np.random.default_rng(0)
    params = {k: 0.5 * r.standard_normal(size) for k, size in SIZES.items()}
    return params, r.standard_normal((N, 3)), r.standard_normal((N, 2))


def trained(params, x, y, mesh=None):
    """Parameters after twenty steps of K-FAC."""
    layers = ngd_jax.report(loss_fn, SHAPES, x, y)
    often = {"factor_every": 2, "inverse_every": 5, "damping": 0.1}
    optimizer = ngd_jax.kfac(layers, 0.05, inverse_mesh=mesh, **often)

    def step(params, state, x, y):
        _, grads, records = ngd_jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = optimizer.update(grads, state, params, records=records)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def train(params, state, x, y):
        return lax.fori_loop(0, 20, lambda _, both: step(*both, x, y), (params, state))[0]

    return train(params, optimizer.init(params), x, y)


def main(rank, size, port, path):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", size, rank, initialization_timeout=120)
    mesh = Mesh(jax.devices(), "data")
    over, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    params, *batch = numbers()
    mine = slice(rank * N // size, (rank + 1) * N // size)
    x, y = (jax.make_array_from_process_local_data(over, part[mine]) for part in batch)
    params = {k: jax.make_array_from_process_local_data(whole, p) for k, p in params.items()}
    np.savez(path, processes=jax.process_count(), **trained(params, x, y, mesh))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
