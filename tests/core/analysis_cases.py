"""Batches of several layers for the analysis, and their per-example gradients by the oracle."""

from __future__ import annotations

import numpy as np
from harness import rng
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, reference
from ngd_core.factors import several_vectors

FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False, sharing="reduce")
GEOMETRY = Conv2dGeometry((2, 1), stride=(1, 2), padding=((1, 0), (0, 0)), groups=2)
CONV = LayerSpec("conv", "conv2d", 2, 4, geometry=GEOMETRY)
WIDE = LayerSpec("wide", "dense", 7, 9)  # two positions are cheaper in pairs than its gradients
PIXEL = LayerSpec("pixel", "conv2d", 2, 2, geometry=Conv2dGeometry(3, groups=2))
TOKENS = LayerSpec("tokens", "embedding", 5, 3, bias=False)
SCALE = LayerSpec("scale", "scale", 4, 4)

SETS = {"kinds": (FC, SEQ, CONV), "wide": (WIDE, PIXEL), "more": (TOKENS, SCALE)}
PAIR = (FC, CONV)
P = 20
"""Parameters of the pair: 8 and 12."""
INPUTS = {FC: (3,), SEQ: (2, 2, 2), CONV: (2, 2, 3), WIDE: (2, 7), PIXEL: (2, 3, 3)}
OUTPUTS = {FC: (2,), SEQ: (2, 2, 3), CONV: (4, 2, 2), WIDE: (2, 9), PIXEL: (2, 1, 1)}
INPUTS |= {TOKENS: (3,), SCALE: (2, 4)}
OUTPUTS |= {TOKENS: (3, 3), SCALE: (2, 4)}

sizes = st.sampled_from([(None, 4), (2, 3), (1, 1)])
"""Numbers of back-propagated vectors (None: the axis is missing) and of examples."""


def batch(seed, vectors, n, dtype="float64", specs=PAIR):
    """Random records: float64 numbers that `dtype` holds exactly."""
    r = rng(seed)

    def draw(*shape):
        return r.standard_normal(shape).astype(dtype).astype(np.float64)

    def inputs(spec):
        if spec.kind == "embedding":
            return r.integers(0, spec.in_features, (n, *INPUTS[spec]))
        return draw(n, *INPUTS[spec])

    lead = () if vectors is None else (vectors,)
    return {s: LayerRecord(inputs(s), draw(*lead, n, *OUTPUTS[s])) for s in specs}


def blocks(seed, dtype="float64", specs=PAIR):
    """Random blocks of the layers, one mapping."""
    r = rng(seed)
    return {s: r.standard_normal(s.block_shape).astype(dtype).astype(np.float64) for s in specs}


def layer_gradients(spec, record):
    """Per-example gradients (M, N, p) of a layer by the oracle, group after group."""
    a = record.a
    g = record.g if several_vectors(spec, record) else record.g[None]
    n, m, k = len(a), len(g), spec.groups
    if spec.kind == "scale":
        return np.stack([reference.norm_scale_example_gradients(a, y).T for y in g])
    if spec.kind == "embedding":
        a = np.eye(spec.in_features)[a]
    if spec.geometry is None:
        x, y = a.reshape(1, n, -1, spec.in_features), g.reshape(m, 1, n, -1, spec.rows)
    else:
        geo = spec.geometry
        pads = geo.pads(*a.shape[2:])
        x = reference.conv_patches(a, geo.kernel_size, geo.stride, geo.dilation, pads, k)
        x = x[None] if k == 1 else x
        y = np.moveaxis(g.reshape(m, n, k, spec.rows, -1), (2, 4), (1, 3))
    parts = [
        np.stack([reference.example_gradients(x[i], y[v, i], spec.bias).T for v in range(m)])
        for i in range(k)
    ]
    return np.concatenate(parts, axis=-1)


def gradients(records):
    """Per-example gradients (M, N, P) of all layers, in their order."""
    return np.concatenate([layer_gradients(s, r) for s, r in records.items()], axis=-1)


def fisher(records):
    """Dense joint Fisher of all layers."""
    return reference.gradient_fisher(gradients(records))


def flat(mapping, specs=PAIR):
    """Blocks in one vector, in the order of the layers (that of a mapping may be another)."""
    return np.concatenate([np.asarray(mapping[s], np.float64).reshape(-1) for s in specs])


def cut(vector, specs=PAIR):
    """Blocks of a vector; the inverse of `flat`."""
    ends = np.cumsum([np.prod(s.block_shape) for s in specs])[:-1]
    parts = zip(specs, np.split(vector, ends), strict=True)
    return {s: part.reshape(s.block_shape) for s, part in parts}


def slow(backend):
    """Whether every shape and dtype costs the library seconds of compiling."""
    return backend.library == "jax" or backend.variant == "compile"
