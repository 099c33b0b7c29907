"""What do the transformations of ngd_jax cost beside plain Optax? Compilation and steps.

Three networks, each jitted step in one thread: CPU time of the process to trace and to compile it,
and of blocks of steps that span the inverses' interval, contenders in turn. Median and quartiles
over rounds of the ratio to SGD of the same round. Writes docs/benchmarks/jax-step.json and the
table made of it after each network; networks that are not run again keep their rows. Two rounds of
the MLP and the CNN (NGD_ROUNDS=2 NGD_MODELS=MLP,CNN) take seven minutes on a quiet machine.
"""

import json
import os
import platform
import statistics
import time
from itertools import pairwise
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
from jax import lax
from rich.console import Console

from ngd_core.lab import jax_models

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
ROUNDS, BLOCK = int(os.environ.get("NGD_ROUNDS", 3)), int(os.environ.get("NGD_BLOCK", 100))
RATE, CLASSES = 1e-4, 10
FIRST = "SGD + momentum"
OFTEN = {"factor_every": 10, "inverse_every": 100}
EVERY = {"factor_every": 1, "inverse_every": 1}
METHODS = {
    FIRST: (lambda: optax.sgd(RATE, momentum=0.9), None, {}),
    "AdamW": (lambda: optax.adamw(RATE), None, {}),
    "K-FAC 10/100": (ngd_jax.kfac, "mc", OFTEN),
    "K-FAC 10/100, empirical": (ngd_jax.kfac, "empirical", OFTEN),
    "K-FAC every step": (ngd_jax.kfac, "mc", EVERY),
    "EKFAC 10/100": (ngd_jax.ekfac, "mc", OFTEN),
    "Projective 10/100": (ngd_jax.projective_kfac, "mc", OFTEN),
    "SNGD 10/100": (ngd_jax.sngd, "empirical", OFTEN),
    "FNGD, later epochs": (ngd_jax.fngd, "empirical", {"steps_per_epoch": 2}),
    "SOFIM": (lambda: ngd_jax.sofim(RATE, rho=1.0), None, {}),
}


def normal(r, *shape, scale=1.0):
    return jnp.asarray(scale * r.standard_normal(shape), jnp.float32)


def mlp(r):
    sizes = (784, 512, 512, CLASSES)
    params = {}
    for k, (a, b) in enumerate(pairwise(sizes)):
        params[f"w{k}"], params[f"b{k}"] = normal(r, a, b, scale=a**-0.5), normal(r, b, scale=0.0)

    def predict(p, x):
        for k in range(2):
            x = jax.nn.relu(x @ p[f"w{k}"] + p[f"b{k}"])
        return x @ p["w2"] + p["b2"]

    return predict, params, normal(r, 256, 784)


def cnn(r):
    channels = (1, 16, 32, 64)
    params = {"w": normal(r, 64, CLASSES, scale=0.1), "b": normal(r, CLASSES, scale=0.0)}
    for k, (a, b) in enumerate(pairwise(channels)):
        params[f"k{k}"] = normal(r, b, a, 3, 3, scale=(9 * a) ** -0.5)
        params[f"c{k}"] = normal(r, b, 1, 1, scale=0.0)

    def predict(p, x):
        for k in range(3):
            h = lax.conv_general_dilated(x, p[f"k{k}"], (1, 1), "SAME") + p[f"c{k}"]
            x, window = jax.nn.relu(h), (1, 1, 2, 2)
            if k < 2:
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        return jnp.mean(x, (2, 3)) @ p["w"] + p["b"]

    return predict, params, normal(r, 128, 1, 28, 28)


def transformer(r):
    module = jax_models.fresh("transformer", (1, 8, 8), CLASSES, 0)
    return module.apply, module.params, normal(r, 128, 1, 8, 8)


MODELS = {"MLP": mlp, "CNN": cnn, "transformer": transformer}


def contender(name, predict, params, x, y):
    """Compiled step, its first arguments, and seconds of CPU time to trace and to compile."""

    def loss_fn(params, x, y):
        outputs = predict(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), outputs

    make, fisher, options = METHODS[name]
    if fisher is None:
        optimizer, both = make(), jax.value_and_grad(loss_fn, has_aux=True)
    else:
        more = {"batch_size": len(x)} if name.startswith("FNGD") else {}
        optimizer = make(ngd_jax.report(loss_fn, params, x, y), RATE, **options, **more)
        both = ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher=fisher, deferred=True)

    def step(params, state, k, x, y):
        drawn = {"key": jax.random.fold_in(jax.random.key(0), k)} if fisher == "mc" else {}
        (value, _), grads, *records = both(params, x, y, **drawn)
        found = {"records": records[0]} if records else {}
        updates, state = optimizer.update(grads, state, params, **found)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    state = optimizer.init(params)
    begun = time.process_time()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, 0, x, y)
    traced = time.process_time()
    compiled = lowered.compile()
    return compiled, [params, state], (traced - begun, time.process_time() - traced)


def run(made, at, steps, batch):
    """Take steps; milliseconds of CPU time a step, and the last loss."""
    jax.block_until_ready(at)
    begun = time.process_time()
    for k in range(steps):
        *at[:], value = made(*at, k, *batch)
    jax.block_until_ready(at)
    return 1e3 * (time.process_time() - begun) / steps, float(value)


def measured(name):
    """Rows of all contenders on one network."""
    r = np.random.default_rng(0)
    predict, params, x = MODELS[name](r)
    batch = x, jnp.asarray(r.integers(0, CLASSES, len(x)), jnp.int32)
    rows, spent = {}, {method: [] for method in METHODS}
    made = {method: contender(method, predict, params, *batch) for method in METHODS}
    for step, at, _ in made.values():
        run(step, at, 4, batch)  # warm; two short epochs of FNGD
    for _ in range(ROUNDS):
        for method, (step, at, _) in made.items():
            steps = max(1, BLOCK // 5) if "every" in method else BLOCK
            spent[method].append(run(step, at, steps, batch))
    for method, (_, _, seconds) in made.items():
        base = [ms for ms, _ in spent[FIRST]]
        ratios = [ms / sgd for (ms, _), sgd in zip(spent[method], base, strict=True)]
        rows[method] = {
            "trace_s": seconds[0],
            "compile_s": seconds[1],
            "milliseconds": statistics.median(ratios) * statistics.median(base),
            "ratio": [float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75])],
            "loss": spent[method][-1][1],
        }
    return rows


def table(results):
    """Markdown: median and quartiles; seconds to trace and compile."""
    lines = ["| | " + " | ".join(results) + " |", "| --- " * (len(results) + 1) + "|"]
    for method in METHODS:
        cells = []
        for rows in results.values():
            (low, middle, high), row = rows[method]["ratio"], rows[method]
            built = row["trace_s"] + row["compile_s"]
            cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f}); {built:.1f} s")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.filterwarnings("ignore")
def test_cost_beside_optax():
    chosen = os.environ.get("NGD_MODELS", ",".join(MODELS)).split(",")
    file = OUT / "jax-step.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    OUT.mkdir(exist_ok=True)
    jax.config.update("jax_enable_compilation_cache", False)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        for name in chosen:
            results[name] = {
                "about": {
                    "jax": jax.__version__,
                    "optax": optax.__version__,
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
                    "rounds": ROUNDS,
                    "block": BLOCK,
                    "load": os.getloadavg()[0],
                },
                "rows": measured(name),
            }
            file.write_text(json.dumps({"results": results}, indent=1) + "\n")
            shown = table({key: one["rows"] for key, one in results.items()})
            (OUT / "jax-step.md").write_text(shown)
            Console().print(shown)
    for name in chosen:
        for method, row in results[name]["rows"].items():
            if not np.isfinite(row["loss"]):
                pytest.fail(f"{method} on the {name}: the loss is {row['loss']}")
