"""Analysis of a dense Fisher matrix by definition: determinants, spectra, estimators, directions.

What needs no word of its own is left to the reader: the trace, the diagonal, the eigenvalues of a
matrix are NumPy's. F is the Fisher of the mean loss; damping is added to it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.losses import Likelihood

__all__ = [
    "DenseAgreement",
    "agreement",
    "effective_dimension",
    "gradient_fisher",
    "kl_divergence",
    "log_determinant",
    "ritz_values",
    "sign_trace_variance",
    "smoothed_density",
]


def gradient_fisher(gradients: ArrayLike) -> Array:
    """Fisher ``(1/N) sum_n sum_m u_mn u_mn^T`` of given per-example gradients.

    Parameters
    ----------
    gradients : array of shape (M, N, P)
        M back-propagated vectors, which are summed, of N examples.

    Returns
    -------
    array of shape (P, P), float64
        Symmetric and positive semi-definite.

    Examples
    --------
    >>> from ngd_core.reference import gradient_fisher
    >>> gradient_fisher([[[1.0, 2.0]], [[0.0, 1.0]]])
    array([[1., 2.],
           [2., 5.]])
    """
    u = double(gradients)
    n_vectors, n_examples, size = u.shape
    total = np.zeros((size, size))
    for m in range(n_vectors):
        for n in range(n_examples):
            total += np.outer(u[m, n], u[m, n])
    total /= n_examples
    return total


def log_determinant(fisher: ArrayLike, damping: float) -> float:
    """Logarithm of ``det(F + damping I)`` from the matrix itself.

    Parameters
    ----------
    fisher : array of shape (P, P)
        Symmetric positive semi-definite.
    damping : float
        Added to the diagonal.

    Returns
    -------
    float
        The logarithm.

    Examples
    --------
    >>> from ngd_core.reference import log_determinant
    >>> round(log_determinant([[1.0, 0.0], [0.0, 3.0]], 1.0), 6)
    2.079442
    """
    F = double(fisher)
    sign, value = np.linalg.slogdet(F + damping * np.eye(len(F)))
    return float(value) if sign > 0 else float("nan")


def effective_dimension(fisher: ArrayLike, damping: float) -> float:
    """Trace of ``F (F + damping I)^-1``.

    Parameters
    ----------
    fisher : array of shape (P, P)
        Symmetric positive semi-definite.
    damping : float
        Added to the diagonal.

    Returns
    -------
    float
        Between 0 and P.

    Examples
    --------
    >>> from ngd_core.reference import effective_dimension
    >>> round(effective_dimension([[1.0, 0.0], [0.0, 3.0]], 1.0), 6)
    1.25
    """
    F = double(fisher)
    return float(np.trace(np.linalg.solve(F + damping * np.eye(len(F)), F)))


def sign_trace_variance(matrix: ArrayLike) -> float:
    """Variance of ``z^T M z`` over all ``2^P`` vectors of signs, by going through all of them.

    Parameters
    ----------
    matrix : array of shape (P, P)
        Symmetric; P of at most some 15.

    Returns
    -------
    float
        Variance for signs that are drawn independently with equal chances.

    Examples
    --------
    >>> from ngd_core.reference import sign_trace_variance
    >>> sign_trace_variance([[5.0, 1.0], [1.0, 2.0]])
    4.0
    """
    M = double(matrix)
    values = [
        np.asarray(z) @ M @ np.asarray(z) for z in itertools.product((-1.0, 1.0), repeat=len(M))
    ]
    return float(np.var(values))


def ritz_values(matrix: ArrayLike, start: ArrayLike, steps: int) -> Array:
    """Eigenvalues of a matrix compressed to a Krylov space, what Lanczos finds in so many steps.

    Parameters
    ----------
    matrix : array of shape (P, P)
        Symmetric.
    start : array of shape (P,)
        First vector of the space.
    steps : int
        Largest dimension of the space ``span(b, M b, M^2 b, ...)``.

    Returns
    -------
    array of shape (dimension,), float64
        Largest first; fewer than `steps` where the space is smaller.

    Examples
    --------
    >>> from ngd_core.reference import ritz_values
    >>> ritz_values([[1.0, 0.0], [0.0, 3.0]], [1.0, 1.0], 1)
    array([2.])
    >>> ritz_values([[1.0, 0.0], [0.0, 3.0]], [1.0, 0.0], 2)
    array([1.])
    """
    M, b = double(matrix), double(start)
    size = max(float(np.linalg.norm(M)), 1e-300)
    basis = np.zeros((len(M), 0))
    for _ in range(steps):
        for _ in range(3):  # Gram-Schmidt, again and again
            b = b - basis @ (basis.T @ b)
        if np.linalg.norm(b) <= 1e-10 * size and basis.shape[1]:
            break
        basis = np.concatenate([basis, (b / np.linalg.norm(b))[:, None]], axis=1)
        b = M @ basis[:, -1]
    return np.linalg.eigvalsh(basis.T @ M @ basis)[::-1]


def smoothed_density(nodes: ArrayLike, weights: ArrayLike, grid: ArrayLike, width: float) -> Array:
    """Sum of normal densities around nodes, by loops.

    Parameters
    ----------
    nodes, weights : array of equal shape
        Places and masses.
    grid : array of shape (G,)
        Where the density is wanted.
    width : float
        Standard deviation of each normal density.

    Returns
    -------
    array of shape (G,), float64
        Density.

    Examples
    --------
    >>> from ngd_core.reference import smoothed_density
    >>> smoothed_density([0.0], [1.0], [0.0], 1.0).round(6)
    array([0.398942])
    """
    places, masses, x = double(nodes), double(weights), double(grid)
    require_shape("weights", masses, places.shape)
    density = np.zeros(len(x))
    for i in range(len(x)):
        for place, mass in zip(places.flat, masses.flat, strict=True):
            bell = np.exp(-0.5 * ((x[i] - place) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
            density[i] += mass * bell
    return density


class DenseAgreement(NamedTuple):
    """A direction beside the exact natural gradient.

    Parameters
    ----------
    cosine : float
        Of the angle between them.
    relative_error : float
        Norm of the difference over that of the exact one.
    decrease : float
        Decrease of the quadratic model along the direction, at its best step size, over that of
        the exact one.
    """

    cosine: float
    relative_error: float
    decrease: float


def agreement(
    fisher: ArrayLike, direction: ArrayLike, gradient: ArrayLike, damping: float
) -> DenseAgreement:
    """Compare a direction with ``(F + damping I)^-1 gradient``.

    Parameters
    ----------
    fisher : array of shape (P, P)
        Symmetric positive semi-definite.
    direction : array of shape (P,)
        Direction u; the parameters move along -u.
    gradient : array of shape (P,)
        Gradient of the mean loss.
    damping : float
        Added to the diagonal of F.

    Returns
    -------
    DenseAgreement
        Three numbers.

    Examples
    --------
    >>> from ngd_core.reference import agreement
    >>> agreement([[1.0]], [-3.0], [1.0], 1.0)
    DenseAgreement(cosine=-1.0, relative_error=7.0, decrease=0.0)
    """
    F, u, g = double(fisher), double(direction), double(gradient)
    H = F + damping * np.eye(len(F))
    exact = np.linalg.solve(H, g)

    def model(step: Array) -> float:
        return float(g @ step + 0.5 * step @ H @ step)

    # along -u the model is a parabola; three of its values give the lowest
    slope = (model(-u) - model(u)) / 2
    bend = model(-u) + model(u)
    best = max(0.0, -slope / bend)
    return DenseAgreement(
        float(u @ exact / (np.linalg.norm(u) * np.linalg.norm(exact))),
        float(np.linalg.norm(u - exact) / np.linalg.norm(exact)),
        abs(model(-best * u) / model(-exact)),
    )


def kl_divergence(likelihood: Likelihood, outputs: ArrayLike, others: ArrayLike) -> Array:
    """Divergence ``KL(p(. | f) || p(. | f'))`` of each example's distribution of targets.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        See `loss_value`.
    outputs, others : array of shape (N, ..., C)
        Network outputs f and f'.

    Returns
    -------
    array of shape (N,), float64
        Summed over positions and, for the last two likelihoods, outputs.

    Raises
    ------
    ValueError
        For an unknown likelihood, or if the shapes differ.

    Examples
    --------
    >>> from ngd_core.reference import kl_divergence
    >>> kl_divergence("gaussian", [[1.0, 1.0]], [[1.0, 3.0]])
    array([2.])
    """
    f, h = double(outputs), double(others)
    require_shape("others", h, f.shape)
    if likelihood == "gaussian":
        parts = 0.5 * (f - h) ** 2
    elif likelihood == "bernoulli":
        p, q = 1.0 / (1.0 + np.exp(-f)), 1.0 / (1.0 + np.exp(-h))
        parts = p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
    elif likelihood == "categorical":
        p, q = np.exp(f), np.exp(h)
        p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
        parts = p * np.log(p / q)
    else:
        msg = f"likelihood is {likelihood!r}; expected 'categorical', 'bernoulli' or 'gaussian'."
        raise ValueError(msg)
    total: Array = parts.reshape(len(f), -1).sum(axis=1)
    return total
