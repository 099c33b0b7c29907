"""Jacobians and gradients by the complex step, one input coordinate at a time.

For an analytic f, ``Im f(x + i h e_k) / h = df/dx_k + O(h^2)`` and nothing is subtracted, so h can
be tiny and the derivative is exact to rounding (Squire and Trapp 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import losses
from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.losses import Likelihood
from ngd_core.reference.network import Network

__all__ = [
    "jacobian",
    "loss_gradients",
    "mean_loss_gradient",
    "output_gradients",
    "output_jacobians",
    "parameter_jacobians",
]

STEP = 1e-30


def jacobian(f: Callable[[Array], Array], theta: ArrayLike) -> Array:
    """Differentiate every entry of ``f(theta)`` with respect to every entry of `theta`.

    Parameters
    ----------
    f : callable
        Takes an array of theta's shape (complex) and returns an array. It must be analytic in the
        sense of `ngd_core.reference.layers`: no modulus, no comparison but of real parts.
    theta : array
        Where to differentiate; real.

    Returns
    -------
    array of shape ``(*f(theta).shape, *theta.shape)``, float64
        Row-major in both parts.

    Examples
    --------
    >>> from ngd_core.reference import jacobian
    >>> jacobian(lambda x: x**2, [1.0, 3.0])
    array([[2., 0.],
           [0., 6.]])
    """
    theta = double(theta)
    columns = []
    for place in np.ndindex(theta.shape):
        moved = theta.astype(np.complex128)
        moved[place] += 1j * STEP
        columns.append(np.imag(f(moved)) / STEP)
    stacked = np.stack(columns, axis=-1)
    return stacked.reshape(*stacked.shape[:-1], *theta.shape)


def parameter_jacobians(network: Network, params: Mapping[str, ArrayLike], x: ArrayLike) -> Array:
    """Per-example Jacobians of the network's outputs with respect to all parameters.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.

    Returns
    -------
    array of shape (N, K, P), float64
        K outputs of an example (over all positions, row-major), P parameters in the order of
        `Network.flatten`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, parameter_jacobians
    >>> network = Network((Layer("dense", "fc", in_features=2, out_features=1),))
    >>> parameter_jacobians(network, {"fc": np.zeros((1, 3))}, [[5.0, 7.0]])
    array([[[5., 7., 1.]]])
    """
    x = double(x)

    def outputs(theta: Array) -> Array:
        return network.forward(network.unflatten(theta), x).reshape(len(x), -1)

    return jacobian(outputs, network.flatten(params))


def loss_gradients(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    likelihood: Likelihood,
    targets: ArrayLike,
) -> Array:
    """Gradient of every example's loss with respect to all parameters.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    likelihood : "categorical", "bernoulli" or "gaussian"
        See `loss_value`.
    targets : array
        Targets as in `loss_value`.

    Returns
    -------
    array of shape (N, P), float64
        Row n is the gradient of l_n, summed over positions and not divided by N.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, loss_gradients
    >>> network = Network((Layer("dense", "fc", in_features=2, out_features=1),))
    >>> loss_gradients(network, {"fc": np.zeros((1, 3))}, [[5.0, 7.0]], "gaussian", [[-1.0]])
    array([[5., 7., 1.]])
    """

    def values(theta: Array) -> Array:
        f = network.forward(network.unflatten(theta), x)
        return losses.loss_value(likelihood, f, targets)

    return jacobian(values, network.flatten(params))


def mean_loss_gradient(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    likelihood: Likelihood,
    targets: ArrayLike,
) -> Array:
    """Gradient of ``h = (1/N) sum_n l_n`` with respect to all parameters.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    likelihood : "categorical", "bernoulli" or "gaussian"
        See `loss_value`.
    targets : array
        Targets as in `loss_value`.

    Returns
    -------
    array of shape (P,), float64
        Mean of the rows of `loss_gradients`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, mean_loss_gradient
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> params = {"fc": np.zeros((1, 2))}
    >>> mean_loss_gradient(network, params, [[1.0], [3.0]], "gaussian", [[2.0], [0.0]])
    array([-1., -1.])
    """
    rows = loss_gradients(network, params, x, likelihood, targets)
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row
    return total / len(rows)


def output_jacobians(
    network: Network, params: Mapping[str, ArrayLike], x: ArrayLike
) -> dict[str, Array]:
    """Per-example Jacobians of the network's outputs with respect to each layer's output.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.

    Returns
    -------
    dict of str to array of shape (N, K, *layer output of one example), float64
        One entry for each layer with parameters: ``df_n / dz_n``, where the layer's output is
        taken before any following non-linearity.

    Examples
    --------
    >>> from ngd_core.reference import Layer, Network, output_jacobians
    >>> first = Layer("dense", "first", in_features=1, out_features=1, bias=False)
    >>> last = Layer("dense", "last", in_features=1, out_features=2, bias=False)
    >>> params = {"first": [[1.0]], "last": [[3.0], [5.0]]}
    >>> output_jacobians(Network((first, last)), params, [[2.0]])["first"]
    array([[[3.],
            [5.]]])
    """
    x = double(x)
    layer_outputs: dict[str, Array] = {}
    network.forward(params, x, outputs=layer_outputs)
    result = {}
    for name, z in layer_outputs.items():

        def outputs(offset: Array, name: str = name) -> Array:
            f = network.forward(params, x, offsets={name: offset[None]})
            return f.reshape(len(x), -1)

        result[name] = jacobian(outputs, np.zeros(z.shape[1:]))
    return result


def output_gradients(
    network: Network, params: Mapping[str, ArrayLike], x: ArrayLike, vectors: ArrayLike
) -> dict[str, Array]:
    """Back-propagated vectors at each layer's output.

    ``g[m, n] = (df_n / dz_n)^T v[m, n]``

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    vectors : array of shape (M, N, *outputs of one example)
        M vectors for each example: loss gradients (M = 1), sampled ones, or the columns of a root
        of the loss Hessian; see `backpropagated_vectors`.

    Returns
    -------
    dict of str to array of shape (M, N, *layer output of one example), float64
        One entry for each layer with parameters; never divided by N.

    Raises
    ------
    ValueError
        If `vectors` does not fit the network's outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, output_gradients
    >>> network = Network((Layer("dense", "fc", in_features=2, out_features=1),))
    >>> output_gradients(network, {"fc": np.zeros((1, 3))}, [[5.0, 7.0]], [[[2.0]]])
    {'fc': array([[[2.]]])}
    """
    vectors = double(vectors)
    wanted = network.forward(params, x).shape
    require_shape("vectors", vectors, (len(vectors), *wanted))
    n_vectors, n_examples = vectors.shape[:2]
    flat = vectors.reshape(n_vectors, n_examples, -1)
    result = {}
    for name, derivative in output_jacobians(network, params, x).items():
        shape = derivative.shape[2:]
        g = np.zeros((n_vectors, n_examples, math.prod(shape)))
        for m in range(n_vectors):
            for n in range(n_examples):
                g[m, n] = derivative[n].reshape(flat.shape[2], -1).T @ flat[m, n]
        result[name] = g.reshape(n_vectors, n_examples, *shape)
    return result
