"""Layers, records and steps that the tests of SNGD share."""

import functools
import itertools

import numpy as np
from harness import law
from hypothesis import strategies as st

from ngd_core import SNGD, Conv2dGeometry, LayerRecord, LayerSpec, reference

N = 3
FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False, sharing="reduce")
CONV = LayerSpec("conv", "conv2d", 4, 4, geometry=Conv2dGeometry(2, padding="same", groups=2))
SPECS = (FC, SEQ, CONV)
ORACLE = {
    FC: reference.Layer("dense", "fc", in_features=3, out_features=2),
    SEQ: reference.Layer("dense", "seq", in_features=2, out_features=3, bias=False),
    CONV: reference.Layer(
        "conv2d",
        "conv",
        in_channels=4,
        out_channels=4,
        kernel_size=(2, 2),
        padding=((0, 1), (0, 1)),
        groups=2,
    ),
}
SHAPES = {FC: ((3,), (2,)), SEQ: ((4, 2), (4, 3)), CONV: ((4, 2, 2), (4, 2, 2))}
METHODS = {
    "linear": SNGD(),
    "relu": SNGD("relu"),
    "literal": SNGD(mode="literal"),
    "literal relu": SNGD("relu", "literal"),
    "newton-schulz": SNGD(root="newton-schulz", steps=14),
}
MODES = ["relative", "absolute", "trace"]


def batch(r, specs=SPECS):
    """Inputs, gradients and outputs of N examples, unrelated to each other."""
    drawn = {}
    for spec in specs:
        a, z = SHAPES[spec]
        drawn[spec] = LayerRecord(*(r.standard_normal((N, *shape)) for shape in (a, z, z)))
    return drawn


def gradients(r, specs=SPECS):
    return {spec: r.standard_normal(spec.block_shape) for spec in specs}


def varied(name, **options):
    """One of the methods with other options."""
    return SNGD(**{**vars(METHODS[name]), **options})


def oracle_fisher(method, spec, record):
    """Local Fisher matrices by loops."""
    parts = [
        reference.local_fisher(a, z[0] if method.metric == "relu" else None, spec.bias)
        for a, z in reference.canonical_record(ORACLE[spec], record.a, record.z[None])
    ]
    return np.stack(parts) if spec.stack else parts[0]


def run(method, state, records, grads, hyper, *, xp):
    """One whole step; natural directions of the weights, whichever the mode."""
    for record in records:
        state = method.accumulate(state, record, hyper, xp=xp)
    state, refreshed = method.refresh(state, hyper, xp=xp)
    directions, info = method.direction(state, grads, {}, hyper, xp=xp)
    if method.mode == "literal":
        directions = method.weights(state, directions, xp=xp)
    return state, directions, refreshed, info


def one_step(backend, method, records, grads, hyper, dtype="float64"):
    """`run` from the start, through the backend; the layers are those of the gradients."""
    state = method.init(list(grads), backend.array(np.zeros(()), dtype))
    out = backend.call(
        lambda *args, xp: run(method, *args, xp=xp),
        state,
        [backend.tree(record, dtype) for record in records],
        backend.tree(grads, dtype),
        hyper,
    )
    return out[0], *(backend.numpy(part) for part in out[1:])


def traced(backend):
    """Compiled variants: laws that vary values only leave these functions to the other laws."""
    return backend.variant in ("jit", "compile")


def law_over(options, **strategies):
    """`law` that also holds for every combination of a few options.

    Where each combination would be compiled anew, an example draws one of them.
    """

    def decorate(f):
        @functools.wraps(f)
        def every(backend, **drawn):
            if backend.library == "jax" or traced(backend):
                f(backend, **drawn)
                return
            for values in itertools.product(*options.values()):
                chosen = dict(zip(options, values, strict=True))
                try:
                    f(backend, **{**drawn, **chosen})
                except Exception as error:
                    error.add_note(f"with {chosen}")
                    raise

        drawn = {key: st.sampled_from(list(values)) for key, values in options.items()}
        return law(**strategies, **drawn)(every)

    return decorate
