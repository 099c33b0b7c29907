"""The exact joint Fisher along directions, without the matrix and without per-example gradients.

With ``u_mn = sum_t g_mnt [x_nt; 1]^T`` the gradient of the back-propagated vector m of example n,
over all layers together, the Fisher is ``F = (1/N) sum_mn u_mn u_mn^T``. All that a quadratic
model or an iterative solver asks of it are the numbers ``<u_mn, v>``, and these need one product
of the inputs with ``V^T`` a layer:

``<u_mn, v> = sum over layers sum_t g_mnt . (V [x_nt; 1])``

``V [x; 1]`` is what the direction adds to a layer's outputs with its inputs held. The blocks
between layers are included: nothing here is approximated. Which Fisher it is (exact, sampled,
empirical) is a matter of the vectors that were carried back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.per_example import weighted_gradient
from ngd_core.factors.records import batch_shape, check_batch
from ngd_core.factors.sharing import rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["directional_derivatives", "fisher_inner", "fisher_product"]


def directional_derivatives(
    records: Mapping[LayerSpec, LayerRecord],
    direction: Mapping[LayerSpec, Array],
    *,
    xp: Namespace | None = None,
) -> Array:
    """Inner products of a direction with every example's gradient over all layers.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one forward and backward pass: inputs and per-example output gradients (a mean over the
        batch undone). A layer's ``sharing`` plays no part, the gradients are exact.
    direction : mapping of LayerSpec to array, shape spec.block_shape
        Blocks ``V`` as ``[W b]``. A layer left out counts as zero.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (M, N)
        ``<u_mn, v>``, not divided by N. In the dtype that records and direction share, at least
        float32. For labels carried back (M = 1) these are the derivatives of each example's loss
        along ``v``.

    Raises
    ------
    TypeError
        For arrays that are of several libraries or not real floating.
    ValueError
        If there are no records, one of them is not as `ngd_core.factors.rows` takes it, the
        records are of different batches, or the direction has a layer without a record or a block
        of another shape.

    Notes
    -----
    Derived here. Martens and Grosse (2015) take the same quadratic forms from forward-mode
    products, ``v^T F v = (1/N) sum_n (J_n v)^T F_R (J_n v)``; for the exact Fisher both are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1)
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> directional_derivatives({fc: record}, {fc: np.asarray([[10.0, 1.0]])}).tolist()
    [[33.0, 84.0]]
    """
    xp, dtype = _border(xp, records, [direction])
    return _along(records, direction, dtype, xp=xp)


def fisher_inner(
    records: Mapping[LayerSpec, LayerRecord],
    directions: Sequence[Mapping[LayerSpec, Array]],
    *,
    xp: Namespace | None = None,
) -> Array:
    """Inner products ``K_ij = v_i^T F v_j`` of directions in the metric of the joint Fisher.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `directional_derivatives`; they decide which Fisher F is.
    directions : sequence of k mappings of LayerSpec to array, shape spec.block_shape
        Directions ``v_i``. A layer left out counts as zero.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (k, k)
        ``(1/N) sum_mn <u_mn, v_i> <u_mn, v_j>`` without any damping, at least float32; symmetric,
        and positive semi-definite up to rounding.

    Raises
    ------
    TypeError, ValueError
        As `directional_derivatives`; if there is no direction.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.ones((2, 1)))
    >>> fisher_inner({fc: record}, [{fc: np.asarray([[2.0]])}, {fc: np.asarray([[-1.0]])}])
    array([[10. , -5. ],
           [-5. ,  2.5]])
    """
    xp, dtype = _border(xp, records, directions)
    along = [_along(records, direction, dtype, xp=xp) for direction in directions]
    n = along[0].shape[-1]
    stacked = xp.reshape(xp.stack(along), (len(along), -1))
    inner = stacked @ stacked.mT / n
    return (inner + inner.mT) / 2


def fisher_product(
    records: Mapping[LayerSpec, LayerRecord],
    direction: Mapping[LayerSpec, Array],
    *,
    xp: Namespace | None = None,
) -> dict[LayerSpec, Array]:
    """Product ``F v`` with the joint Fisher, the blocks between layers included.

    ``F v = (1/N) sum_mn <u_mn, v> u_mn``: the output gradients of a vector and example are scaled
    by the same number in all layers, then summed in one product a layer.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `directional_derivatives`; they decide which Fisher F is.
    direction : mapping of LayerSpec to array, shape spec.block_shape
        Direction ``v``. A layer left out counts as zero.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of LayerSpec to array, shape spec.block_shape
        A block for every record, also where the direction has none, without any damping; in the
        dtype that records and direction share, at least float32.

    Raises
    ------
    TypeError, ValueError
        As `directional_derivatives`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.ones((2, 1)))
    >>> fisher_product({fc: record}, {fc: np.asarray([[2.0]])})[fc]
    array([[5.]])
    """
    xp, dtype = _border(xp, records, [direction])
    weights = _along(records, direction, dtype, xp=xp)
    return {
        spec: weighted_gradient(spec, record, weights, dtype=dtype, xp=xp) / weights.shape[-1]
        for spec, record in records.items()
    }


def _along(
    records: Mapping[LayerSpec, LayerRecord],
    direction: Mapping[LayerSpec, Array],
    dtype: DType,
    *,
    xp: Namespace,
) -> Array:
    """``<u_mn, v>``, shape (M, N)."""
    first, record = next(iter(records.items()))
    total = _xp.zeros(batch_shape(first, record), like=record.g, dtype=dtype, xp=xp)
    for spec, block in direction.items():
        x, y = rows(spec, records[spec], dtype=dtype, xp=xp)
        v = _xp.astype(block, dtype, xp=xp)
        *stack, n, t, inputs = x.shape
        moved = xp.reshape(x, (*stack, n * t, inputs)) @ v[..., :inputs].mT
        if spec.bias:
            moved = moved + v[..., None, :, inputs]
        moved = xp.reshape(moved, (*stack, 1, n, t * spec.rows))
        part = xp.vecdot(xp.reshape(y, (*stack, -1, n, t * spec.rows)), moved)
        total = total + (xp.sum(part, axis=0) if stack else part)
    return total


def _border(
    xp: Namespace | None,
    records: Mapping[LayerSpec, LayerRecord],
    directions: Sequence[Mapping[LayerSpec, Array]],
) -> tuple[Namespace, DType]:
    """Namespace of all arrays and the dtype to compute in, after a look at every shape."""
    if not directions:
        msg = "directions is empty; expected at least one."
        raise ValueError(msg)
    blocks: dict[str, Array] = {}
    for k, direction in enumerate(directions):
        blocks |= {f"direction {k} of {spec.name!r}": block for spec, block in direction.items()}
    xp = check_batch(records, xp=xp, **blocks)
    _checks.floating(xp, **blocks)
    for direction in directions:
        for spec, block in direction.items():
            if spec not in records:
                known = ", ".join(repr(other.name) for other in records)
                msg = (
                    f"The direction holds the layer {spec.name!r}, which has no record; expected "
                    f"layers among {known}."
                )
                raise ValueError(msg)
            why = "blocks are [W b], see factors.join"
            _checks.shape(f"direction of {spec.name!r}", block, spec.block_shape, why)
    arrays = [*blocks.values(), *(record.g for record in records.values())]
    arrays += [record.a for spec, record in records.items() if spec.kind != "embedding"]
    return xp, _xp.working(xp.result_type(*arrays), xp=xp)
