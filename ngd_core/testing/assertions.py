"""One tolerance for all laws, and comparisons that raise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["assert_close", "assert_far", "tolerance"]

EPS = {"float16": 9.8e-4, "bfloat16": 7.8e-3, "float32": 1.2e-7, "float64": 2.3e-16}


def tolerance(dtype: str, size: int = 1, kappa: float = 1.0) -> float:
    """Relative tolerance of a computation.

    ``min(1e-2, 50 * size * eps * kappa)``: rounding grows with the length of the sums and, where
    a linear system is solved, with its condition number.

    Parameters
    ----------
    dtype : str
        Name of the dtype the computation ran in: "float16", "bfloat16", "float32", "float64".
    size : int
        Length of the longest sum, or order of the largest matrix.
    kappa : float
        Condition number of what is solved; 1 if nothing is.

    Returns
    -------
    float
        Tolerance relative to the largest entry of the reference.

    Examples
    --------
    >>> tolerance("float64", size=10) < tolerance("float32", size=10)
    True
    """
    return min(1e-2, 50 * max(size, 1) * EPS[dtype] * max(kappa, 1.0))


def _relative(actual: npt.ArrayLike, desired: npt.ArrayLike, scale: float | None) -> float:
    got, want = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    if got.shape != want.shape:
        msg = f"shape {got.shape} instead of {want.shape}"
        raise AssertionError(msg)
    if got.size == 0:
        return 0.0
    if not np.all(np.isfinite(got)):
        msg = f"not finite: {got}"
        raise AssertionError(msg)
    largest = float(np.max(np.abs(want))) if scale is None else scale
    error = float(np.max(np.abs(got - want)))
    return error if largest == 0 else error / largest


def assert_close(
    actual: npt.ArrayLike,
    desired: npt.ArrayLike,
    *,
    dtype: str = "float64",
    size: int = 1,
    kappa: float = 1.0,
    scale: float | None = None,
) -> None:
    """Assert equality up to `tolerance`, relative to the largest entry of `desired`.

    Parameters
    ----------
    actual, desired : array_like
        Result and reference, of equal shape.
    dtype : str
        As for `tolerance`.
    size : int
        As for `tolerance`.
    kappa : float
        As for `tolerance`.
    scale : float or None
        Magnitude to which the error is compared; by default the largest entry of `desired`.

    Raises
    ------
    AssertionError
        If a shape differs, an entry is not finite, or the error is not within the tolerance.

    Examples
    --------
    >>> assert_close([1.0, 2.0], [1.0, 2.0 + 1e-15])
    """
    error = _relative(actual, desired, scale)
    bound = tolerance(dtype, size, kappa)
    if not error <= bound:
        msg = (
            f"relative error {error:.3g} above {bound:.3g} "
            f"({dtype}, size {size}, condition {kappa:.3g})\n"
            f"actual:\n{np.asarray(actual)}\ndesired:\n{np.asarray(desired)}"
        )
        raise AssertionError(msg)


def assert_far(actual: npt.ArrayLike, desired: npt.ArrayLike, *, least: float) -> None:
    """Assert that two arrays differ measurably: relative Frobenius distance of at least `least`.

    Parameters
    ----------
    actual, desired : array_like
        Result and reference, of equal shape.
    least : float
        Smallest accepted ``norm(actual - desired) / norm(desired)``.

    Raises
    ------
    AssertionError
        If they are closer than that.

    Examples
    --------
    >>> assert_far([1.0, 0.0], [0.0, 1.0], least=0.5)
    """
    got, want = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    distance = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    if not distance >= least:
        msg = f"relative distance {distance:.3g}, expected at least {least:.3g}"
        raise AssertionError(msg)
