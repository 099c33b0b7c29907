"""Operations that keep some axes of their operands, each row along them for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ngd_jax._digits import Axis, Digits, merged
from ngd_jax._views import Shape

__all__ = ["placed"]

Places: TypeAlias = Mapping[int, int]
"""Axes of the result by those of an operand."""


def placed(eqn: Any, states: Sequence[Digits | None], shape: Shape) -> Digits | None:
    """Digits of an equation's result, of this shape; None if its operation is not known here.

    An axis that an operation keeps has one size in operand and result. Digits that are in none of
    the axes kept are missing in the result.
    """
    rule = RULES.get(eqn.primitive.name)
    if rule is None:
        return None
    result: list[Axis] = [merged(((n, 0),)) for n in shape]
    held: set[int] = set()
    for var, places, digits in zip(eqn.invars, rule(eqn), states, strict=True):
        if digits is None:
            continue
        for a, b in places.items():
            if var.aval.shape[a] != shape[b] or not any(stride for _, stride in digits[a]):
                continue
            if b in held and result[b] != digits[a]:
                return None
            held.add(b)
            result[b] = digits[a]
    if eqn.primitive.name == "concatenate":
        along, first = eqn.params["dimension"], states[0]
        sizes = {var.aval.shape for var in eqn.invars}
        if first is not None and len(sizes) == 1 and set(states) == {first}:
            result[along] = merged(((len(states), 0), *first[along]))
    return tuple(result)


def _rank(var: Any) -> int:
    return len(var.aval.shape)


def _all_but(*parameters: str) -> Callable[[Any], list[Places]]:
    """Rule of an operation that keeps the axes that these parameters do not name."""

    def rule(eqn: Any) -> list[Places]:
        gone: set[int] = set()
        for name in parameters:
            named = eqn.params[name]
            gone |= {int(k) for k in (named if isinstance(named, Sequence) else [named])}
        ranks = {_rank(v) for v in eqn.outvars}
        return [
            {k: k for k in range(_rank(v)) if k not in gone} if {_rank(v)} == ranks else {}
            for v in eqn.invars
        ]

    return rule


def _without(parameter: str) -> Callable[[Any], list[Places]]:
    """Rule of an operation of whose operand these axes are not in the result."""

    def rule(eqn: Any) -> list[Places]:
        gone = {int(k) for k in eqn.params[parameter]}
        kept = [k for k in range(_rank(eqn.invars[0])) if k not in gone]
        return [{k: place for place, k in enumerate(kept)} for _ in eqn.invars]

    return rule


def _leading(rest: Callable[[Any], int]) -> Callable[[Any], list[Places]]:
    """Rule of an operation on the last axes."""
    return lambda eqn: [{k: k for k in range(_rank(v) - rest(eqn))} for v in eqn.invars]


def _transpose(eqn: Any) -> list[Places]:
    return [{int(k): place for place, k in enumerate(eqn.params["permutation"])}]


def _broadcast(eqn: Any) -> list[Places]:
    places = enumerate(eqn.params["broadcast_dimensions"])
    return [{k: int(place) for k, place in places}, *({} for _ in eqn.invars[1:])]


def _stack(eqn: Any) -> list[Places]:
    new = eqn.params["axis"]
    return [{k: k + (k >= new) for k in range(_rank(v))} for v in eqn.invars]


def _pad(eqn: Any) -> list[Places]:
    edges = enumerate(eqn.params["padding_config"])
    return [{k: k for k, edge in edges if not any(edge)}, {}]


def _window(eqn: Any) -> list[Places]:
    p = eqn.params
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    same = {
        k: k
        for k, edge in enumerate(p["padding"])
        if not any(edge) and all(p[name][k] == 1 for name in names)
    }
    return [same if _rank(v) else {} for v in eqn.invars]


def _dot(eqn: Any) -> list[Places]:
    contracted, batched = eqn.params["dimension_numbers"]
    place, maps = len(batched[0]), list[Places]()
    for side in (0, 1):
        places = {int(k): b for b, k in enumerate(batched[side])}
        for k in range(_rank(eqn.invars[side])):
            if k not in places and k not in contracted[side]:
                places[k] = place
                place += 1
        maps.append(places)
    return maps


def _conv(eqn: Any) -> list[Places]:
    numbers = eqn.params["dimension_numbers"]
    plain = eqn.params["batch_group_count"] == 1
    return [{numbers.lhs_spec[0]: numbers.out_spec[0]} if plain else {}, {}]


def _gather(eqn: Any) -> list[Places]:
    numbers = eqn.params["dimension_numbers"]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [k for k in range(_rank(eqn.invars[0])) if k not in dropped]
    batch = [k for k in range(_rank(eqn.outvars[0])) if k not in numbers.offset_dims]
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return [
        dict(zip(kept, numbers.offset_dims, strict=True)) | {a: batch[b] for a, b in pairs},
        dict(enumerate(batch)),
    ]


ELEMENTWISE = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil "
    "clamp complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv "
    "erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log "
    "log1p logistic lt max min mul name ne neg nextafter not or polygamma "
    "population_count pow pvary real reduce_precision regularized_incomplete_beta rem round "
    "rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta slice dynamic_slice "
    "dynamic_update_slice"
)
REDUCTIONS = (
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor"
)

RULES: dict[str, Callable[[Any], list[Places]]] = {
    **dict.fromkeys(ELEMENTWISE.split(), _all_but()),
    **dict.fromkeys(REDUCTIONS.split(), _without("axes")),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _all_but("axis")),
    **dict.fromkeys(("split", "top_k"), _all_but("axis")),
    **dict.fromkeys(("sort", "concatenate"), _all_but("dimension")),
    "rev": _all_but("dimensions"),
    "squeeze": _without("dimensions"),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "stack": _stack,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "fft": _leading(lambda eqn: len(eqn.params["fft_lengths"])),
    **dict.fromkeys(("cholesky", "triangular_solve"), _leading(lambda _: 2)),
}
