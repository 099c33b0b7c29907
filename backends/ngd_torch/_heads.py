"""What the outputs of a model are parameters of, and what one example of them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ngd_core import losses

__all__ = ["Heads", "Term"]

Entry = str | tuple[str, float] | None


class Term(NamedTuple):
    """One output with a loss of its own.

    Parameters
    ----------
    outputs : Tensor, shape (N, *positions, classes)
        Output, classes last.
    likelihood : Likelihood or None
        What it is parameters of; None where that plays no part.
    weight : float
        Of its loss in the sum.
    counted : Tensor of bool, shape (N, *positions), or None
        Where it has a loss; None: everywhere.
    """

    outputs: torch.Tensor
    likelihood: losses.Likelihood | None
    weight: float = 1.0
    counted: torch.Tensor | None = None

    def positions(self) -> Any:
        """Positions of an example that have a loss, on average."""
        if self.counted is None:
            return math.prod(self.outputs.shape[1:-1])
        wide = torch.float64 if self.outputs.dtype == torch.float64 else torch.float32
        return self.counted.sum(dtype=wide) / len(self.counted)


class Heads:
    """Outputs of a model and their losses.

    Parameters
    ----------
    likelihood : str, pair, mapping or sequence
        Name of a likelihood, or a pair of it and the weight of its loss, for the only output, or
        the first floating tensor of several. For several outputs a mapping or a sequence of such
        with the keys, or the length, of what the model returns; None for an output without a loss.
    class_axis : int or None
        Axis of the classes in outputs of more than two axes.
    examples : "rows", "positions" or None
        What one example is; None: there is but one position, and a row it is.
    mask : callable or None
        ``mask(*args, **kwargs)`` of the model's arguments: where there is a loss.

    Raises
    ------
    ValueError
        For an unknown likelihood, or a weight that is not positive.
    """

    def __init__(
        self,
        likelihood: Any,
        class_axis: int | None = None,
        examples: str | None = None,
        mask: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.class_axis, self.examples, self.mask = class_axis, examples, mask
        self.single = isinstance(likelihood, str) or _is_weighted(likelihood)
        self.entries: dict[Any, tuple[losses.Likelihood, float]] = {}
        if self.single:
            entries: Any = [(0, likelihood)]
        elif isinstance(likelihood, Mapping):
            entries = likelihood.items()
        elif isinstance(likelihood, Sequence):
            entries = enumerate(likelihood)
        else:
            msg = (
                f"likelihood is {likelihood!r}; expected a name, a pair (name, weight), or a "
                "mapping or sequence of these and None, as the model's outputs are."
            )
            raise ValueError(msg)
        for key, entry in entries:
            if entry is not None:
                name, weight = entry if _is_weighted(entry) else (entry, 1.0)
                if not weight > 0:
                    msg = f"The likelihood {name!r} has weight {weight}; expected a number > 0."
                    raise ValueError(msg)
                self.entries[key] = losses.get(name), float(weight)
        if not self.entries:
            msg = f"likelihood is {likelihood!r}; expected one for at least one output."
            raise ValueError(msg)
        self.shape = None if self.single or isinstance(likelihood, Mapping) else len(likelihood)

    def terms(self, output: Any, args: Any, kwargs: Any, *, sampled: bool) -> list[Term]:
        """Find the outputs that have a loss, classes last; none if none of them has a gradient.

        Parameters
        ----------
        output : object
            What the model returned.
        args, kwargs : tuple, dict
            What it was called with.
        sampled : bool
            Whether the likelihoods are used.

        Returns
        -------
        list of Term
            In the order of the likelihoods.

        Raises
        ------
        ValueError
            If an output is not there or has no axis of examples, if the outputs disagree about the
            number of examples, or if it has to be said which axis holds the classes, or what an
            example is.
        """
        found = [
            (tensor, *entry)
            for key, entry in self.entries.items()
            if (tensor := self._find(output, key)) is not None
            and tensor.requires_grad
            and 0 not in tensor.shape  # an empty batch has no part
        ]
        if len({tensor.shape[:1] for tensor, *_ in found}) > 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor, *_ in found)
            msg = f"The outputs have shapes {shapes}; expected the same examples on the first axis."
            raise ValueError(msg)
        terms = [self._term(*rest, sampled=sampled) for rest in found]
        if self.mask is None or not terms:
            return terms
        return _masked(terms, self.mask(*args, **kwargs))

    def _find(self, output: Any, key: Any) -> torch.Tensor | None:
        if self.single:
            return _first_tensor(output)
        if output is None:  # the forward pass failed
            return None
        if self.shape is None:
            there = isinstance(output, Mapping) and key in output
        else:
            there = isinstance(output, (tuple, list)) and len(output) == self.shape
        if not there or not isinstance(output[key], torch.Tensor):
            kind = type(output).__name__
            size = f" with {list(output)}" if isinstance(output, Mapping) else ""
            want = f"a tensor under {key!r}" if self.shape is None else f"{self.shape} outputs"
            msg = f"The model returned {kind}{size}; by likelihood={{...}} expected {want}."
            raise ValueError(msg)
        tensor: torch.Tensor = output[key]
        return tensor

    def _term(
        self, outputs: torch.Tensor, likelihood: losses.Likelihood, weight: float, *, sampled: bool
    ) -> Term:
        if outputs.ndim == 0:
            msg = (
                "The model's output is a scalar, without examples; say which output the loss is "
                "of, for example likelihood={'logits': 'categorical'}."
            )
            raise ValueError(msg)
        if outputs.ndim > 2 and (sampled or self.examples == "positions"):
            if self.class_axis is None and (
                likelihood.name == "categorical" or self.examples == "positions"
            ):
                msg = (
                    f"The outputs have shape {tuple(outputs.shape)}; say which axis holds the "
                    "classes: class_axis=-1 for (batch, positions, classes), or class_axis=1 for "
                    "(batch, classes, ...), as torch's cross_entropy takes them."
                )
                raise ValueError(msg)
            if self.class_axis is not None:
                outputs = outputs.movedim(self.class_axis, -1)
            if self.examples is None:
                msg = (
                    f"The outputs have shape {tuple(outputs.shape)}, classes last; say what one "
                    "example is: examples='positions' if the loss is a mean over positions as "
                    "well, or 'rows' if it is a mean over the batch of sums over positions."
                )
                raise ValueError(msg)
        elif outputs.ndim == 1 and likelihood.name != "categorical":
            outputs = outputs[:, None]
        return Term(outputs, likelihood if sampled else None, weight)

    def spread(self, terms: Sequence[Term]) -> Any:
        """Examples in a row of the batch: 1, or the positions that have a loss, on average."""
        if self.examples != "positions":
            return 1
        counts = [term.positions() for term in terms]
        if any(isinstance(n, int) and n != counts[0] for n in counts[1:]):
            msg = (
                f"The outputs have {counts} positions; one backward pass of the training loss "
                "cannot tell them apart: use fisher='mc', or examples='rows'."
            )
            raise ValueError(msg)
        return counts[0]

    def vectors(
        self,
        fisher: str,
        terms: Sequence[Term],
        generator: Callable[[torch.device], torch.Generator],
    ) -> tuple[int, Iterator[list[torch.Tensor]]]:
        """Count the vectors to be carried back, and give the part of each in every term.

        Their sum over outer products is the Fisher of the sum of the terms, given the outputs: a
        sampled vector has a part in every term at once, of the exact ones each is of one term.
        """
        roots = [self._roots(fisher, term, generator) for term in terms]
        if fisher == "mc":
            return 1, iter([[root[0] for root in roots]])
        zeros = [torch.zeros_like(term.outputs) for term in terms]

        def one_by_one() -> Iterator[list[torch.Tensor]]:
            for k, root in enumerate(roots):
                for v in root:
                    yield [*zeros[:k], v, *zeros[k + 1 :]]

        return sum(len(root) for root in roots), one_by_one()

    def _roots(
        self, fisher: str, term: Term, generator: Callable[[torch.device], torch.Generator]
    ) -> torch.Tensor:
        """Vectors of one term, ``(M, *outputs.shape)``."""
        likelihood, outputs = term.likelihood, term.outputs.detach()
        assert likelihood is not None
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        noise = None
        if fisher == "mc":
            shape = (1, *likelihood.noise_shape(outputs))
            draw = torch.rand if likelihood.noise == "uniform" else torch.randn
            noise = draw(shape, generator=generator(outputs.device), device=outputs.device)
        v = losses.fisher_vectors(
            fisher,  # type: ignore[arg-type]
            likelihood,
            outputs,
            noise=noise,
        )
        scale: Any = term.weight**0.5
        if self.examples == "positions":
            scale = scale / term.positions() ** 0.5
        v = v * scale
        if term.counted is not None:
            v = torch.where(term.counted[..., None], v, 0.0)
        return v.to(term.outputs.dtype)


def _is_weighted(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], (int, float))
    )


def _masked(terms: list[Term], counted: torch.Tensor) -> list[Term]:
    """Terms with the mask where it fits."""
    shapes = [tuple(term.outputs.shape[:-1]) for term in terms]
    if tuple(counted.shape) not in shapes:
        msg = (
            f"The mask has shape {tuple(counted.shape)}; expected that of an output's positions, "
            f"{' or '.join(map(str, shapes))}."
        )
        raise ValueError(msg)
    return [
        term._replace(counted=counted.bool()) if shape == tuple(counted.shape) else term
        for term, shape in zip(terms, shapes, strict=True)
    ]


def _first_tensor(output: Any) -> torch.Tensor | None:
    """Tensor itself, or the first floating one of a tuple, a list or a dict."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((t for part in output if (t := _first_tensor(part)) is not None), None)
    return None
