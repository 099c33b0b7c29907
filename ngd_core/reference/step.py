"""Step rules of the K-FAC and KFC papers by definition: dense matrices, flat vectors, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double

__all__ = [
    "conjugate_gradients",
    "iterate_average",
    "kfc_pre_path",
    "levenberg_marquardt",
    "quadratic_coefficients",
    "quadratic_model",
]


def quadratic_model(
    fisher: ArrayLike, gradient: ArrayLike, damping: float, delta: ArrayLike
) -> float:
    """Value ``grad . delta + 1/2 delta^T (F + damping I) delta`` of the model, ``M(delta) - M(0)``.

    Parameters
    ----------
    fisher : array of shape (P, P)
        F of the mean loss.
    gradient : array of shape (P,)
        Gradient of the mean loss.
    damping : float
        Added to F.
    delta : array of shape (P,)
        Step.

    Returns
    -------
    float
        Change of the model.

    Examples
    --------
    >>> from ngd_core.reference import quadratic_model
    >>> quadratic_model([[3.0]], [2.0], 1.0, [-0.5])
    -0.5
    """
    F, g, d = double(fisher), double(gradient), double(delta)
    return float(g @ d + d @ (F + damping * np.eye(len(d))) @ d / 2)


def quadratic_coefficients(
    fisher: ArrayLike, gradient: ArrayLike, directions: Sequence[ArrayLike], damping: float
) -> Array:
    """Coefficients c that minimise the model at ``sum_i c_i v_i``, by least squares.

    Parameters
    ----------
    fisher : array of shape (P, P)
        F of the mean loss.
    gradient : array of shape (P,)
        Gradient of the mean loss.
    directions : sequence of k arrays of shape (P,)
        ``v_i``.
    damping : float
        Added to F.

    Returns
    -------
    array of shape (k,), float64
        ``c``, of the smallest norm if there are several.

    Examples
    --------
    >>> from ngd_core.reference import quadratic_coefficients
    >>> quadratic_coefficients([[3.0]], [2.0], [[1.0]], 1.0)
    array([-0.5])
    """
    V = np.stack([double(v) for v in directions], axis=1)
    K = V.T @ (double(fisher) + damping * np.eye(len(V))) @ V
    solution: Array = np.linalg.lstsq(K, -V.T @ double(gradient), rcond=1e-13)[0]
    return solution


def conjugate_gradients(
    matrix: ArrayLike, right: ArrayLike, start: ArrayLike, preconditioner: ArrayLike, steps: int
) -> Array:
    """Textbook preconditioned conjugate gradients for ``A x = b``.

    Parameters
    ----------
    matrix : array of shape (P, P)
        A, symmetric positive definite.
    right : array of shape (P,)
        b.
    start : array of shape (P,)
        x_0.
    preconditioner : array of shape (P, P)
        Approximation of A, symmetric positive definite; residuals are solved with it.
    steps : int
        Number of steps.

    Returns
    -------
    array of shape (steps, P), float64
        x_1 to x_steps.

    Examples
    --------
    >>> from ngd_core.reference import conjugate_gradients
    >>> conjugate_gradients([[2.0]], [4.0], [0.0], [[1.0]], 1)
    array([[2.]])
    """
    A, M, x = double(matrix), double(preconditioner), double(start)
    r = double(right) - A @ x
    z = np.linalg.solve(M, r)
    p = z
    path = []
    for _ in range(steps):
        alpha = (r @ z) / (p @ A @ p)
        x = x + alpha * p
        old = r @ z
        r = r - alpha * A @ p
        z = np.linalg.solve(M, r)
        p = z + (r @ z) / old * p
        path.append(x)
    return np.stack(path)


def levenberg_marquardt(
    damping: float,
    ratio: float,
    interval: int = 5,
    decay: float = 19 / 20,
    bounds: tuple[float, float] = (1e-8, float("inf")),
) -> float:
    """Damping after one look at the reduction ratio.

    Parameters
    ----------
    damping : float
        Damping before.
    ratio : float
        Reduction ratio; NaN raises the damping.
    interval : int
        Steps between two looks.
    decay : float
        Factor for one step.
    bounds : tuple of two floats
        Least and largest damping.

    Returns
    -------
    float
        Damping after.

    Examples
    --------
    >>> from ngd_core.reference import levenberg_marquardt
    >>> levenberg_marquardt(8.0, 0.1, interval=2, decay=0.5)
    32.0
    """
    for _ in range(interval):
        if ratio > 3 / 4:
            damping *= decay
        elif not ratio >= 1 / 4:
            damping /= decay
    return min(max(damping, bounds[0]), bounds[1])


def iterate_average(iterates: Sequence[ArrayLike], decay: float) -> Array:
    """Average ``xi^k theta_0 + (1 - xi) sum_{j=1}^k xi^(k-j) theta_j`` of iterates.

    Parameters
    ----------
    iterates : sequence of k + 1 arrays of one shape
        theta_0 to theta_k.
    decay : float
        xi.

    Returns
    -------
    array, float64
        Average, of the iterates' shape.

    Examples
    --------
    >>> from ngd_core.reference import iterate_average
    >>> iterate_average([[0.0], [1.0], [2.0]], 0.5)
    array([1.25])
    """
    k = len(iterates) - 1
    total = decay**k * double(iterates[0])
    for j in range(1, k + 1):
        total += (1 - decay) * decay ** (k - j) * double(iterates[j])
    return total


def kfc_pre_path(
    start: ArrayLike,
    gradient: Callable[[Array], ArrayLike],
    fisher: ArrayLike,
    preconditioner: ArrayLike,
    steps: int,
    lr: float,
    momentum: float = 0.9,
    clip: float = 0.3,
    weight_decay: float = 0.0,
    averaging: float = 0.99,
) -> tuple[Array, Array]:
    """Algorithm 1 of Grosse and Martens (2016), with matrices that stay.

    Parameters
    ----------
    start : array of shape (P,)
        theta_0.
    gradient : callable
        Gradient of the mean loss, without the penalty.
    fisher : array of shape (P, P)
        Exact Fisher F, for the clip.
    preconditioner : array of shape (P, P)
        Damped approximation of F that gradients are solved with.
    steps : int
        Number of steps.
    lr, momentum, clip, weight_decay, averaging : float
        The paper's alpha, mu, C, lambda and xi.

    Returns
    -------
    iterates : array of shape (steps, P), float64
        theta_1 to theta_steps.
    averages : array of shape (steps, P), float64
        Their averages theta_bar.

    Examples
    --------
    >>> from ngd_core.reference import kfc_pre_path
    >>> path, _ = kfc_pre_path([4.0], lambda theta: theta, [[1.0]], [[1.0]], 2, 0.5, 0.0, 1.0)
    >>> path
    array([[3.],
           [2.]])
    """
    theta, F = double(start), double(fisher)
    p, mean = np.zeros_like(theta), theta.copy()
    path, means = [], []
    for _ in range(steps):
        g = double(gradient(theta)) + weight_decay * theta
        v = -lr * np.linalg.solve(double(preconditioner), g)
        nu = v @ F @ v + weight_decay * (v @ v)
        if nu > clip:
            v = v * np.sqrt(clip / nu)
        p = momentum * p + v
        theta = theta + p
        mean = averaging * mean + (1 - averaging) * theta
        path.append(theta)
        means.append(mean)
    return np.stack(path), np.stack(means)
