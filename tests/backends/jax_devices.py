"""Run by a test in a process of its own: four host devices, against one of them."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "standard"  # Adam asks for it

import math

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import ngd_core
from ngd_core.inversion import Ops
from ngd_core.testing import assert_close

N = 16
MESH = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
EVERYWHERE, OVER = PartitionSpec(), PartitionSpec("data")
COLUMNS = PartitionSpec(None, "data")
OFTEN = {"factor_every": 2, "inverse_every": 5, "damping": 0.1}
SPLIT = {"inverse_mesh": MESH}


def loss_fn(p, x, y):
    return jnp.mean(jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) @ p["u"] - y) ** 2, axis=-1))


@jax.shard_map(mesh=MESH, in_specs=(EVERYWHERE, OVER, OVER), out_specs=EVERYWHERE)
def shard_loss(p, x, y):
    return lax.pmean(loss_fn(p, x, y), "data")


def optimizers(layers, split):
    """Each method, by name; with inverses split over the devices where there are any."""
    options = OFTEN | split
    return {
        "kfac": ngd_jax.kfac(layers, 0.05, **options),
        "ekfac": ngd_jax.ekfac(layers, 0.05, **options),
        "sngd": ngd_jax.sngd(layers, 0.05, **options),
        "fngd": ngd_jax.fngd(layers, 0.05, batch_size=N, steps_per_epoch=4),
        "projective": ngd_jax.projective_kfac(layers, 0.05, **options),
        "sofim": ngd_jax.sofim(0.5, rho=0.5),
        "precondition": optax.chain(
            ngd_jax.precondition(layers, ngd_core.KFAC(damping_split="exact"), **options),
            optax.adam(0.05),
        ),
    }


def trainer(loss, optimizer):
    """Twenty steps from parameters, a state and a batch."""

    def step(params, state, x, y):
        _, grads, records = ngd_jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params, records=records)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def train(params, state, x, y):
        return lax.fori_loop(0, 20, lambda _, both: step(*both, x, y), (params, state))[0]

    return train


def placed(tree, specs):
    return {k: jax.device_put(x, NamedSharding(MESH, specs[k])) for k, x in tree.items()}


def each_method():
    r = np.random.default_rng(0)
    x, y = jnp.asarray(r.standard_normal((N, 3))), jnp.asarray(r.standard_normal((N, 4)))
    sizes = {"w": (3, 4), "b": (4,), "u": (4, 4)}  # factors of one size, inverted as one stack
    params = {k: jnp.asarray(0.5 * r.standard_normal(s)) for k, s in sizes.items()}
    layers = ngd_jax.report(loss_fn, params, x, y)
    assert ngd_jax.report(shard_loss, params, x, y) == layers
    spread = [jax.device_put(part, NamedSharding(MESH, OVER)) for part in (x, y)]
    copies = placed(params, dict.fromkeys(params, EVERYWHERE))
    columns = placed(params, {"w": COLUMNS, "b": EVERYWHERE, "u": COLUMNS})
    split = optimizers(layers, SPLIT)
    for name, optimizer in optimizers(layers, {}).items():
        train = trainer(loss_fn, optimizer)
        want = train(params, optimizer.init(params), x, y)
        assert not np.allclose(want["w"], params["w"], rtol=1e-2)
        runs = [(train, copies), (trainer(loss_fn, split[name]), columns)]
        if name in ("kfac", "fngd"):
            runs.append((trainer(shard_loss, optimizer), copies))
        for train, start in runs:
            got = train(start, optimizer.init(start), *spread)
            assert len(got["w"].sharding.device_set) == 4
            for k in params:
                assert_close(np.asarray(got[k]), np.asarray(want[k]), size=1000, kappa=1000)
        print(name)


def a_layer_on_each():
    """Each factor is inverted once, on the device to which its layer was dealt."""
    inverted = []

    def spd_inverse(m, *, xp):
        number = math.prod(m.shape[:-2])
        jax.debug.callback(lambda k: inverted.extend([int(k)] * number), lax.axis_index("data"))
        return ngd_jax.NATIVE.spd_inverse(m, xp=xp)

    def loss(p, x):
        h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]
        return jnp.mean(jnp.sum(h**2, axis=-1))

    r = np.random.default_rng(1)
    params = {"w": jnp.asarray(r.standard_normal((6, 4, 4)))}  # six layers
    x = jnp.asarray(r.standard_normal((N, 4)))
    layers = ngd_jax.report(loss, params, x)

    def direction(params, x, ops, **split):
        optimizer = ngd_jax.precondition(layers, ngd_core.KFAC(ops=ops), **split)
        _, grads, records = ngd_jax.value_and_grad(loss)(params, x)
        return optimizer.update(grads, optimizer.init(params), records=records)

    counting = Ops(spd_inverse=spd_inverse, cond=ngd_jax.NATIVE.cond)
    want = jax.jit(lambda p, x: direction(p, x, ngd_jax.NATIVE))(params, x)
    got = jax.jit(lambda p, x: direction(p, x, counting, **SPLIT))(params, x)
    jax.effects_barrier()
    assert [inverted.count(k) for k in range(4)] == [4, 4, 2, 2], inverted
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for one, other in pairs:
        assert_close(np.asarray(one), np.asarray(other), size=100, kappa=1000)
    print("dealt")


a_layer_on_each()
each_method()
