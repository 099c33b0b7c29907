"""A `Problem` as a module of PyTorch: what ngd_torch records of it, and its own K-FAC on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ngd_core import KFAC, LayerRecord, nn
from ngd_core.testing.problems import Problem

__all__ = ["capture", "loss_of", "module_of", "preconditioned"]


def module_of(problem: Problem) -> Any:
    """Build the model of a problem as a ``torch.nn.Sequential`` with its parameters.

    Parameters
    ----------
    problem : Problem
        Of dense layers, convolutions, tanh and flatten.

    Returns
    -------
    torch.nn.Sequential
        In float64, submodules named as the layers, others by their place.

    Examples
    --------
    >>> from ngd_core.testing.problems import problem
    >>> from ngd_core.testing.torch_subject import module_of
    >>> [name for name, _ in module_of(problem("dense", 3, seed=0)).named_children()]
    ['first', '1', 'last']
    """
    import torch

    model = torch.nn.Sequential()
    for place, layer in enumerate(problem.model.layers):
        spec = getattr(layer, "spec", None)
        if spec is None:
            plain = {nn.Tanh: torch.nn.Tanh, nn.Flatten: torch.nn.Flatten}[type(layer)]
            model.add_module(str(place), plain())
            continue
        if spec.geometry is None:
            made = torch.nn.Linear(spec.in_features, spec.out_features, dtype=torch.float64)
        else:
            g = spec.geometry
            sizes = spec.in_features, spec.out_features, g.kernel_size
            made = torch.nn.Conv2d(*sizes, g.stride, 0, g.dilation, dtype=torch.float64)
        block = torch.tensor(problem.params[spec.name])
        with torch.no_grad():
            made.weight.copy_(block[:, :-1].reshape(made.weight.shape))
            made.bias.copy_(block[:, -1])
        model.add_module(spec.name, made)
    return model


def loss_of(problem: Problem, model: Any) -> Any:
    """Mean loss of a problem through a module, as a 0-d tensor.

    Parameters
    ----------
    problem : Problem
        Whose batch and loss are taken.
    model : torch.nn.Module
        From `module_of`.

    Returns
    -------
    torch.Tensor
        ``(1/N) sum_n |f_n - y_n|^2 / 2``.

    Examples
    --------
    >>> from ngd_core.testing.problems import problem
    >>> from ngd_core.testing.torch_subject import loss_of, module_of
    >>> given = problem("dense", 3, seed=0)
    >>> loss_of(given, module_of(given)).ndim
    0
    """
    import torch

    outputs = model(torch.tensor(problem.x))
    return 0.5 * ((outputs - torch.tensor(problem.y)) ** 2).sum() / len(problem.x)


def preconditioned(problem: Problem, run: Callable[[Any, Any], object]) -> dict[str, Any]:
    """Blocks ``[W b]`` of a module's gradients after somebody's code changed them.

    Parameters
    ----------
    problem : Problem
        The problem.
    run : callable
        ``run(model, loss)``: has to call the backward pass of `loss`, a function without
        arguments that computes the loss anew, and to leave directions in the gradients.

    Returns
    -------
    dict of str to numpy.ndarray
        One block a layer.

    Examples
    --------
    >>> from ngd_core.testing.problems import problem
    >>> from ngd_core.testing.torch_subject import preconditioned
    >>> found = preconditioned(problem("dense", 3, seed=0), lambda model, loss: loss().backward())
    >>> {name: block.shape for name, block in found.items()}
    {'first': (4, 4), 'last': (2, 5)}
    """
    import torch

    model = module_of(problem)
    run(model, lambda: loss_of(problem, model))
    found = {}
    for name in problem.params:
        layer = getattr(model, name)
        weight = layer.weight.grad.reshape(len(layer.weight), -1)
        found[name] = torch.cat([weight, layer.bias.grad[:, None]], 1).numpy()
    return found


class _Recorder:
    """K-FAC that keeps the records it is given."""

    kinds: ClassVar[tuple[str, ...]] = KFAC.kinds

    def __init__(self) -> None:
        self.kfac, self.found = KFAC(), dict[str, LayerRecord]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kfac, name)

    def accumulate(self, state: Any, records: Any, hyper: Any, **options: Any) -> Any:
        self.found |= {spec.name: record for spec, record in records.items()}
        return self.kfac.accumulate(state, records, hyper, **options)


def capture(problem: Problem) -> dict[str, LayerRecord]:
    """Take the records that `ngd_torch` makes in one backward pass of the problem's loss.

    Parameters
    ----------
    problem : Problem
        The problem.

    Returns
    -------
    dict of str to LayerRecord
        Tensors by layer.

    Examples
    --------
    >>> from ngd_core.testing.problems import problem
    >>> from ngd_core.testing.torch_subject import capture
    >>> [tuple(record.a.shape) for record in capture(problem("dense", 3, seed=0)).values()]
    [(3, 4), (3, 3)]
    """
    from ngd_torch import Preconditioner

    recorder: Any = _Recorder()
    model = module_of(problem)
    preconditioner = Preconditioner(
        model, recorder, fisher="empirical", likelihood="gaussian", factor_every=1
    )
    loss_of(problem, model).backward()
    preconditioner.step()
    preconditioner.close()
    return dict(recorder.found)
