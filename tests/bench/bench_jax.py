"""What do the transformations of ngd_jax cost beside plain Optax? Compilation and steps.

Three models, each jitted step in one thread: CPU time of the process to trace and compile it, and
of blocks of steps that span the inverses' interval, contenders in turn. Prints a table of ratios to
SGD (median and quartiles over rounds) and writes demo/jax-cost.json. Minutes, on a quiet machine.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import optax
import pytest
from rich.console import Console
from rich.table import Table

from ngd_core import nn
from ngd_core.lab import jax_models
from ngd_core.lab.models import MODELS

BATCH, BLOCK, ROUNDS = 128, 100, 7
SHAPE, CLASSES = (1, 8, 8), 10
OUT = Path(__file__).parents[2] / "demo"
METHODS = {
    "SGD": None,
    "Adam": None,
    "SOFIM": None,
    "K-FAC": (ngd_jax.kfac, "mc"),
    "EKFAC": (ngd_jax.ekfac, "mc"),
    "SNGD": (ngd_jax.sngd, "empirical"),
    "projective K-FAC": (ngd_jax.projective_kfac, "mc"),
    "FNGD": (ngd_jax.fngd, "empirical"),
}


def module(name):
    if name == "transformer":
        return jax_models.fresh(name, SHAPE, CLASSES, 0)
    network, r = MODELS[name].build(SHAPE, CLASSES), np.random.default_rng(0)
    shapes = nn.shapes(network).items()
    uniforms = {key: r.random(shape, dtype=np.float32) for key, shape in shapes}
    return jax_models.as_module(network, nn.init(network, uniforms))


def contender(name, model, batch):
    """Compiled step, its first arguments, and seconds of CPU time to trace and to compile."""

    def loss_fn(params, x, y):
        outputs = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), outputs

    if METHODS[name] is None:
        plain = {
            "SGD": lambda: optax.sgd(1e-3, momentum=0.9),
            "Adam": lambda: optax.adam(1e-3),
            "SOFIM": lambda: ngd_jax.sofim(1e-3, rho=1.0),
        }
        optimizer, both = plain[name](), jax.value_and_grad(loss_fn, has_aux=True)
    else:
        make, fisher = METHODS[name]
        extra = {"batch_size": BATCH, "steps_per_epoch": BLOCK} if name == "FNGD" else {}
        optimizer = make(ngd_jax.report(loss_fn, model.params, *batch), 1e-3, **extra)
        both = ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher=fisher)
        if fisher == "mc":
            sampled, key = both, jax.random.key(0)

            def both(params, *batch):
                return sampled(params, *batch, key=key)

    def step(params, state, *batch):
        value, grads, *records = both(params, *batch)
        more = {"records": records[0]} if records else {}
        updates, state = optimizer.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(lambda x: jnp.array(x, copy=True), model.params)
    state = optimizer.init(params)
    begun = time.process_time()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *batch)
    traced = time.process_time()
    compiled = lowered.compile()
    return compiled, (params, state), (traced - begun, time.process_time() - traced)


def quartiles(xs):
    return statistics.quantiles(xs, n=4, method="inclusive") if len(xs) > 1 else [xs[0]] * 3


def measure(name, methods, block, rounds):
    """For each method: seconds to trace and compile, seconds a step, ratios to SGD by round."""
    model, r = module(name), np.random.default_rng(1)
    x = jnp.asarray(r.standard_normal((BATCH, *SHAPE)), jnp.float32)
    batch = x, jnp.asarray(r.integers(0, CLASSES, BATCH), jnp.int32)
    made = {method: contender(method, model, batch) for method in methods}
    at, seconds = {m: start for m, (_, start, _) in made.items()}, {m: [] for m in made}
    for turn in range(rounds + 1):  # the first warms up
        for method, (step, _, _) in made.items():
            jax.block_until_ready(at[method])
            begun = time.process_time()
            for _ in range(block):
                *at[method], value = step(*at[method], *batch)
            jax.block_until_ready(at[method])
            if turn:
                seconds[method].append((time.process_time() - begun) / block)
        assert jnp.isfinite(value[0])
    return {
        method: {
            "trace_s": times[0],
            "compile_s": times[1],
            "step_ms": 1e3 * statistics.median(seconds[method]),
            "ratio": [one / sgd for one, sgd in zip(seconds[method], seconds["SGD"], strict=True)],
        }
        for method, (_, _, times) in made.items()
    }


def table(name, found):
    shown = Table("optimizer", "trace s", "compile s", "ms a step", "times SGD", "quartiles")
    shown.title = f"{MODELS[name].title}, batch {BATCH}, CPU time of one thread"
    for method, row in found.items():
        low, middle, high = quartiles(row["ratio"])
        numbers = (row["trace_s"], row["compile_s"], row["step_ms"], middle)
        shown.add_row(method, *(f"{x:.2f}" for x in numbers), f"{low:.2f} to {high:.2f}")
    return shown


@pytest.mark.filterwarnings("ignore")
def test_cost_beside_optax():
    console, found = Console(width=100), {}
    jax.config.update("jax_enable_compilation_cache", False)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        for name in ("mlp", "cnn", "transformer"):
            found[name] = measure(name, METHODS, BLOCK, ROUNDS)
            console.print(table(name, found[name]))
    OUT.mkdir(exist_ok=True)
    about = {
        "jax": jax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }
    about |= {"load": os.getloadavg()}
    about |= {"batch": BATCH, "block": BLOCK, "rounds": ROUNDS}
    (OUT / "jax-cost.json").write_text(json.dumps({"about": about, "models": found}, indent=1))
    for rows in found.values():
        assert all(row["step_ms"] > 0 for row in rows.values())
