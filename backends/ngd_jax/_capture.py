"""Value, gradients and records of a loss, in one pass and under ``jax.jit``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ngd_core import LayerRecord, losses
from ngd_jax._evaluate import evaluate
from ngd_jax._graph import find_sites
from ngd_jax._layers import Group, group_sites, records_of

__all__ = ["Traced", "traced", "value_and_grad"]


class Traced(NamedTuple):
    """A loss, traced, and what was found in it."""

    closed: Any
    shape: Any
    groups: list[Group]
    uncovered: dict[str, str]
    paths: list[str]
    examples: int


def traced(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Sequence[Any],
    batch_argnums: Sequence[int] | None,
) -> Traced:
    """Trace a loss and find the layers in it.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, *batch)``.
    params : pytree
        Parameters, of which shapes and dtypes are looked at.
    batch : sequence of pytrees
        Further arguments.
    batch_argnums : sequence of int or None
        Which of them hold examples, counted as `loss_fn` counts; None: all.

    Returns
    -------
    Traced
        The loss and its layers.

    Raises
    ------
    TypeError
        If a parameter is not floating.
    ValueError
        If the number of examples cannot be told, or the loss depends on it in its structure.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [path_name(path) for path, _ in leaves]
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            msg = (
                f"The parameter {path!r} has dtype {jnp.result_type(leaf)}; expected real floating "
                "numbers: pass other arrays as further arguments."
            )
            raise TypeError(msg)
    numbers = range(1, 1 + len(batch)) if batch_argnums is None else batch_argnums
    chosen = [k in numbers for k in range(1, 1 + len(batch))]
    shapes = [x.shape for k, part in enumerate(batch) if chosen[k] for x in _arrays(part)]
    if not any(shapes):
        msg = "The loss has no batch; pass its arrays as arguments behind the parameters."
        raise ValueError(msg)
    examples = next(shape[0] for shape in shapes if shape)
    if examples == 0:
        msg = "The batch is empty; pass at least one example."
        raise ValueError(msg)
    closed, shape = jax.make_jaxpr(loss_fn, return_shape=True)(params, *batch)
    doubled = [
        jax.tree.map(lambda x: _doubled(x, examples), part) if chosen[k] else part
        for k, part in enumerate(batch)
    ]
    try:
        twin = jax.make_jaxpr(loss_fn)(params, *doubled)
    except Exception as error:
        msg = (
            f"The loss cannot be traced for {2 * examples} examples in place of {examples}, by "
            "which their axis is told; take the size of the batch from the arrays, and name the "
            "arguments that hold examples with batch_argnums."
        )
        raise ValueError(msg) from error
    found = find_sites(closed, twin, len(paths), examples)
    groups, uncovered = group_sites(found, paths)
    return Traced(closed, shape, groups, uncovered, paths, examples)


def path_name(path: Any) -> str:
    """Path of a leaf as text."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def _arrays(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if hasattr(x, "shape")]


def _doubled(x: Any, examples: int) -> Any:
    if not hasattr(x, "shape") or not x.shape or x.shape[0] != examples:
        return x
    return jax.ShapeDtypeStruct((2 * examples, *x.shape[1:]), x.dtype)


def value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    fisher: Literal["empirical", "mc", "exact"] = "empirical",
    likelihood: Any = "categorical",
    outputs: Callable[[Any], Any] | None = None,
    loss_reduction: Literal["mean", "sum"] = "mean",
    batch_argnums: Sequence[int] | None = None,
    deferred: bool = False,
) -> Callable[..., tuple[Any, Any, Any]]:
    """Value, gradients and layer records of a loss, as `jax.value_and_grad` gives the first two.

    The loss is traced, and every ``dot_general``, ``conv_general_dilated`` and row ``gather`` in
    which a parameter works on data is recorded; nothing is registered. `ngd_jax.report` tells which
    parameters were found, and why the others were not.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, *batch)``, a scalar; ``(loss, aux)`` with `has_aux`. The examples are the
        first axis of every array of the batch whose first axis has the length of the first
        array's. The parameters are a pytree of real floating arrays.
    has_aux : bool
        As in `jax.value_and_grad`.
    fisher : "empirical", "mc" or "exact"
        Gradients of the training loss, which cost nothing more and are not the Fisher's; of
        labels sampled from the model's outputs with ``key=``; or of all columns of the outputs'
        Hessian root. The last two need the outputs.
    likelihood : str, Likelihood or sequence of them
        What the outputs are parameters of, classes on the last axis; one for each term of a loss
        that has several.
    outputs : callable, optional
        ``outputs(aux)``: the model's outputs, examples first, or a sequence of them, one for each
        likelihood; `aux` itself if not given.
    loss_reduction : "mean" or "sum"
        Of the loss over the batch, for "empirical".
    batch_argnums : sequence of int, optional
        Which arguments of `loss_fn` hold examples; all but the parameters if not given.
    deferred : bool
        Give, in place of the records, a function without arguments that computes them. The
        transformations of `ngd_jax` take it as ``records=`` and call it on the steps at which they
        make statistics, so that on others no second backward pass runs. Both calls have to be in
        one function under `jax.jit`.

    Returns
    -------
    callable
        ``f(params, *batch, key=None)``, which gives ``(value, grads, records)``: `value` and
        `grads` as `jax.value_and_grad`, `records` a dict of `ngd_core.LayerRecord` by layer, with
        the leading axis of back-propagated vectors for "mc" and "exact".

    Raises
    ------
    TypeError, ValueError
        For an unknown option; by the returned function if outputs or key are missing, or the axis
        of the examples cannot be told.

    Notes
    -----
    The loss is traced twice, for the batch as it is and for twice as many examples, and the axes
    that grow are those of the examples. Both traces are shapes alone and nothing is computed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, ngd_jax
    >>> def loss_fn(params, x, y):
    ...     return 0.5 * jnp.mean(jnp.sum((x @ params["w"] - y) ** 2, axis=-1))
    >>> params, x, y = {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)), jnp.zeros((4, 2))
    >>> value, grads, records = jax.jit(ngd_jax.value_and_grad(loss_fn))(params, x, y)
    >>> float(value), records["w"].a.shape, records["w"].g.shape
    (9.0, (4, 3), (4, 2))
    """
    for name, value, known in (
        ("fisher", fisher, ("empirical", "mc", "exact")),
        ("loss_reduction", loss_reduction, ("mean", "sum")),
    ):
        if value not in known:
            msg = f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
            raise ValueError(msg)
    several = isinstance(likelihood, (tuple, list))
    terms = [
        losses.get(one) if isinstance(one, str) else one
        for one in (likelihood if several else [likelihood])
    ]
    if fisher != "empirical" and not has_aux:
        msg = (
            f"fisher={fisher!r} needs the model's outputs; let the loss return (loss, outputs) and "
            "pass has_aux=True, or choose fisher='empirical'."
        )
        raise ValueError(msg)

    def outputs_of(aux: Any) -> list[Any]:
        given = aux if outputs is None else outputs(aux)
        return list(given) if several else [given]

    def with_records(params: Any, *batch: Any, key: Any = None) -> tuple[Any, Any, Any]:
        if (key is not None) != (fisher == "mc"):
            verb = "is missing; sampling takes an explicit one" if key is None else "is not used"
            msg = f"key {verb}: it belongs to fisher='mc', here it is {fisher!r}."
            raise ValueError(msg)
        trace = traced(loss_fn, params, batch, batch_argnums)
        leaves, tree = jax.tree.flatten(params)
        rest = jax.tree.leaves(tuple(batch))
        sites = {
            path: site for group in trace.groups for path, site in (*group.sites, *group.factors)
        }
        zeros = {path: jnp.zeros(site.shape, site.dtype) for path, site in sites.items()}

        def perturbed(leaves: list[Any], perturbations: Any) -> Any:
            results, read = evaluate(
                trace.closed.jaxpr, trace.closed.consts, [*leaves, *rest], sites, perturbations
            )
            result = jax.tree.unflatten(jax.tree.structure(trace.shape), results)
            loss, aux = result if has_aux else (result, None)
            if loss.shape != ():
                msg = f"The loss has shape {loss.shape}; expected a scalar."
                raise ValueError(msg)
            found = outputs_of(aux) if fisher != "empirical" else []
            return (loss, found), (aux, read)

        (loss, found), pull, (aux, read) = jax.vjp(perturbed, leaves, zeros, has_aux=True)
        nothing = [jnp.zeros_like(z) for z in found]
        grads, g = pull((jnp.ones_like(loss), nothing))

        def records() -> dict[str, LayerRecord]:
            if fisher == "empirical":
                scale = trace.examples if loss_reduction == "mean" else 1
                one = {path: scale * x[None, ...] for path, x in g.items()}
                each = records_of(trace.groups, read, one)
                return {name: _first(record) for name, record in each.items()}
            vectors = _vectors(fisher, terms, found, key)
            several = jax.vmap(lambda v: pull((jnp.zeros_like(loss), v))[1])(vectors)
            return records_of(trace.groups, read, several)

        value = (loss, aux) if has_aux else loss
        return value, jax.tree.unflatten(tree, grads), records if deferred else records()

    return with_records


def _first(record: LayerRecord) -> LayerRecord:
    """Record of the only back-propagated vector."""
    tied = None if record.tied is None else _first(record.tied)
    return record._replace(g=record.g[0], tied=tied)


def _vectors(fisher: Any, terms: Sequence[Any], found: Sequence[Any], key: Any) -> list[Any]:
    """Vectors of each term, zero where it is another's turn."""
    if len(terms) != len(found):
        msg = f"There are {len(found)} outputs and {len(terms)} likelihoods; give one for each."
        raise ValueError(msg)
    each = []
    for k, (likelihood, z) in enumerate(zip(terms, found, strict=True)):
        noise = None
        if fisher == "mc":
            draw = jax.random.uniform if likelihood.noise == "uniform" else jax.random.normal
            one = jax.random.fold_in(key, k)
            dtype = z.dtype if z.dtype.itemsize >= 4 else jnp.float32
            noise = draw(one, (1, *likelihood.noise_shape(z)), dtype)
        each.append(losses.fisher_vectors(fisher, likelihood, z, noise=noise))
    turns = [len(v) for v in each]
    return [
        jnp.concatenate(
            [v if j == k else jnp.zeros((m, *v.shape[1:]), v.dtype) for j, m in enumerate(turns)]
        )
        for k, v in enumerate(each)
    ]
