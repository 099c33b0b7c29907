"""Statistics, refreshes and what is carried over them, in a model with local Fisher layers."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

import ngd_core
from ngd_core import Hyper, reconstruction
from ngd_core._xp import namespace_of
from ngd_core.methods.sngd_state import SNGDState, fold
from ngd_core.reconstruction import LocalFisherLayer
from ngd_core.step import due
from ngd_torch._local_fisher import Reconstructed, full_precision, plan_of

__all__ = ["Reconstruction", "attach", "begin", "end", "known", "refresh", "roots"]

KEY = "_reconstruction"
BUFFERS = ("momentum_buffer", "exp_avg")


@dataclasses.dataclass
class Reconstruction:
    """What a reconstructed model knows besides its layers, which it does not keep alive.

    Parameters
    ----------
    method : ngd_core.SNGD
        Options, in literal mode.
    hyper : Hyper
        Damping and decay.
    factor_every, inverse_every : int
        Training passes between two statistics and between two refreshes.
    early : bool
        Whether there are further ones in the first passes, as `ngd_core.step.due`.
    left_out : dict of str to str
        Parameters in no local Fisher layer, and why.
    unseen : set of str
        Layers through which no training pass came.
    optimizers : list of (weak reference, tuple of str)
        Attached optimizers, and the buffers to be re-projected; a copied model has none.
    running : bool
        Whether a training pass is under way.
    warned : bool
        Whether it was said that no optimizer is attached.
    """

    method: ngd_core.SNGD
    hyper: Hyper
    factor_every: int
    inverse_every: int
    early: bool
    left_out: dict[str, str]
    unseen: set[str]
    optimizers: list[tuple[weakref.ref[torch.optim.Optimizer], tuple[str, ...]]]
    running: bool = False
    warned: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Reconstruction:
        own = {"left_out": dict(self.left_out), "unseen": set(self.unseen), "optimizers": []}
        return dataclasses.replace(self, **own, warned=False)  # type: ignore[arg-type]


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    buffers: tuple[str, ...] = BUFFERS,
) -> None:
    """Have an optimizer's momentum re-projected at every refresh of a reconstructed model.

    With ``torch.optim.SGD``, with momentum or without, training is then that of `ngd_torch.SNGD`.

    Parameters
    ----------
    model : nn.Module
        Made by `reconstruct`.
    optimizer : torch.optim.Optimizer
        Of its parameters; not kept alive.
    buffers : tuple of str
        Which tensors of the optimizer's state are displacements of the coordinates: momentum of
        SGD and RMSprop, first moments of Adam and its kin. All others stay: second moments are
        per coordinate and have no counterpart in new coordinates, so such methods take some steps
        to learn theirs again; they are not natural-gradient descent anyway, and depend on which
        root P is.

    Raises
    ------
    TypeError, ValueError
        If the optimizer has none of the coordinates (it was made before), or is one whose history
        cannot be re-projected.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import attach, reconstruct
    >>> model = reconstruct(torch.nn.Linear(3, 2))
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> attach(model, sgd)
    """
    inside = roots(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = f"optimizer is of type {type(optimizer).__name__}; expected a torch.optim.Optimizer."
        raise TypeError(msg)
    if isinstance(optimizer, torch.optim.LBFGS):
        msg = "LBFGS keeps a history that cannot be re-projected; use a first-order optimizer."
        raise TypeError(msg)
    mine = {module.coordinates for module in _reconstructed(model).values()}
    if not any(p in mine for group in optimizer.param_groups for p in group["params"]):
        msg = (
            "The optimizer has none of the model's coordinates; make it from the parameters of the "
            "model that ngd_torch.reconstruct gave."
        )
        raise ValueError(msg)
    for me in map(known, inside):
        me.optimizers = [known for known in me.optimizers if known[0]() not in (None, optimizer)]
        me.optimizers.append((weakref.ref(optimizer), tuple(buffers)))


def refresh(model: nn.Module) -> None:
    """Make all local Fisher layers anew from the statistics so far, now rather than when due.

    Parameters
    ----------
    model : nn.Module
        Made by `reconstruct`. Its function stays; coordinates, gradients and the momentum of
        attached optimizers are re-projected.

    Raises
    ------
    ValueError
        If the model was not made by `reconstruct`.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import reconstruct, refresh
    >>> model = reconstruct(torch.nn.Linear(3, 2))
    >>> refresh(model)
    """
    for root in roots(model):
        _refresh(root, known(root))


def roots(model: nn.Module) -> list[nn.Module]:
    """Reconstructed models in a model: itself, or what is in its wrapper."""
    roots = [module for module in model.modules() if KEY in module.__dict__]
    if not roots:
        msg = "The model has no local Fisher layers; take the one that ngd_torch.reconstruct gave."
        raise ValueError(msg)
    return roots


def known(root: nn.Module) -> Reconstruction:
    """Tell what a root knows."""
    me: Reconstruction = root.__dict__[KEY]
    return me


def _reconstructed(model: nn.Module) -> dict[str, Reconstructed]:
    """Reconstructed layers that are trained, by the names of their specs."""
    inside = (m for m in model.modules() if isinstance(m, Reconstructed))
    return {plan_of(m).spec.name: m for m in inside if m.coordinates.requires_grad}


def _processes() -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return int(distributed.get_world_size())


def _examples(output: Any) -> int | None:
    """First axis of the first tensor of a pass's output, if there is one."""
    if isinstance(output, torch.Tensor):
        return output.shape[0] if output.ndim else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    parts = output if isinstance(output, (tuple, list)) else ()
    return next((n for part in parts if (n := _examples(part)) is not None), None)


# not traced: a compiled model calls these between its graphs
@torch.compiler.disable  # type: ignore[untyped-decorator]
def begin(model: nn.Module, args: Any) -> None:
    """Have the layers note what they see, if this is a training pass and statistics are due."""
    me = known(model)
    me.running = model.training and torch.is_grad_enabled()
    if me.running and _processes() > 1:
        msg = (
            "Local Fisher layers have statistics of one process only; train with ngd_torch.SNGD "
            "where there are several."
        )
        raise NotImplementedError(msg)
    for module in _reconstructed(model).values():
        local = module.local_fisher
        wanted = me.running and due(local.passes, me.factor_every, early=me.early)
        local.uses = [] if wanted else None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def end(model: nn.Module, args: Any, output: Any) -> None:
    """Fold what the layers saw into their averages, count the pass, and refresh if that is due."""
    me = known(model)
    if not me.running:
        return
    me.running = False
    examples, now = _examples(output), False
    for name, module in _reconstructed(model).items():
        local = module.local_fisher
        uses, local.uses = local.uses, None
        if uses:
            me.unseen.discard(name)
            rows = sum(n for n, _ in uses)
            with full_precision(local.fisher.device):
                batch = sum(matrix * (n / rows) for n, matrix in uses)
                xp = namespace_of(batch)
                local.state = fold(local.state, batch, examples or rows, me.hyper, xp=xp)
        now = now or due(local.passes, me.inverse_every, early=me.early)
        local.passes += 1
    if now:
        _refresh(model, me)


def _refresh(model: nn.Module, me: Reconstruction) -> None:
    layers = _reconstructed(model)
    _warn(layers, me)
    groups: dict[Any, list[Reconstructed]] = {}
    for module in layers.values():
        fisher = module.local_fisher.fisher
        groups.setdefault((fisher.device, fisher.dtype), []).append(module)
    for (device, _), group in groups.items():
        with full_precision(device):
            state = SNGDState({plan_of(m).spec: m.local_fisher.state for m in group})
            state, _ = me.method.refresh(state, me.hyper)
            for module in group:
                old, new = module.local_fisher.map, state.layers[plan_of(module).spec]
                module.local_fisher.state = new
                _carry(module.coordinates, old, module.local_fisher.map, me)


def _carry(
    p: nn.Parameter, old: LocalFisherLayer, new: LocalFisherLayer, me: Reconstruction
) -> None:
    """Coordinates, their gradient and their momentum, from before a refresh to after it."""
    for x in (p, *_momenta(p, me)):
        x.copy_(reconstruction.reproject(old, new, x.to(new.root.dtype)))
    if p.grad is not None:
        grad = reconstruction.coordinates(old, p.grad.to(new.root.dtype))
        p.grad.copy_(reconstruction.pull_back(new, grad))


def _momenta(p: nn.Parameter, me: Reconstruction) -> Iterator[torch.Tensor]:
    for ref, names in me.optimizers:
        optimizer = ref()
        state = {} if optimizer is None else optimizer.state.get(p, {})
        for name in names:
            x = state.get(name)
            if isinstance(x, torch.Tensor) and x.shape == p.shape:
                yield x


def _warn(layers: Mapping[str, Reconstructed], me: Reconstruction) -> None:
    """Warn, from the second refresh on and once, of what goes another way than it seems to."""
    if not any(module.local_fisher.passes > 1 for module in layers.values()):
        return
    if not me.warned and all(ref() is None for ref, _ in me.optimizers):
        me.warned = True
        warnings.warn(
            "No optimizer is attached, so momentum, if it has any, is not carried over the refresh "
            "of local Fisher layers; call ngd_torch.attach(model, optimizer) before training.",
            stacklevel=6,
        )
    unseen = {name for name in me.unseen if name in layers}
    unseen = {name for name in unseen if not float(layers[name].local_fisher.weight)}
    if unseen:
        me.unseen -= unseen
        warnings.warn(
            f"No forward pass in training mode came through {', '.join(map(repr, sorted(unseen)))},"
            " which so far follow their gradients; call the model as a whole, model(x), and each "
            "layer as a module.",
            stacklevel=6,
        )
