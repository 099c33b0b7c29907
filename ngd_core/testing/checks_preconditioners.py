"""Level "methods" for somebody's preconditioner: dense definition, scale, independence.

Each check is a function of a `PreconditionerUnderTest` and plain values; its docstring states the
law. They look at directions alone, so they hold for code of any framework and any structure.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from ngd_core import reference
from ngd_core.testing.assertions import assert_close, tolerance
from ngd_core.testing.problems import Problem, problem
from ngd_core.testing.protocol import PreconditionerUnderTest

__all__ = ["CHECKS", "checks_for"]

POSITIONS = {"dense": 1, "conv": 4}
"""Shared positions T of the first layer of the problems; the last one has 1."""


def _directions(subject: PreconditionerUnderTest, given: Problem) -> dict[str, Any]:
    found = {name: np.asarray(u, np.float64) for name, u in subject.direction(given).items()}
    missing = set(given.params) - set(found)
    assert not missing, f"there is no direction for the layers {sorted(missing)}"
    return found


def direction_is_the_dense_damped_solve(
    subject: PreconditionerUnderTest, network: str, examples: int, damping: float, seed: int
) -> None:
    """``(G (x) A damped)^-1 grad h``, ``h = (1/N) sum l_n`` and ``G (x) A`` of that mean's Fisher.

    ``A = E[a a^T]`` over examples and positions, ``G = (1/N) sum g g^T`` over examples, summed over
    positions, g the gradient of an example's own loss, the division by N of a mean loss undone.
    """
    given = problem(network, examples, seed, damping)  # type: ignore[arg-type]
    found, want = _directions(subject, given), given.kfac(subject.fisher, subject.split or "exact")
    kappa = given.condition(subject.fisher)
    try:
        for name, u in want.items():
            assert_close(found[name], u, dtype=subject.dtype, size=32 * examples, kappa=kappa)
    except AssertionError as error:
        for sentence in _scale_errors(subject, network, damping, seed):
            error.add_note(sentence)
        raise


def _scale_errors(
    subject: PreconditionerUnderTest, network: str, damping: float, seed: int
) -> list[str]:
    """Say which power of N and T, if any, the curvature of each layer is too large by."""
    examples, split = 5, subject.split or "exact"
    given = problem(network, examples, seed, damping)  # type: ignore[arg-type]
    found, sentences = _directions(subject, given), []
    layers = dict(zip(given.params, (POSITIONS[network], 1), strict=True))
    powers = sorted(product(range(-4, 5), range(-6, 7)), key=lambda p: (abs(p[0]) + abs(p[1]), p))
    factors, grads = given.factors(subject.fisher), given.gradients()
    bound = tolerance(subject.dtype, 32 * examples, given.condition(subject.fisher))
    for name, positions in layers.items():
        for i, j in powers if positions > 1 else [p for p in powers if not p[1]]:
            factor = float(examples) ** i * float(positions) ** j
            A, G = factors[name]
            want = _solved(grads[name], A, factor * G, damping, split)
            if np.max(np.abs(found[name] - want)) <= bound * np.max(np.abs(want)):
                if i or j:
                    wrong = "".join(f" {x}^{p}" for x, p in (("N", i), ("T", j)) if p)
                    sentences.append(
                        f"layer '{name}': the curvature is{wrong} times the Fisher of the mean loss"
                        f" (N examples, T = {positions} positions)"
                    )
                break
    return sentences


def _solved(grad: Any, A: Any, G: Any, damping: float, split: str) -> Any:
    """The damped solve in the eigenvectors of the factors, quicker than the oracle's."""
    (a, Q_A), (g, Q_G) = np.linalg.eigh(A), np.linalg.eigh(G)
    pi, root = np.sqrt(np.mean(a) / np.mean(g)), np.sqrt(damping)
    values = np.outer(g, a) + damping
    if split == "pi":
        values = np.outer(g + root / pi, a + root * pi)
    return Q_G @ ((Q_G.T @ grad @ Q_A) / values) @ Q_A.T


def one_example_has_its_exact_natural_gradient(
    subject: PreconditionerUnderTest, damping: float, seed: int
) -> None:
    """For one example without positions ``G (x) A`` is the layer's block of the exact Fisher."""
    given = problem("dense", 1, seed, damping)
    found, kappa = _directions(subject, given), given.condition(subject.fisher)
    arguments = given.network, given.params, given.x, "gaussian"
    if subject.fisher == "exact":
        fisher = reference.exact_fisher(*arguments)  # type: ignore[arg-type]
    else:
        fisher = reference.empirical_fisher(*arguments, given.y)  # type: ignore[arg-type]
    joint = reference.diagonal_blocks(fisher, given.network)
    for name, grad in given.gradients().items():
        want = reference.solve(joint[name], grad.reshape(-1), damping)
        assert_close(found[name].reshape(-1), want, dtype=subject.dtype, size=32, kappa=kappa)


def direction_forgets_duplicates(
    subject: PreconditionerUnderTest,
    network: str,
    examples: int,
    copies: int,
    damping: float,
    seed: int,
) -> None:
    """Each example several times is the same mean loss and the same Fisher: the same direction."""
    given = problem(network, examples, seed, damping)  # type: ignore[arg-type]
    one = _directions(subject, given)
    more = _directions(subject, given.take(np.tile(np.arange(examples), copies)))
    _assert_same(subject, more, one, given, examples * copies)


def direction_forgets_the_order(
    subject: PreconditionerUnderTest, network: str, examples: int, damping: float, seed: int
) -> None:
    """The examples in another order: the same direction."""
    given = problem(network, examples + 1, seed, damping)  # type: ignore[arg-type]
    one = _directions(subject, given)
    other = _directions(subject, given.take(np.arange(examples + 1)[::-1]))
    _assert_same(subject, other, one, given, examples + 1)


def direction_repeats_and_leaves_its_arguments(
    subject: PreconditionerUnderTest, network: str, examples: int, damping: float, seed: int
) -> None:
    """Asked twice, the answer is the same, and data and parameters are not written to."""
    given, kept = (problem(network, examples, seed, damping) for _ in range(2))  # type: ignore[arg-type]
    one, other = _directions(subject, given), _directions(subject, given)
    _assert_same(subject, other, one, given, examples)
    assert np.array_equal(given.x, kept.x), "the inputs were written to"
    for name, block in kept.params.items():
        assert np.array_equal(given.params[name], block), f"the block of '{name}' was written to"


def _assert_same(
    subject: PreconditionerUnderTest, got: Any, want: Any, given: Problem, examples: int
) -> None:
    kappa = given.condition(subject.fisher)
    for name, u in want.items():
        scale = max(float(np.max(np.abs(u))), 1e-300)
        size = 32 * examples
        assert_close(got[name], u, dtype=subject.dtype, size=size, kappa=kappa, scale=scale)


def direction_descends(
    subject: PreconditionerUnderTest, network: str, examples: int, damping: float, seed: int
) -> None:
    """``<direction, gradient>`` is above zero: the inverse curvature is positive definite."""
    given = problem(network, examples, seed, damping)  # type: ignore[arg-type]
    found = _directions(subject, given)
    inner = sum(float(np.sum(found[n] * g)) for n, g in given.gradients().items())
    assert inner > 0, f"the inner product of direction and gradient is {inner:.3g}"


def large_damping_leaves_the_gradient(
    subject: PreconditionerUnderTest, network: str, examples: int, seed: int
) -> None:
    """``damping * direction -> gradient`` for a damping far above the curvature."""
    curvature = problem(network, examples, seed, 1.0).condition(subject.fisher)  # type: ignore[arg-type]
    damping = 1e6 * curvature
    given = problem(network, examples, seed, damping)  # type: ignore[arg-type]
    found = _directions(subject, given)
    for name, grad in given.gradients().items():
        distance = np.linalg.norm(damping * found[name] - grad) / np.linalg.norm(grad)
        assert distance < 1e-2, f"layer '{name}': off by {distance:.3g} of the gradient's length"


CHECKS = (
    direction_is_the_dense_damped_solve,
    one_example_has_its_exact_natural_gradient,
    direction_forgets_duplicates,
    direction_forgets_the_order,
    direction_repeats_and_leaves_its_arguments,
    direction_descends,
    large_damping_leaves_the_gradient,
)
"""The checks of this level for a preconditioner."""


def checks_for(subject: PreconditionerUnderTest) -> tuple[Callable[..., None], ...]:
    """List the checks that a preconditioner's own claims allow.

    Parameters
    ----------
    subject : PreconditionerUnderTest
        Without a known split of the damping there is no dense solve to compare with; only the
        exact one makes one example exact, and that is asked of dense networks.

    Returns
    -------
    tuple of callable
        Of `CHECKS`.

    Examples
    --------
    >>> from ngd_core.testing import PreconditionerUnderTest
    >>> from ngd_core.testing.checks_preconditioners import CHECKS, checks_for
    >>> plain = PreconditionerUnderTest("gradient", lambda p: p.gradients(), split=None)
    >>> len(CHECKS) - len(checks_for(plain))
    2
    """
    left_out: list[Callable[..., None]] = []
    if subject.split is None:
        left_out.append(direction_is_the_dense_damped_solve)
    if subject.split != "exact" or "dense" not in subject.networks:
        left_out.append(one_example_has_its_exact_natural_gradient)
    return tuple(check for check in CHECKS if check not in left_out)
