"""Staggered refreshes: every layer at its own step of the interval, from steps and order alone."""

import copy

import pytest
import torch
from backends.torch_cases import flat
from ngd_torch import EKFAC, FNGD, KFAC, SNGD, ProjectiveKFAC
from ngd_torch._curvature import staggered
from torch import nn
from torch.nn import functional

from ngd_core import Hyper

MAKERS = {"kfac": KFAC, "ekfac": EKFAC, "sngd": SNGD, "projective": ProjectiveKFAC}
EVERY, STATISTICS = 6, 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)
    )


def optimizer(model, name="kfac", **options):
    intervals = {"factor_every": STATISTICS, "inverse_every": EVERY, "stagger": True}
    return MAKERS[name](model, 0.05, **{**intervals, **options})


def step(model, optimizer, k):
    stream = torch.Generator().manual_seed(k)
    x = torch.randn(8, 5, generator=stream)
    y = torch.randint(0, 3, (8,), generator=stream)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_each_layer_is_refreshed_at_its_own_step(monkeypatch):
    """All at the first step, then each once an interval, from the statistics as they are then."""
    model = network()
    chosen, when = optimizer(model), {}
    curvature, hyper = chosen.curvature, Hyper(damping=chosen.curvature.damping)
    refreshed = curvature.ranks.refreshed

    def noted(state, given):
        for spec in state.layers:
            when.setdefault(spec.name, []).append(curvature.steps)
        return refreshed(state, given)

    monkeypatch.setattr(curvature.ranks, "refreshed", noted)
    for k in range(3 * EVERY):
        step(model, chosen, k)
        whole, _ = curvature.method.refresh(curvature.state, hyper)
        for spec, layer in curvature.state.layers.items():
            if when[spec.name][-1] == k:
                assert torch.equal(layer.inverse.a, whole.layers[spec].inverse.a)
                assert torch.equal(layer.inverse.g, whole.layers[spec].inverse.g)
    turns = dict(zip(("0", "2", "4", "5"), (1, 1, 3, 5), strict=True))
    assert when == {k: [0, *range(turn, 3 * EVERY, EVERY)] for k, turn in turns.items()}


@pytest.mark.parametrize(
    ("layers", "inverse_every", "factor_every"),
    [(1, 100, 10), (3, 100, 10), (20, 100, 10), (250, 100, 10), (7, 5, 1), (3, 1, 1), (4, 10, 3)],
)
def test_turns_are_even_and_seldom_at_statistics(layers, inverse_every, factor_every):
    turns = staggered(layers, inverse_every, factor_every)
    assert len(turns) == layers
    assert all(0 <= turn < inverse_every for turn in turns)
    most = -(-layers // inverse_every)
    assert max(turns.count(turn) for turn in turns) <= 2 * most
    if 1 < factor_every < inverse_every and inverse_every % factor_every == 0:
        assert all(turn % factor_every for turn in turns)


@pytest.mark.parametrize("name", MAKERS)
def test_a_stored_state_goes_on_bit_by_bit(name):
    """Within an interval, with nothing stored but the number of steps."""
    model = network()
    chosen = optimizer(model, name)
    for k in range(EVERY + 2):
        step(model, chosen, k)
    other = copy.deepcopy(model)
    resumed = optimizer(other, name, seed=5)
    resumed.load_state_dict(copy.deepcopy(chosen.state_dict()))
    for k in range(EVERY + 2, 3 * EVERY):
        step(model, chosen, k)
        step(other, resumed, k)
    assert torch.equal(flat(model), flat(other))
    assert set(chosen.state_dict()["curvature"]) == set(
        KFAC(network(), 0.1).state_dict()["curvature"]
    )


def test_an_interval_of_one_step_is_no_other():
    """With a refresh at every step there is nothing to be put off."""
    ends = []
    for stagger in (True, False):
        model = network()
        chosen = optimizer(model, inverse_every=1, stagger=stagger)
        for k in range(4):
            step(model, chosen, k)
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_a_copy_is_staggered_too():
    model = network()
    assert copy.deepcopy(optimizer(model)).curvature.stagger


def test_fngd_has_nothing_to_stagger():
    with pytest.raises(ValueError, match="leave stagger out"):
        FNGD(network(), 0.1, batch_size=8, stagger=True)
