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

Two kinds of layer have factors of their own [derived here]:

- An embedding's inputs are one-hot, so its A of "expand" is diagonal: the tokens' frequencies,
  counted without making anything one-hot and kept as a vector. G is that of the table. Uses of
  the table as output layer come in by `ngd_core.factors.product_of_marginals`.
- A scale has one block ``[w b]`` a feature, whose Fisher is small enough to be formed:
  ``A = (1/N) sum_m sum_n u_mn u_mn^T`` with ``u = sum_t g_t [xhat_t; 1]``, and ``G = 1``. Their
  product is the exact diagonal block of the feature, with several positions too.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.lags import image_moment
from ngd_core.factors.moment import second_moment
from ngd_core.factors.patches import mean_patches
from ngd_core.factors.per_example import per_example_gradients
from ngd_core.factors.records import check_record
from ngd_core.factors.sharing import Rows, gradient_rows, rows, token_rows, working_dtype
from ngd_core.factors.tied import product_of_marginals
from ngd_core.types import LayerRecord, LayerSpec

__all__ = [
    "factor_shapes",
    "input_factor",
    "input_moment",
    "kronecker_factors",
    "output_factor",
    "output_moment",
    "token_frequencies",
]


def factor_shapes(spec: LayerSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a layer's Kronecker factors A and G.

    Parameters
    ----------
    spec : LayerSpec
        Layer.

    Returns
    -------
    tuple of tuple of int
        ``(*stack, columns, columns)``, or ``(columns,)`` for the diagonal A of an embedding, and
        ``(*stack, rows, rows)``. A factor with one axis less than the other is a diagonal.

    Examples
    --------
    >>> from ngd_core import LayerSpec
    >>> factor_shapes(LayerSpec("fc", "dense", 3, 2))
    ((4, 4), (2, 2))
    >>> factor_shapes(LayerSpec("tokens", "embedding", 1000, 2, bias=False))
    ((1000,), (2, 2))
    """
    g = (*spec.stack, spec.rows, spec.rows)
    if spec.kind == "embedding":
        return (spec.columns,), g
    return (*spec.stack, spec.columns, spec.columns), g


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
        Input factor (``Omega``, ``Psi`` or ``A`` in the papers), bias coordinate last; for an
        embedding its diagonal alone, shape ``(columns,)``.
    G : array, shape (*stack, rows, rows)
        Output-gradient factor (``Gamma`` or ``G``).

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Notes
    -----
    Matrices are symmetric and, up to a few units of rounding, positive semi-definite. F is the
    Fisher of the mean loss: it does not change when the batch is duplicated or permuted.

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
    if spec.kind == "scale":
        u = per_example_gradients(spec, record, dtype=dtype, xp=xp)
        m, n, features, _, columns = u.shape
        u = xp.permute_dims(xp.reshape(u, (m * n, features, columns)), (1, 0, 2))
        return second_moment(u, n, xp=xp), _xp.ones((features, 1, 1), like=u, xp=xp)
    if spec.kind == "embedding":
        canonical = token_rows(spec, record, dtype=dtype, xp=xp)
        A = token_frequencies(canonical.x, spec.in_features, dtype=canonical.y.dtype, xp=xp)
        G = output_factor(canonical, sharing="expand", xp=xp)
        if record.tied is None:
            return A, G
        return product_of_marginals((A, G), _as_output(spec, record.tied, A, xp=xp), xp=xp)
    return (
        input_moment(spec, record, dtype=dtype, xp=xp),
        output_moment(spec, record, dtype=dtype, xp=xp),
    )


def _as_output(
    spec: LayerSpec, record: LayerRecord, like: Array, *, xp: Namespace
) -> tuple[Array, Array]:
    """Factors of a table's uses as output layer, for its block, which is transposed.

    The table's side of the vocabulary sees the gradients, of whose factor the diagonal is kept.
    """
    dense = LayerSpec(spec.name, "dense", spec.out_features, spec.in_features, bias=False)
    canonical = rows(dense, record, dtype=like.dtype, xp=xp)
    n = canonical.x.shape[0]
    diagonal = xp.sum(canonical.y**2, axis=(0, 1, 2)) / n
    return diagonal, input_factor(canonical, bias=False, sharing="expand", xp=xp)


def input_moment(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    sharing: str | None = None,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Input factor A of a record, without all rows that a convolution's kernel reads.

    The same as `input_factor` of `rows`, which take ``kh kw`` times the memory of an image; see
    `ngd_core.factors.lags`.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Inputs; of the gradients only dtype and shape are looked at.
    sharing : "expand", "reduce" or None
        Row of the module's table; ``spec.sharing`` if not given.
    dtype : dtype, optional
        Of the factor, to which inputs are cast first; the record's own if not given. At least
        float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (*stack, columns, columns)
        Factor A; also for an embedding a matrix, of rows made one-hot.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec
    >>> spec = LayerSpec("conv", "conv2d", 2, 4, geometry=Conv2dGeometry(3))
    >>> record = LayerRecord(np.ones((5, 2, 4, 4)), np.ones((5, 4, 2, 2)))
    >>> input_moment(spec, record).shape
    (19, 19)
    """
    xp = check_record(spec, record, xp=xp)
    sharing = spec.sharing if sharing is None else sharing
    if spec.geometry is None or record.a.ndim == 3:
        canonical = rows(spec, record, dtype=dtype, xp=xp)
        return input_factor(canonical, bias=spec.bias, sharing=sharing, xp=xp)
    a = _xp.astype(record.a, working_dtype(record, dtype, xp=xp), xp=xp)
    if sharing == "reduce":
        means = mean_patches(a, spec.geometry, xp=xp)
        return second_moment(means, a.shape[0], bias=spec.bias, xp=xp)
    return image_moment(a, spec.geometry, bias=spec.bias, xp=xp)


def output_moment(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Output factor G of a record, without the rows of its inputs.

    Parameters
    ----------
    spec : LayerSpec
        Layer, no embedding; ``spec.sharing`` chooses the row of the module's table.
    record : LayerRecord
        Gradients; of the inputs only dtype and shape are looked at.
    dtype : dtype, optional
        As for `input_moment`.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (*stack, rows, rows)
        As `output_factor` of `rows`.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(np.ones((4, 1)), np.asarray([[2.0], [0.0], [2.0], [0.0]]))
    >>> output_moment(LayerSpec("fc", "dense", 1, 1), record)
    array([[2.]])
    """
    xp = check_record(spec, record, xp=xp)
    return _of_gradients(gradient_rows(spec, record, dtype=dtype, xp=xp), spec.sharing, xp=xp)


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
    return _of_gradients(canonical.y, sharing, xp=xp)


def _of_gradients(y: Array, sharing: str, *, xp: Namespace) -> Array:
    if sharing == "reduce":
        y = xp.sum(y, axis=-2, keepdims=True)
    *stack, m, n, t, outputs = y.shape
    return second_moment(xp.reshape(y, (*stack, m * n * t, outputs)), n, xp=xp)


def token_frequencies(
    tokens: Array, vocabulary: int, *, dtype: DType, xp: Namespace | None = None
) -> Array:
    """Share of each token among all tokens of a batch: the diagonal of an embedding's A.

    The diagonal of ``(1/(N T)) sum x x^T`` over one-hot x, by counting: sorted tokens are searched
    for the places where each begins, so neither one-hot rows nor a matrix is formed.

    Parameters
    ----------
    tokens : array of integers, shape (...)
        Tokens of all examples and positions.
    vocabulary : int
        Number of tokens there are. What is outside ``[0, vocabulary)`` is counted nowhere, but
        does count among all tokens.
    dtype : dtype
        Of the frequencies, real floating.
    xp : namespace, optional
        Array namespace; found from the tokens if not given.

    Returns
    -------
    array, shape (vocabulary,)
        Counts over the number of tokens; counts are exact.

    Examples
    --------
    >>> import numpy as np
    >>> token_frequencies(np.asarray([[2, 0], [2, 9]]), 4, dtype=np.float64, xp=np)
    array([0.25, 0.  , 0.5 , 0.  ])
    """
    xp = _checks.common_namespace(xp, tokens=tokens)
    _checks.integral(xp, tokens=tokens)
    flat = xp.reshape(_xp.astype(tokens, _xp.index_dtype(xp=xp), xp=xp), (-1,))
    flat = xp.sort(flat)
    begins = xp.searchsorted(flat, _xp.arange(vocabulary + 1, like=flat, xp=xp))
    return _xp.astype(begins[1:] - begins[:-1], dtype, xp=xp) / flat.shape[0]
