"""From sites in a traced loss to layers of the core, their records and their parameter blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, factors
from ngd_jax._graph import Found
from ngd_jax._sites import Path, Site
from ngd_jax._views import Layout, Shape

__all__ = ["Group", "Layer", "group_sites", "layers_of", "leaves_of", "records_of"]


class Group(NamedTuple):
    """All uses of one weight; a stack of layers if it is sliced."""

    name: str
    kind: str
    sites: tuple[tuple[Path, Site], ...]
    weight: Layout
    bias: Layout | None
    factors: tuple[tuple[Path, Site], ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the layers of the stack, or the one name."""
        if not self.sites[0][1].axes[0]:
            return [self.name]
        return [f"{self.name}[{k}]" for k in range(self.weight.result[0])]


class Layer(NamedTuple):
    """One layer: what the core knows of it, and where its parameters are.

    Parameters
    ----------
    spec : LayerSpec
        For the core.
    weight, bias : Layout
        From leaves to stacks of what `ngd_core.factors.join` takes; no bias: None.
    place : int
        Place in the stack.
    parameters : tuple of str
        Paths of weight and bias.
    """

    spec: LayerSpec
    weight: Layout
    bias: Layout | None
    place: int
    parameters: tuple[str, ...]

    def block(self, leaves: Mapping[str, Any]) -> Any:
        """Block ``[W b]`` of arrays by path; without its bias if that is not there."""
        weight = self.weight.of(leaves[self.parameters[0]])[self.place]
        bias = self.bias.of(leaves[self.parameters[1]])[self.place] if self.bias else None
        return factors.join(self.spec, weight, bias)


def leaves_of(layers: Sequence[Layer], blocks: Mapping[LayerSpec, Any]) -> dict[str, Any]:
    """Bring blocks back to arrays by path, those of a stack together."""
    parts: dict[tuple[str, Layout], list[Any]] = {}
    for layer in layers:
        weight, bias = factors.split(layer.spec, blocks[layer.spec])
        parts.setdefault((layer.parameters[0], layer.weight), []).append(weight)
        if layer.bias is not None:
            parts.setdefault((layer.parameters[1], layer.bias), []).append(bias)
    return {path: layout.back(jnp.stack(slices)) for (path, layout), slices in parts.items()}


def group_sites(found: Found, paths: Sequence[str]) -> tuple[list[Group], dict[str, str]]:
    """Gather the uses of each weight; for all other leaves say why they are in no layer."""
    lost = dict(found.lost)
    by_leaf: dict[int, list[tuple[Path, Site]]] = {}
    for path, site in found.sites.items():
        by_leaf.setdefault(site.weight.leaf, []).append((path, site))
    kinds = {}
    for leaf, sites in by_leaf.items():
        kind = _kind(sites)
        if _idle(found, sites):
            lost.setdefault(leaf, "it is used in a branch of cond, and elsewhere or in a loop")
        if kind.startswith("it "):
            lost.setdefault(leaf, kind)
        kinds[leaf] = kind
    biases = _biases(found, by_leaf, lost)
    groups = []
    for leaf in sorted(set(by_leaf) - set(lost)):
        sites = by_leaf[leaf]
        weight = _weight(kinds[leaf], sites[0][1])
        bias = biases.get(leaf)
        if bias is not None:
            outputs = math.prod(_sizes(sites[0][1], 1))
            bias = bias.reshaped((weight.result[0], outputs))
        more = tuple((path, found.factors[path]) for _, site in sites for path in site.before)
        groups.append(Group(paths[leaf], kinds[leaf], tuple(sites), weight, bias, more))
    held = {group.weight.leaf for group in groups}
    held |= {group.bias.leaf for group in groups if group.bias is not None}
    uncovered = {
        path: _why(lost.get(leaf, found.passed.get(leaf)), leaf in found_biases(found))
        for leaf, path in enumerate(paths)
        if leaf not in held
    }
    return groups, uncovered


def _idle(found: Found, sites: Sequence[tuple[Path, Site]]) -> bool:
    """Whether some positions, but not all, are of a branch that may not be taken."""
    return any(
        path[:k] in found.branched
        and (len(sites) > 1 or any(n not in site.scans for n in range(found.branched[path[:k]])))
        for path, site in sites
        for k in range(1, len(path))
    )


def found_biases(found: Found) -> set[int]:
    """Leaves that are added to the result of a site."""
    return {layout.leaf for layout in found.biases.values()}


def _why(primitive: str | None, added: bool) -> str:
    if primitive is None:
        return "added to a layer that does not always have it" if added else "used on no examples"
    return primitive if primitive.startswith("it ") else f"used by {primitive}"


def _biases(
    found: Found, by_leaf: Mapping[int, list[tuple[Path, Site]]], lost: Mapping[int, str]
) -> dict[int, Layout]:
    """Biases of the weights that have the same one at every use, which nothing else has."""
    owners: dict[int, set[int]] = {}
    for path, layout in found.biases.items():
        owners.setdefault(layout.leaf, set()).add(found.sites[path].weight.leaf)
    biases = {}
    for leaf, sites in by_leaf.items():
        layouts = {found.biases.get(path) for path, _ in sites}
        one = next(iter(layouts))
        if len(layouts) == 1 and one is not None:
            alone = owners[one.leaf] == {leaf}
            if alone and one.leaf not in lost and one.leaf not in by_leaf and leaf not in lost:
                biases[leaf] = one
    return biases


def _sizes(site: Site, part: int) -> Shape:
    """Sizes of the stack (0), output (1) or input axes (2) of a site's weight."""
    starts = (0, site.axes[0], site.axes[0] + site.axes[1], len(site.weight.result))
    return site.weight.result[starts[part] : starts[part + 1]]


def _kind(sites: Sequence[tuple[Path, Site]]) -> str:
    first = sites[0][1]
    kinds = {site.kind for _, site in sites}
    tied = kinds == {"dense", "embedding"}
    for _, site in sites[1:]:
        if site.kind != first.kind and not tied:
            return f"it is used by {first.kind} and {site.kind} maps"
        same = (site.weight, site.axes) == (first.weight, first.axes)
        if not same or (site.kind == "conv" and site.params != first.params):
            return "it is used in two ways, as for example a matrix and its transpose"
    if first.kind != "conv":
        return "tied" if tied else first.kind
    p = first.params
    image = (
        len(sites) == 1
        and not (first.inputs[2] or first.fold)
        and len(p["window_strides"]) in (1, 2)
        and all(n == 1 for n in p["lhs_dilation"])
        and all(n >= 0 for pair in p["padding"] for n in pair)
    )
    return "image" if image else "rows"


def _weight(kind: str, site: Site) -> Layout:
    stack, outputs, inputs = (_sizes(site, k) for k in range(3))
    layers = math.prod(stack)
    if kind == "scale":
        return site.weight.reshaped((layers, math.prod(outputs)))
    if kind == "image":
        flat = inputs if len(inputs) == 3 else (inputs[0], 1, inputs[1])
        return site.weight.reshaped((layers, *outputs, *flat))
    if kind == "rows" and site.params["feature_group_count"] > 1:
        return site.weight.reshaped((layers, *outputs, math.prod(inputs), 1, 1))
    return site.weight.reshaped((layers, math.prod(outputs), math.prod(inputs)))


def layers_of(groups: Sequence[Group], paths: Sequence[str], sharing: str) -> list[Layer]:
    """Layers of the core, stacks unfolded."""
    layers = []
    for group in groups:
        parameters = tuple(paths[x.leaf] for x in (group.weight, group.bias) if x is not None)
        for k, name in enumerate(group.names):
            spec = _spec(group, name, sharing)
            layers.append(Layer(spec, group.weight, group.bias, k, parameters))
    return layers


def _spec(group: Group, name: str, sharing: Any) -> LayerSpec:
    bias, shape = group.bias is not None, group.weight.result[1:]
    if group.kind == "scale":
        return LayerSpec(name, "scale", shape[0], shape[0], bias=bias)
    if group.kind in ("embedding", "tied"):
        return LayerSpec(name, "embedding", shape[0], shape[1], bias=False)
    p = group.sites[0][1].params
    groups = p["feature_group_count"] if group.kind in ("image", "rows") else 1
    if group.kind == "rows" and groups > 1:
        inputs, taps = shape[1] * groups, Conv2dGeometry(1, groups=groups)
        return LayerSpec(name, "conv2d", inputs, shape[0], bias, sharing, taps)
    if group.kind != "image":
        return LayerSpec(name, "dense", shape[1], shape[0], bias=bias, sharing=sharing)

    def pair(values: Sequence[Any], first: Any) -> Any:
        return (first, values[0]) if len(values) == 1 else tuple(values)

    geometry = Conv2dGeometry(
        (shape[2], shape[3]),
        pair(p["window_strides"], 1),
        pair(p["rhs_dilation"], 1),
        pair([tuple(int(n) for n in edge) for edge in p["padding"]], (0, 0)),
        groups,
    )
    outputs, inputs = shape[0], shape[1] * groups
    return LayerSpec(name, "conv2d", inputs, outputs, bias=bias, sharing=sharing, geometry=geometry)


def records_of(
    groups: Sequence[Group], read: Mapping[Path, Any], gradients: Mapping[Path, Any]
) -> dict[str, LayerRecord]:
    """Make records, by the layers' names.

    Parameters
    ----------
    groups : sequence of Group
        Layers.
    read : mapping of Path to array
        What each site read.
    gradients : mapping of Path to array
        At each site's result, a mean reduction undone, several vectors along a new first axis.

    Returns
    -------
    dict of str to LayerRecord
        With ``g`` of shape ``(M, N, ...)``.
    """
    records = {}
    for group in groups:
        if group.kind == "tied":
            tables = [(path, site) for path, site in group.sites if site.kind == "embedding"]
            outputs = [(path, site) for path, site in group.sites if site.kind == "dense"]
            a, g = _uses(tables, "embedding", read, gradients)
            x, y = _uses(outputs, "dense", read, gradients)
            for k, name in enumerate(group.names):
                records[name] = LayerRecord(a[k], g[k], tied=LayerRecord(x[k], y[k]))
            continue
        a, g = _uses(group.sites, group.kind, read, gradients)
        for k, name in enumerate(group.names):
            records[name] = LayerRecord(a[k], g[k])
    return records


def _uses(
    sites: Sequence[tuple[Path, Site]],
    kind: str,
    read: Mapping[Path, Any],
    gradients: Mapping[Path, Any],
) -> tuple[Any, Any]:
    """Stacks of inputs and gradients of all uses, several of them on one axis of positions."""
    arrange = {"image": _image, "rows": _rows, "embedding": _table}.get(kind, _plain)
    uses = []
    for path, site in sites:
        x = read[path]
        if kind == "scale":
            parts = [jnp.broadcast_to(read[p], site.shape) for p in (*site.before, path)]
            x = math.prod(part.astype(site.dtype) for part in parts)
        uses.append(arrange(site, x, gradients[path]))
    a, g = uses[0]
    if len(uses) > 1:
        n, m = a.shape[1], g.shape[1]
        rest = () if kind == "embedding" else (a.shape[-1],)
        flat = [
            (
                jnp.reshape(a, (len(a), n, -1, *rest)),
                jnp.reshape(g, (len(g), m, n, -1, g.shape[-1])),
            )
            for a, g in uses
        ]
        a, g = (_joined([use[k] for use in flat], axis=2 + k) for k in (0, 1))
    return a, g


def _joined(parts: Sequence[Any], axis: int) -> Any:
    """Join arrays in the widest of their dtypes, which are all integer or all floating."""
    dtype = max((x.dtype for x in parts), key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([x.astype(dtype) for x in parts], axis=axis)


def _ordered(x: Any, axes: Sequence[Shape], several: bool) -> Any:
    """Axes in this order, each tuple's stack flattened first, behind which several vectors go."""
    stack = axes[0]
    order = [k + several for part in axes for k in part]
    if several:
        order.insert(len(stack), 0)
    x = jnp.transpose(x, order)
    return jnp.reshape(x, (math.prod(x.shape[: len(stack)]), *x.shape[len(stack) :]))


def _plain(site: Site, x: Any, g: Any) -> tuple[Any, Any]:
    a, g = _ordered(x, site.inputs, False), _ordered(g, site.outputs, True)
    inputs, outputs = len(site.inputs[3]), len(site.outputs[3])
    a, g = _unfolded(site, a, 1), _unfolded(site, g, 2)
    return _flat_last(a, inputs), _flat_last(g, outputs)


def _unfolded(site: Site, x: Any, axis: int) -> Any:
    """Array with what is folded with the examples on an axis of its own behind theirs."""
    if not site.fold:
        return x
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    order = sorted(range(len(site.fold)), key=lambda k: -site.fold[k][1])
    order = [*range(axis), *(axis + k for k in order)]
    apart = jnp.reshape(x, (*before, *(n for n, _ in site.fold), *after))
    apart = jnp.transpose(apart, (*order, *range(len(order), apart.ndim)))
    examples = math.prod(n for n, stride in site.fold if stride)
    return jnp.reshape(apart, (*before, examples, -1, *after))


def _flat_last(x: Any, axes: int) -> Any:
    lead = x.shape[: x.ndim - axes]
    return jnp.reshape(x, (*lead, math.prod(x.shape[x.ndim - axes :])))


def _table(site: Site, x: Any, g: Any) -> tuple[Any, Any]:
    tokens = x[..., site.params["column"]]
    if site.params["clip"]:
        tokens = jnp.clip(tokens, 0, site.params["rows"] - 1)
    tokens = _unfolded(site, _ordered(tokens, site.inputs, False), 1)
    g = _unfolded(site, _ordered(g, site.outputs, True), 2)
    return tokens, _flat_last(g, len(site.outputs[3]))


def _image(site: Site, x: Any, g: Any) -> tuple[Any, Any]:
    a, g = _ordered(x, site.inputs, False), _ordered(g, site.outputs, True)
    if len(site.inputs[4]) == 1:
        a, g = a[..., None, :], g[..., None, :]
    return a, g


def _rows(site: Site, x: Any, g: Any) -> tuple[Any, Any]:
    """Make what each output position of a convolution reads the inputs of a dense layer."""
    stack, example, positions, channels, spatial = site.inputs
    a = _ordered(x, (stack, positions, example, channels, spatial), False)
    p, lead = site.params, a.shape[: 2 + len(positions)]
    patches = lax.conv_general_dilated_patches(
        jnp.reshape(a, (math.prod(lead), *a.shape[len(lead) :])),
        site.weight.result[2 + site.axes[0] :],
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    rows = jnp.moveaxis(patches, 1, -1)
    rows = jnp.reshape(rows, (lead[0], -1, lead[-1], *rows.shape[1:]))
    rows = _unfolded(site, jnp.moveaxis(rows, 2, 1), 1)
    rows = jnp.reshape(rows, (*rows.shape[:2], -1, rows.shape[-1]))
    moved = replace(site, outputs=(*site.outputs[:3], site.outputs[4], site.outputs[3])).outputs
    g = _unfolded(site, _ordered(g, moved, True), 2)
    return rows, jnp.reshape(g, (*g.shape[:3], -1, g.shape[-1]))
