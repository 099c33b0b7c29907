"""Seeded data for the laws: matrices with a chosen spectrum, records, small networks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ngd_core import nn, reference
from ngd_core.types import Conv2dGeometry, LayerRecord, LayerSpec

__all__ = ["LAYERS", "Problem", "blocks", "layer_oracle", "problem", "records", "spd"]

Floats = npt.NDArray[np.float64]

FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False, sharing="reduce")
CONV = LayerSpec("conv", "conv2d", 2, 4, geometry=Conv2dGeometry(2, padding="same", groups=2))
LAYERS = {"fc": FC, "seq": SEQ, "conv": CONV}
"""A dense layer, one with shared positions that are reduced, and a grouped convolution."""

_SHAPES = {
    "fc": ((3,), (2,)),
    "seq": ((2, 2), (2, 3)),
    "conv": ((2, 2, 2), (4, 2, 2)),
}


def spd(
    n: int,
    condition: float,
    *,
    seed: int,
    spectrum: Literal["geometric", "cluster"] = "geometric",
) -> Floats:
    """Symmetric positive definite matrix of a known spectrum and condition number.

    Parameters
    ----------
    n : int
        Order.
    condition : float
        Largest eigenvalue, 1, over the smallest; a matrix of order 1 has the condition 1.
    seed : int
        Of the random eigenvectors.
    spectrum : "geometric" or "cluster"
        Eigenvalues in a geometric series, or all equal but for the smallest.

    Returns
    -------
    array of shape (n, n), float64
        The matrix.

    Examples
    --------
    >>> import numpy as np
    >>> float(np.linalg.cond(spd(3, 100.0, seed=0)).round(6))
    100.0
    """
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    w = np.geomspace(1.0, 1.0 / condition, n) if n > 1 else np.ones(1)
    if spectrum == "cluster":
        w[1:-1] = 1.0
    m = (q * w) @ q.T
    return np.asarray((m + m.T) / 2)


def records(
    names: tuple[str, ...], examples: int, seed: int, scale: float = 1.0
) -> dict[LayerSpec, LayerRecord]:
    """Random records of some of the `LAYERS`, inputs and gradients unrelated.

    Parameters
    ----------
    names : tuple of str
        Of "fc", "seq" and "conv".
    examples : int
        Number N of examples.
    seed : int
        Of the numbers, standard normal.
    scale : float
        Factor of the gradients.

    Returns
    -------
    dict of LayerSpec to LayerRecord
        float64 NumPy arrays.

    Examples
    --------
    >>> [(spec, record)] = records(("fc",), 4, seed=0).items()
    >>> record.a.shape, record.g.shape
    ((4, 3), (4, 2))
    """
    r, drawn = np.random.default_rng(seed), {}
    for name in names:
        a, g = (r.standard_normal((examples, *shape)) for shape in _SHAPES[name])
        drawn[LAYERS[name]] = LayerRecord(a, scale * g)
    return drawn


def blocks(names: tuple[str, ...], seed: int, scale: float = 1.0) -> dict[LayerSpec, Floats]:
    """Random gradients of some of the `LAYERS`, one block ``[W b]`` each.

    Parameters
    ----------
    names : tuple of str
        Of "fc", "seq" and "conv".
    seed : int
        Of the numbers, standard normal.
    scale : float
        Their factor.

    Returns
    -------
    dict of LayerSpec to array
        float64 NumPy arrays.

    Examples
    --------
    >>> [block.shape for block in blocks(("fc", "conv"), seed=0).values()]
    [(2, 4), (2, 2, 5)]
    """
    r = np.random.default_rng(seed + 1)
    return {LAYERS[n]: scale * r.standard_normal(LAYERS[n].block_shape) for n in names}


def layer_oracle(spec: LayerSpec, record: LayerRecord) -> list[tuple[Floats, Floats, Floats]]:
    """Factors and per-example gradients of each group of a layer, by the oracle's loops.

    Parameters
    ----------
    spec : LayerSpec
        Dense or conv2d.
    record : LayerRecord
        NumPy arrays, one back-propagated vector an example.

    Returns
    -------
    list of (A, G, U)
        One entry a group; U holds the examples' gradients in its rows.

    Examples
    --------
    >>> [(spec, record)] = records(("fc",), 4, seed=0).items()
    >>> [(A, G, U)] = layer_oracle(spec, record)
    >>> A.shape, G.shape, U.shape
    ((4, 4), (2, 2), (4, 8))
    """
    size = None if spec.geometry is None else record.a.shape[2:]
    found = []
    for a, g in reference.canonical_record(_oracle_layer(spec, size), record.a, record.g[None]):
        A, G = reference.kronecker_factors(a, g, bias=spec.bias, sharing=spec.sharing)
        U = reference.example_gradients(a, g[0], spec.bias).T
        found.append((A, G, U))
    return found


def _oracle_layer(spec: LayerSpec, size: tuple[int, ...] | None) -> reference.Layer:
    if spec.geometry is None:
        sizes: dict[str, Any] = {"in_features": spec.in_features, "out_features": spec.out_features}
        return reference.Layer("dense", spec.name, **sizes, bias=spec.bias)
    g = spec.geometry
    return reference.Layer(
        "conv2d",
        spec.name,
        in_channels=spec.in_features,
        out_channels=spec.out_features,
        kernel_size=g.kernel_size,
        stride=g.stride,
        dilation=g.dilation,
        padding=g.pads(*(size or (0, 0))),
        groups=g.groups,
        bias=spec.bias,
    )


@dataclass(frozen=True, eq=False)
class Problem:
    """A small network, a batch, a loss and a damping, all that a first step depends on.

    The objective is ``h = (1/N) sum_n l_n`` over the N examples, ``l_n = |f_n - y_n|^2 / 2``,
    summed over the outputs of an example.

    Parameters
    ----------
    model : Sequential
        Of `ngd_core.nn.Dense`, `Conv2d`, `Tanh` and `Flatten`; its ``layers`` in order.
    params : dict of str to array
        Blocks ``[W b]`` by layer name, float64.
    x : array, shape (N, ...)
        Inputs, float64; images are (N, channels, height, width).
    y : array, shape (N, outputs)
        Targets.
    damping : float
        Added to the Fisher of the mean loss.

    Examples
    --------
    >>> from ngd_core.testing.problems import problem
    >>> p = problem("dense", examples=4, seed=0)
    >>> {name: block.shape for name, block in p.params.items()}
    {'first': (4, 4), 'last': (2, 5)}
    """

    model: nn.Sequential
    params: dict[str, Floats]
    x: Floats
    y: Floats
    damping: float = 0.1

    def take(self, index: Any) -> Problem:
        """Return the problem on other examples: of an order, or some of them several times."""
        index = np.asarray(index)
        return replace(self, x=self.x[index], y=self.y[index])

    @functools.cached_property
    def network(self) -> reference.Network:
        """Its description for the oracle."""
        made, size = [], self.x.shape[2:]
        for layer in self.model.layers:
            spec = getattr(layer, "spec", None)
            if spec is None:
                made.append(reference.Layer(type(layer).__name__.lower()))
            else:
                made.append(_oracle_layer(spec, size))
        return reference.Network(tuple(made))

    def gradients(self) -> dict[str, Floats]:
        """Gradients of the mean loss by the oracle, one block a layer."""
        flat = reference.mean_loss_gradient(self.network, self.params, self.x, "gaussian", self.y)
        return self._cut(flat)

    def _cut(self, flat: Floats) -> dict[str, Floats]:
        shapes = [block.shape for block in self.params.values()]
        parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        named = zip(self.params, shapes, parts, strict=True)
        return {name: part.reshape(shape) for name, shape, part in named}

    def example_gradients(self) -> dict[str, Floats]:
        """Gradients of each example's own loss by the oracle, shape (N, *block)."""
        each = reference.loss_gradients(self.network, self.params, self.x, "gaussian", self.y)
        rows = [self._cut(row) for row in each]
        return {name: np.stack([row[name] for row in rows]) for name in self.params}

    @functools.cached_property
    def _vectors(self) -> dict[str, Floats]:
        outputs = self.network.forward(self.params, self.x)
        return {
            "exact": reference.backpropagated_vectors("gaussian", outputs),
            "empirical": reference.backpropagated_vectors("gaussian", outputs, "empirical", self.y),
        }

    def factors(self, fisher: Literal["exact", "empirical"]) -> dict[str, tuple[Floats, Floats]]:
        """Kronecker factors (A, G) of each layer by the oracle."""
        vectors = self._vectors[fisher]
        return reference.kfac_factors(self.network, self.params, self.x, vectors)

    def output_gradients(self) -> dict[str, Floats]:
        """Gradient of each example's loss at each layer's outputs, shape (N, ...)."""
        vectors = self._vectors["empirical"]
        found = reference.output_gradients(self.network, self.params, self.x, vectors)
        return {name: g[0] for name, g in found.items()}

    def kfac(
        self, fisher: Literal["exact", "empirical"], split: Literal["exact", "pi"], scale: float = 1
    ) -> dict[str, Floats]:
        """``(scale G (x) A damped)^-1 grad`` of each layer by dense solves."""
        grads = self.gradients()
        return {
            name: reference.direction(grads[name], A, scale * G, self.damping, split)
            for name, (A, G) in self.factors(fisher).items()
        }

    def condition(self, fisher: Literal["exact", "empirical"]) -> float:
        """Largest condition number of a damped block."""
        largest = [
            np.linalg.eigvalsh(A)[-1] * np.linalg.eigvalsh(G)[-1]
            for A, G in self.factors(fisher).values()
        ]
        return 1 + float(max(largest)) / self.damping


def problem(
    network: Literal["dense", "conv"], examples: int, seed: int, damping: float = 0.1
) -> Problem:
    """Build a small network with random weights and data.

    Parameters
    ----------
    network : "dense" or "conv"
        ``Dense, Tanh, Dense``; or ``Conv2d, Tanh, Flatten, Dense`` on images.
    examples : int
        Number N of examples.
    seed : int
        Of weights and data, standard normal.
    damping : float
        As in `Problem`.

    Returns
    -------
    Problem
        In float64.

    Examples
    --------
    >>> problem("conv", examples=2, seed=0).x.shape
    (2, 2, 3, 3)
    """
    r = np.random.default_rng(seed)
    if network == "dense":
        layers: tuple[Any, ...] = (nn.Dense("first", 3, 4), nn.Tanh(), nn.Dense("last", 4, 2))
        shape: tuple[int, ...] = (3,)
    else:
        conv = nn.Conv2d("first", 2, 3, 2)
        layers = (conv, nn.Tanh(), nn.Flatten(), nn.Dense("last", 12, 2))
        shape = (2, 3, 3)
    model = nn.Sequential(*layers)
    params = {n: r.standard_normal(s) / s[-1] ** 0.5 for n, s in nn.shapes(model).items()}
    return Problem(
        model,
        params,
        r.standard_normal((examples, *shape)),
        r.standard_normal((examples, 2)),
        damping,
    )
