"""What is left of FNGD's coefficients after their first epoch: a gain a layer, or more?

Trains the demo's networks with coefficients computed anew at every step, shared by sample, by
iteration and by position, with one frozen gain a layer in their place, and with plain gradients;
each at its best learning rate. `make bench` prints the table.
"""

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from ngd_core import FNGD, Hyper, losses, nn, step
from ngd_core.inversion import EAGER
from ngd_core.lab.data import load
from ngd_core.lab.models import MODELS

BATCH, EPOCHS = 128, 20
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
MODES = ("plain gradient", "every step", "sample", "iteration", "position", "layer gain")
LOSS = losses.categorical


def method_of(mode, iterations, examples):
    share = mode if mode in ("sample", "iteration") else "position"
    refresh = 1 if mode == "every step" else None
    return FNGD(
        share,
        batch_size=BATCH,
        iterations=iterations,
        dataset_size=examples,
        refresh_epochs=refresh,
        ops=EAGER,
    )


def index_of(mode, k, rows):
    if mode == "sample":
        return rows
    return np.asarray(k) if mode == "iteration" else None


def train(model, data, mode, damping, rate, seed):
    """Mean training loss after the last epoch."""
    r = np.random.default_rng(seed)
    n = len(data.y_train)
    uniforms = {name: r.random(shape, dtype=np.float32) for name, shape in nn.shapes(model).items()}
    params, specs, hyper = nn.init(model, uniforms), nn.specs(model), Hyper(damping=damping)
    starts = range(0, n, BATCH)
    method = method_of(mode, len(starts), n)
    state, velocity, gains = method.init(specs, np.float32(0)), step.momentum_init(params), None
    for epoch in range(EPOCHS):
        order = r.permutation(n)
        for k, start in enumerate(starts):
            rows = order[start : start + BATCH]
            x, y = data.x_train[rows], data.y_train[rows]
            outputs, tape = nn.forward(model, params, x)
            grads, records, _ = nn.backward(model, params, tape, LOSS.gradient(outputs, y))
            blocks = {spec: grads[spec.name] for spec in specs}
            if mode == "plain gradient":
                directions = blocks
            elif mode == "layer gain" and gains is not None:
                directions = {spec: gains[spec] * block for spec, block in blocks.items()}
            else:
                index = index_of(mode, k, rows)
                if method.recording(epoch):
                    state = method.accumulate(state, records, hyper, index=index)
                directions, _ = method.direction(state, blocks, records, hyper, index=index)
            named = {spec.name: u for spec, u in directions.items()}
            steps, velocity = step.momentum(velocity, named)
            params = step.sgd(params, steps, rate)
        if mode != "plain gradient" and method.recording(epoch):
            state, info = method.refresh(state, hyper)
            gains = {spec: info[spec].measures["gain"] for spec in specs}
    outputs = nn.predict(model, params, data.x_train)
    return float(np.mean(LOSS.value(outputs, data.y_train)))


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-relu"])
def test_sharing(name):
    data = load("digits", None)
    model = MODELS[name].build(data.x_train.shape[1:], data.classes)
    title = f"{MODELS[name].title}: training loss after {EPOCHS} epochs of batches of {BATCH}"
    table = Table("coefficients", *(f"rho {rho:g}" for rho in (10, 1, 0.1)), title=title)
    with np.errstate(all="ignore"):
        for mode in MODES:
            cells = []
            for rho in (10.0, 1.0, 0.1):
                runs = {
                    rate: np.mean([train(model, data, mode, rho, rate, seed) for seed in (0, 1)])
                    for rate in RATES
                }
                best = min(runs, key=lambda rate: np.nan_to_num(runs[rate], nan=np.inf))
                cells.append(f"{runs[best]:.2g} (lr {best:g})")
                if mode == "plain gradient":
                    cells += [cells[0]] * 2
                    break
            table.add_row(mode, *cells)
    Console(width=110).print(table)
