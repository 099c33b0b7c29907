"""Gated recurrent layers as dense layers: all gates read ``[a_t, h_(t-1), 1]`` and share one G."""

import numpy as np
import pytest
from core.sngd_cases import one_step
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import SNGD, Hyper, LayerRecord, LayerSpec, factors, reference
from ngd_core.testing.assertions import assert_close, assert_far

N, T, INPUTS, HIDDEN = 3, 4, 2, 2
GATES = {"lstm": 4, "coupled": 3}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(z, cell):
    """Next hidden and cell state of the stacked gates' pre-activations."""
    i, f, o, g = (z[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def coupled(z, cell):
    """The same with one gate for input and forgetting."""
    i, o, g = (z[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(3))
    cell = (1 - sigmoid(i)) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


CELLS = {"lstm": lstm, "coupled": coupled}


def unrolled(kind, block, a, nudge=0.0):
    """Losses of the examples and the rows that the gates read; their outputs are nudged."""
    nudge = nudge + np.zeros((N, T, GATES[kind] * HIDDEN))
    hidden = memory = np.zeros((N, HIDDEN))
    rows = []
    for t in range(T):
        rows.append(np.concatenate([a[:, t], hidden], axis=1))
        z = rows[-1] @ block[:, :-1].T + block[:, -1] + nudge[:, t]
        hidden, memory = CELLS[kind](z, memory)
    return np.sum(hidden**3 + hidden, axis=1), np.stack(rows, axis=1)


def case(kind, seed):
    """Layer, record and block of one network, derivatives by complex steps."""
    r = rng(seed)
    spec = LayerSpec(kind, "dense", INPUTS + HIDDEN, GATES[kind] * HIDDEN)
    block, a = r.standard_normal(spec.block_shape), r.standard_normal((N, T, INPUTS))
    _, rows = unrolled(kind, block, a)
    nudges = np.zeros((N, T, spec.out_features))
    slopes = reference.jacobian(lambda nudge: unrolled(kind, block, a, nudge)[0], nudges)
    g = np.stack([slopes[n, n] for n in range(N)])
    exact = reference.jacobian(lambda block: unrolled(kind, block, a)[0], block)
    return spec, LayerRecord(rows, g), exact


KINDS = st.sampled_from(list(GATES))


@law(seed=seeds, kind=KINDS, dtype=dtypes)
def test_gates_are_one_dense_layer(backend, seed, kind, dtype):
    """Per-example gradients through all times, by the record of inputs and gate gradients."""
    spec, record, exact = case(kind, seed)
    found = backend.call(
        lambda record, xp: factors.per_example_gradients(spec, record, xp=xp),
        backend.tree(record, dtype),
    )
    assert_close(backend.numpy(found)[0], exact, dtype=dtype, size=T)


@law(seed=seeds, kind=KINDS, dtype=dtypes)
def test_all_gates_share_one_local_fisher(backend, seed, kind, dtype):
    """The direction is the dense solve with one G, and that of each gate taken by itself."""
    spec, record, exact = case(kind, seed)
    grad, hyper = exact.mean(axis=0), Hyper(damping=0.1)
    _, directions, _, _ = one_step(backend, SNGD(), [{spec: record}], {spec: grad}, hyper, dtype)
    G = np.zeros((spec.columns, spec.columns))
    for row in record.a.reshape(N * T, -1):
        G += np.outer([*row, 1.0], [*row, 1.0]) / (N * T)
    want = reference.local_direction(grad, G, 0.1)
    kappa = np.linalg.cond(G + reference.local_damping(G, 0.1) * np.eye(len(G)))
    assert_close(directions[spec], want, dtype=dtype, size=N * T, kappa=kappa)
    assert_far(directions[spec], grad, least=0.1)


@pytest.mark.parametrize("kind", GATES)
def test_gates_apart_have_the_same_direction(kind):
    """One layer a gate, each with a G of its own, gives what the stacked layer gives."""
    spec, record, exact = case(kind, 7)
    parts = {
        LayerSpec(f"gate{k}", "dense", spec.in_features, HIDDEN): slice(
            k * HIDDEN, (k + 1) * HIDDEN
        )
        for k in range(GATES[kind])
    }
    grad, hyper, method = exact.mean(axis=0), Hyper(damping=0.1), SNGD()

    def direction(records, grads):
        state = method.accumulate(method.init(list(grads), np.zeros(())), records, hyper)
        return method.direction(method.refresh(state, hyper)[0], grads, {}, hyper)[0]

    together = direction({spec: record}, {spec: grad})[spec]
    apart = direction(
        {gate: record._replace(g=record.g[..., place]) for gate, place in parts.items()},
        {gate: grad[place] for gate, place in parts.items()},
    )
    assert_close(np.concatenate(list(apart.values())), together, size=N * T)
