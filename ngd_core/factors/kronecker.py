"""Kronecker factors of the Fisher: K-FAC for dense layers, KFC for convolutions.

The block of a layer is approximated by ``F ~ G (x) A`` in row-major flattening of ``[W b]``
(``A (x) G`` in the papers' column stacking). With ``R`` examples' rows ``x`` (the bias coordinate
1 appended) and per-example gradients ``g`` at T positions:

========  ============================================  ==========================================
sharing   A                                             G
========  ============================================  ==========================================
expand    ``(1/(N T)) sum_n sum_t x_nt x_nt^T``         ``(1/N) sum_m sum_n sum_t g_mnt g_mnt^T``
reduce    ``(1/N) sum_n xbar_n xbar_n^T``               ``(1/N) sum_m sum_n ghat_mn ghat_mn^T``
========  ============================================  ==========================================

``xbar`` is the mean and ``ghat`` the sum over positions. Only the product matters: KFC writes
``Omega (x) Gamma`` with ``Omega`` summed and ``Gamma`` averaged over positions (Grosse and Martens
2016, theorem 2), Eschenhagen et al. (2023) average the reduced factors' ``1/T^2`` in ``G``. Here
the factor T sits in G, so A has entries of the inputs' own size, and the trace-norm split of the
damping is the same for every such choice.
"""

from __future__ import annotations

from ngd_core import _checks
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.moment import second_moment
from ngd_core.factors.sharing import Rows, rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["input_factor", "kronecker_factors", "output_factor"]


def kronecker_factors(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> tuple[Array, Array]:
    """Kronecker factors of one batch.

    Parameters
    ----------
    spec : LayerSpec
        Layer; ``spec.sharing`` chooses the row of the module's table.
    record : LayerRecord
        Inputs and per-example output gradients (a mean over the batch undone).
    dtype : dtype, optional
        Of the factors, to which the record is cast first; the record's own if not given. At
        least float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    A : array, shape (*stack, columns, columns)
        Input factor (``Omega``, ``Psi`` or ``A`` in the papers), bias coordinate last.
    G : array, shape (*stack, rows, rows)
        Output-gradient factor (``Gamma`` or ``G``).

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Notes
    -----
    Both are symmetric and, up to a few units of rounding, positive semi-definite. F is the Fisher
    of the mean loss: it does not change when the batch is duplicated or permuted.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> a, g = np.asarray([[1.0], [3.0]]), np.asarray([[2.0], [0.0]])
    >>> A, G = kronecker_factors(LayerSpec("fc", "dense", 1, 1), LayerRecord(a, g))
    >>> A.tolist(), G.tolist()
    ([[5.0, 2.0], [2.0, 1.0]], [[2.0]])
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    canonical = rows(spec, record, dtype=dtype, xp=xp)
    return (
        input_factor(canonical, bias=spec.bias, sharing=spec.sharing, xp=xp),
        output_factor(canonical, sharing=spec.sharing, xp=xp),
    )


def input_factor(canonical: Rows, *, bias: bool, sharing: str, xp: Namespace) -> Array:
    """Second moment A of the inputs, ``(*stack, columns, columns)``.

    Parameters
    ----------
    canonical : Rows
        Inputs ``(*stack, N, T, inputs)``.
    bias : bool
        Whether to append the homogeneous coordinate.
    sharing : "expand" or "reduce"
        Row of the module's table.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (*stack, columns, columns)
        Factor A.

    Examples
    --------
    >>> import numpy as np
    >>> canonical = Rows(np.ones((4, 2, 3)), np.ones((1, 4, 2, 5)))
    >>> input_factor(canonical, bias=True, sharing="expand", xp=np).shape
    (4, 4)
    """
    x = canonical.x
    if sharing == "reduce":
        x = xp.mean(x, axis=-2, keepdims=True)
    *stack, n, t, inputs = x.shape
    return second_moment(xp.reshape(x, (*stack, n * t, inputs)), n * t, bias=bias, xp=xp)


def output_factor(canonical: Rows, *, sharing: str, xp: Namespace) -> Array:
    """Second moment G of the output gradients, summed over positions, ``(*stack, rows, rows)``.

    Parameters
    ----------
    canonical : Rows
        Gradients ``(*stack, M, N, T, outputs)``.
    sharing : "expand" or "reduce"
        Row of the module's table.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (*stack, rows, rows)
        Factor G.

    Examples
    --------
    >>> import numpy as np
    >>> canonical = Rows(np.ones((4, 2, 3)), np.ones((1, 4, 2, 5)))
    >>> output_factor(canonical, sharing="reduce", xp=np)[0, 0]
    np.float64(4.0)
    """
    y = canonical.y
    if sharing == "reduce":
        y = xp.sum(y, axis=-2, keepdims=True)
    *stack, m, n, t, outputs = y.shape
    return second_moment(xp.reshape(y, (*stack, m * n * t, outputs)), n, xp=xp)
