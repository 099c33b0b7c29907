"""Dense Fisher matrices of the mean loss, their blocks, and the dense damped solve.

For ``h = (1/N) sum_n l_n`` the Fisher is ``F = (1/N) sum_n E[grad l_n grad l_n^T]``, the gradient
of an example summed over its positions. The expectation is over targets drawn from the model
(exact, or replaced by a mean over samples), or replaced by the label's gradient (empirical).
Parameters are ordered as by `Network.flatten`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import derivatives, losses
from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.losses import FisherKind, Likelihood
from ngd_core.reference.network import Network

__all__ = [
    "diagonal_blocks",
    "empirical_fisher",
    "exact_fisher",
    "gauss_newton",
    "monte_carlo_fisher",
    "natural_gradient",
    "second_moment",
    "solve",
]


def gauss_newton(jacobians: ArrayLike, hessians: ArrayLike) -> Array:
    """Generalised Gauss-Newton matrix ``(1/N) sum_n J_n^T H_n J_n``.

    Parameters
    ----------
    jacobians : array of shape (N, K, P)
        Of each example's outputs with respect to the parameters.
    hessians : array of shape (N, K, K)
        Of each example's loss with respect to its outputs.

    Returns
    -------
    array of shape (P, P), float64
        Symmetric, positive semi-definite if the Hessians are.

    Examples
    --------
    >>> from ngd_core.reference import gauss_newton
    >>> gauss_newton([[[1.0, 2.0]]], [[[3.0]]])
    array([[ 3.,  6.],
           [ 6., 12.]])
    """
    J, H = double(jacobians), double(hessians)
    n_examples, outputs, size = J.shape
    require_shape("hessians", H, (n_examples, outputs, outputs))
    total = np.zeros((size, size))
    for n in range(n_examples):
        total += J[n].T @ H[n] @ J[n]
    total /= n_examples
    return total


def second_moment(gradients: ArrayLike) -> Array:
    """Mean outer product ``(1/N) sum_n grad_n grad_n^T``.

    Parameters
    ----------
    gradients : array of shape (N, P)
        One gradient per example, not divided by N.

    Returns
    -------
    array of shape (P, P), float64
        Symmetric and positive semi-definite.

    Examples
    --------
    >>> from ngd_core.reference import second_moment
    >>> second_moment([[1.0, 0.0], [1.0, 2.0]])
    array([[1., 1.],
           [1., 2.]])
    """
    rows = double(gradients)
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        total += np.outer(row, row)
    return total / len(rows)


def exact_fisher(
    network: Network, params: Mapping[str, ArrayLike], x: ArrayLike, likelihood: Likelihood
) -> Array:
    """Fisher with the expectation over the model's targets in closed form ("type 2").

    Equal to the generalised Gauss-Newton matrix for all three likelihoods.

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

    Returns
    -------
    array of shape (P, P), float64
        Of the mean loss.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, exact_fisher
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> exact_fisher(network, {"fc": np.zeros((1, 2))}, [[1.0], [3.0]], "gaussian")
    array([[5., 2.],
           [2., 1.]])
    """
    jacobians = derivatives.parameter_jacobians(network, params, x)
    return gauss_newton(jacobians, losses.loss_hessian(likelihood, network.forward(params, x)))


def monte_carlo_fisher(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    likelihood: Likelihood,
    samples: Sequence[ArrayLike],
) -> Array:
    """Fisher with the expectation replaced by a mean over sampled targets.

    ``F = (1/(M N)) sum_{m,n} grad l(x_n, y_mn) grad l(x_n, y_mn)^T``

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
    samples : sequence of M target arrays
        Each as in `loss_value`; `sample_targets` makes them.

    Returns
    -------
    array of shape (P, P), float64
        Of the mean loss.

    Raises
    ------
    ValueError
        If there are no samples.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, monte_carlo_fisher
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> params = {"fc": np.zeros((1, 2))}
    >>> monte_carlo_fisher(network, params, [[3.0]], "gaussian", [[[1.0]], [[-1.0]]])
    array([[9., 3.],
           [3., 1.]])
    """
    if len(samples) == 0:
        msg = "samples is empty; expected at least one array of sampled targets."
        raise ValueError(msg)
    total = np.zeros((network.size, network.size))
    for sample in samples:
        total += empirical_fisher(network, params, x, likelihood, sample)
    total /= len(samples)
    return total


def empirical_fisher(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    likelihood: Likelihood,
    targets: ArrayLike,
) -> Array:
    """Second moment of the per-example gradients at the given labels.

    Not an estimate of the Fisher unless the labels were drawn from the model.

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
        As in `loss_value`.

    Returns
    -------
    array of shape (P, P), float64
        Of the mean loss.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, empirical_fisher
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> params = {"fc": np.zeros((1, 2))}
    >>> empirical_fisher(network, params, [[3.0]], "gaussian", [[2.0]])
    array([[36., 12.],
           [12.,  4.]])
    """
    return second_moment(derivatives.loss_gradients(network, params, x, likelihood, targets))


def diagonal_blocks(fisher: ArrayLike, network: Network) -> dict[str, Array]:
    """Cut out the blocks of F that belong to one layer each.

    Parameters
    ----------
    fisher : array of shape (P, P)
        Matrix over all parameters.
    network : Network
        Description of the layers.

    Returns
    -------
    dict of str to array of shape (p, p)
        p = number of entries of the layer's block, row-major. For a convolution with several
        groups the block covers all of them, group after group.

    Raises
    ------
    ValueError
        If the matrix does not have the network's size.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, diagonal_blocks
    >>> first = Layer("dense", "first", in_features=1, out_features=1, bias=False)
    >>> last = Layer("dense", "last", in_features=1, out_features=1, bias=False)
    >>> diagonal_blocks([[1.0, 2.0], [2.0, 5.0]], Network((first, last)))
    {'first': array([[1.]]), 'last': array([[5.]])}
    """
    F = double(fisher)
    require_shape("fisher", F, (network.size, network.size))
    return {name: F[place, place] for name, place in network.slices.items()}


def solve(fisher: ArrayLike, gradient: ArrayLike, damping: float) -> Array:
    """Dense damped solve ``(F + damping I)^-1 gradient``.

    Parameters
    ----------
    fisher : array of shape (P, P)
        Symmetric positive semi-definite matrix.
    gradient : array of shape (P,)
        Right-hand side.
    damping : float
        Added to the diagonal of F, which is that of the mean loss.

    Returns
    -------
    array of shape (P,), float64
        The solution.

    Raises
    ------
    ValueError
        If the damping is negative.
    numpy.linalg.LinAlgError
        If the damped matrix is exactly singular.

    Examples
    --------
    >>> from ngd_core.reference import solve
    >>> solve([[3.0, 0.0], [0.0, 1.0]], [8.0, 2.0], damping=1.0)
    array([2., 1.])
    """
    F = double(fisher)
    if not damping >= 0:
        msg = f"damping is {damping}; expected a number >= 0."
        raise ValueError(msg)
    return np.linalg.solve(F + damping * np.eye(len(F)), double(gradient))


def natural_gradient(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    targets: ArrayLike,
    likelihood: Likelihood,
    damping: float,
    kind: FisherKind = "exact",
    samples: Sequence[ArrayLike] | None = None,
    blockwise: bool = False,
) -> dict[str, Array]:
    """Natural gradient ``(F + damping I)^-1 grad h`` by the dense matrix.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    targets : array
        Labels, as in `loss_value`.
    likelihood : "categorical", "bernoulli" or "gaussian"
        See `loss_value`.
    damping : float
        Added to the Fisher of the mean loss.
    kind : "exact", "mc" or "empirical"
        Which Fisher.
    samples : sequence of target arrays, optional
        Sampled targets for "mc"; None otherwise.
    blockwise : bool
        Use only the diagonal blocks of F, one per layer.

    Returns
    -------
    dict of str to array
        One block per layer; the parameters change by minus a learning rate times this.

    Raises
    ------
    ValueError
        For an unknown kind, samples missing or unexpected, or negative damping.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, natural_gradient
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1, bias=False),))
    >>> natural_gradient(network, {"fc": [[0.0]]}, [[2.0]], [[2.0]], "gaussian", damping=4.0)
    {'fc': array([[-0.5]])}
    """
    if kind not in ("exact", "mc", "empirical") or (samples is None) == (kind == "mc"):
        msg = f"kind is {kind!r} with samples {'missing' if samples is None else 'given'}; "
        msg += "expected 'exact' or 'empirical' without samples, or 'mc' with samples."
        raise ValueError(msg)
    if kind == "exact":
        F = exact_fisher(network, params, x, likelihood)
    elif samples is None:
        F = empirical_fisher(network, params, x, likelihood, targets)
    else:
        F = monte_carlo_fisher(network, params, x, likelihood, samples)
    gradient = derivatives.mean_loss_gradient(network, params, x, likelihood, targets)
    if not blockwise:
        return network.unflatten(solve(F, gradient, damping))
    direction = np.zeros(network.size)
    for name, block in diagonal_blocks(F, network).items():
        place = network.slices[name]
        direction[place] = solve(block, gradient[place], damping)
    return network.unflatten(direction)
