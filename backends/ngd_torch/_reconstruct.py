"""SNGD literally: a model whose layers have local Fisher layers in front of their weights."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

import ngd_core
from ngd_core import Hyper
from ngd_torch._layers import RULES, Layer, LayerRule, find_layers
from ngd_torch._local_fisher import Reconstructed, rebuild, restore
from ngd_torch._ops import NATIVE
from ngd_torch._refresh import KEY, Reconstruction, begin, end, known, roots

__all__ = ["fold", "left_out", "reconstruct"]

OPTIONS = tuple(f.name for f in dataclasses.fields(ngd_core.SNGD) if f.name != "mode")


def reconstruct(
    model: nn.Module,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    factor_every: int = 10,
    inverse_every: int = 100,
    early: bool = False,
    uncovered: Literal["gradient", "error"] = "gradient",
    layers: Mapping[type, LayerRule] | None = None,
    **options: Any,
) -> nn.Module:
    """Copy a model, with a local Fisher layer in front of the weights of each layer.

    A layer ``y = W x + b`` becomes ``y = V P (x; 1)``: V is a parameter called ``coordinates``, to
    be trained by any optimizer, and ``P = (G + eps I)^(-1/2)`` is a constant made of the second
    moment G of the layer's inputs (see `ngd_core.SNGD` and `ngd_core.reconstruction`). The
    function is that of the model. A step of plain gradient descent on V is one of the natural
    gradient on ``[W b]`` in the metric of local Fisher matrices.

    At the end of every `inverse_every`-th forward pass in training mode, with `early` also of some
    early ones, P is made anew, V is re-projected so that the function stays, and so are gradients
    that V has already. Momentum is re-projected in optimizers known by `attach`.

    Parameters
    ----------
    model : nn.Module
        Network, which stays as it is. Call the copy as a whole in training mode.
    damping, decay : float
        Of `ngd_core.Hyper`: damping in the units of ``damping_mode``, and the weight kept by older
        statistics when a pass comes.
    factor_every, inverse_every : int
        Training passes between two statistics and between two refreshes.
    early : bool
        Further statistics and refreshes in passes 1, 4, 16, 64, ... below these intervals, as
        `ngd_core.step.due`.
    uncovered : "gradient" or "error"
        What happens to trained parameters in no such layer, see `left_out`.
    layers : mapping of type to LayerRule, optional
        Rules besides those for PyTorch's own modules.
    **options
        Of `ngd_core.SNGD`: metric, root, damping_mode, start, linear_layers, steps, rank,
        solve_dtype, ops.

    Returns
    -------
    nn.Module
        A copy, as `copy.deepcopy` makes it. Its `state_dict` has all there is; load it into a model
        reconstructed with the same options.

    Raises
    ------
    TypeError, ValueError
        For an unknown option, or one outside its range; if the model is reconstructed already, or
        has no layer for it; with ``uncovered="error"`` if a trained parameter is left out.

    Notes
    -----
    As in `torch.nn.utils.parametrize`, a layer's ``weight`` and ``bias`` are computed when they are
    read, and writing into them changes nothing. Weight decay and clipping of norms, coordinate by
    coordinate rules such as Adam's too, act on V, where they mean something else than on W
    (``|V|^2`` is ``tr W (G + eps I) W^T``). Every pass counts, so decay and `inverse_every` are
    per micro-batch where gradients are accumulated.

    Sources show the layer in a figure of the authors' code; that P is treated as a constant, and
    re-projection, are derived.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import fold, reconstruct
    >>> plain = torch.nn.Linear(3, 2)
    >>> model = reconstruct(plain, inverse_every=10)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    >>> torch.nn.functional.cross_entropy(model(x), y).backward()
    >>> sgd.step()
    >>> torch.allclose(fold(model)(x), model(x), atol=1e-5)
    True
    """
    for name, value in (("factor_every", factor_every), ("inverse_every", inverse_every)):
        if not isinstance(value, int) or value < 1:
            msg = f"{name} is {value!r}; expected an integer >= 1."
            raise ValueError(msg)
    if not damping >= 0:
        msg = f"damping is {damping}; expected a number >= 0."
        raise ValueError(msg)
    if not 0 <= decay <= 1:
        msg = f"decay is {decay}; expected a number from 0 to 1."
        raise ValueError(msg)
    if uncovered not in ("gradient", "error"):
        msg = f"uncovered is {uncovered!r}; expected 'gradient' or 'error'."
        raise ValueError(msg)
    for name in options:
        if name not in OPTIONS:
            known = ["damping", "decay", "factor_every", "inverse_every", "early"]
            known += ["uncovered", "layers"]
            msg = f"Unknown option {name!r}; known are {', '.join([*known, *OPTIONS])}."
            raise TypeError(msg)
    if any(isinstance(module, Reconstructed) for module in model.modules()):
        msg = (
            "The model has local Fisher layers already; fold it first, with ngd_torch.fold(model)."
        )
        raise ValueError(msg)
    method = ngd_core.SNGD(**{"ops": NATIVE, **options, "mode": "literal"})
    new = copy.deepcopy(model)
    found, left = _layers_of(new, {**RULES, **(layers or {})})
    trained = {name: why for name, why in left.items() if why != "frozen"}
    if not found:
        msg = "The model has no layer that a local Fisher layer could be put in front of" + (
            f"; the parameter {next(iter(trained))!r}: {next(iter(trained.values()))}."
            if trained
            else "."
        )
        raise ValueError(msg)
    if uncovered == "error" and trained:
        name, why = next(iter(trained.items()))
        msg = (
            f"{len(trained)} trained parameters are left out, the first is {name!r} ({why}); add a "
            "rule with layers={...}, freeze them, or pass uncovered='gradient'."
        )
        raise ValueError(msg)
    state = method.init([layer.spec for layer in found], found[0].weight.detach())
    for layer in found:
        own = state.layers[layer.spec]
        per_output = own.fisher.ndim > len(layer.spec.stack) + 2
        rebuild(layer, own, per_output)
    new.__dict__[KEY] = Reconstruction(
        method,
        Hyper(damping, decay),
        factor_every,
        inverse_every,
        early,
        left,
        {layer.spec.name for layer in found},
        [],
    )
    new.register_forward_pre_hook(begin)
    new.register_forward_hook(end)
    return new


def fold(model: nn.Module) -> nn.Module:
    """Copy a reconstructed model as the plain model that it computes; the inverse of `reconstruct`.

    Parameters
    ----------
    model : nn.Module
        Made by `reconstruct`, or a model with such a one in it. It stays as it is.

    Returns
    -------
    nn.Module
        A copy with the classes, parameters and names of the original model, weights of now,
        and no hooks of ours.

    Raises
    ------
    ValueError
        If there is nothing to fold.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import fold, reconstruct
    >>> plain = torch.nn.Linear(3, 2)
    >>> torch.equal(fold(reconstruct(plain)).weight, plain.weight)
    True
    """
    new = copy.deepcopy(model)
    for root in roots(new):
        del root.__dict__[KEY]
        for hooks in (root._forward_pre_hooks, root._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (begin, end)]:
                del hooks[key]
        for module in list(root.modules()):
            if isinstance(module, Reconstructed):
                restore(module)
    return new


def left_out(model: nn.Module) -> dict[str, str]:
    """Parameters of a reconstructed model that are in no local Fisher layer.

    Parameters
    ----------
    model : nn.Module
        Made by `reconstruct`.

    Returns
    -------
    dict of str to str
        For each name why: "frozen", or a reason for which it follows its gradient.

    Raises
    ------
    ValueError
        If the model was not made by `reconstruct`.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import left_out, reconstruct
    >>> left_out(reconstruct(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU())))
    {'1.weight': 'no rule for PReLU'}
    """
    return {name: why for root in roots(model) for name, why in known(root).left_out.items()}


def _layers_of(
    model: nn.Module, rules: Mapping[type, LayerRule]
) -> tuple[list[Layer], dict[str, str]]:
    """Layers to be rebuilt, and why other parameters are in none."""
    # a local Fisher layer goes in front of a module's call, and no call shows these weights
    rules = {
        kind: rule
        if rule.parts is None
        else dataclasses.replace(rule, parts=None, why_not=_in_a_kernel)
        for kind, rule in rules.items()
    }
    out_proj = nn.modules.linear.NonDynamicallyQuantizableLinear
    rules.setdefault(out_proj, dataclasses.replace(rules[nn.Linear], why_not=_never_called))
    found, left = find_layers(model, rules, "expand", ("dense", "conv2d"))
    places = Counter(
        p
        for module in model.modules()
        for _, p in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    names = {p: name for name, p in model.named_parameters()}
    shared = [layer for layer in found if any(places[p] > 1 for p in layer.parameters)]
    left |= {names[p]: "shared by several modules" for layer in shared for p in layer.parameters}
    return [layer for layer in found if layer not in shared], left


def _in_a_kernel(module: nn.Module) -> str:
    return f"{type(module).__name__} reads its weights inside a kernel"


def _never_called(_: nn.Module) -> str:
    return "MultiheadAttention reads its weight without calling it"
