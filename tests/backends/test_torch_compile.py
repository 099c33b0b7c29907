"""Compiled models: one graph where nothing is recorded, and the steps of the plain model."""

import copy

import pytest
import torch
from ngd_torch import KFAC
from torch import nn
from torch.nn import functional

from ngd_core.testing import assert_close

N = 6
LABELS = torch.arange(N) % 3


class Graphs:
    """A backend that counts the graphs it compiles, and the calls of each with its operations."""

    def __init__(self):
        self.compiled, self.runs = 0, []

    def __call__(self, graph, _):
        self.compiled += 1
        size = sum(node.op.startswith("call") for node in graph.graph.nodes)

        def run(*args):
            self.runs.append(size)
            return graph(*args)

        return run


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(True), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def steps_of(model, optimizer, steps=20):
    """Take steps; what was compiled for each is left to the caller."""
    r = torch.Generator().manual_seed(0)
    for k in range(steps):
        loss = functional.cross_entropy(model(torch.randn(N, 1, 3, 3, generator=r)), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield k


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_a_compiled_model_runs_as_one_graph_where_nothing_is_recorded(fisher):
    torch._dynamo.reset()
    plain = network()
    model, graphs = copy.deepcopy(plain), Graphs()
    compiled = torch.compile(model, backend=graphs)
    options = {"fisher": fisher, "factor_every": 5, "inverse_every": 5}
    optimizer, twin = KFAC(compiled, 0.1, **options), KFAC(plain, 0.1, **options)
    for k in steps_of(compiled, optimizer):
        assert graphs.runs == ([] if k % 5 == 0 else [6]), k
        graphs.runs.clear()
    assert graphs.compiled == 1
    for _ in steps_of(plain, twin):
        pass
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)
    weights = [float(layer.weight) for layer in optimizer.curvature.state.layers.values()]
    assert_close(weights, [N * (1 + 0.95 + 0.95**2 + 0.95**3)] * 3, dtype="float32")


def test_the_users_stance_is_kept_also_if_the_model_fails():
    torch._dynamo.reset()
    graphs, model = Graphs(), network()
    other = torch.compile(lambda x: x + 1, backend=graphs)
    compiled = torch.compile(model, backend="eager")
    optimizer = KFAC(compiled, 0.1, factor_every=1)
    with pytest.raises(RuntimeError):
        compiled(torch.ones(N, 2, 3, 3))
    compiled(torch.ones(N, 1, 3, 3))
    optimizer.close()
    other(torch.ones(3))
    assert graphs.runs == [1]


# torch's own compiler looks at .grad where a graph goes on behind a hook
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("way", ["before", "after", "in place"])
def test_a_model_that_is_compiled_without_the_optimizers_knowledge(way):
    """The hooks are in the graph then, which is cut at them; compiled pieces are bounded."""
    torch._dynamo.reset()
    plain, graphs = network(), Graphs()
    model = copy.deepcopy(plain)
    called = model
    if way == "before":
        called = torch.compile(model, backend=graphs)
    optimizer = KFAC(model, 0.1, factor_every=5)
    if way == "after":
        called = torch.compile(model, backend=graphs)
    if way == "in place":
        model.compile(backend=graphs)
    seen = [graphs.compiled for _ in steps_of(called, optimizer)]
    assert seen[6:] == [seen[6]] * 14
    assert seen[-1] <= 12
    twin = KFAC(plain, 0.1, factor_every=5)
    for _ in steps_of(plain, twin):
        pass
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)


def test_a_compiled_model_with_an_ahead_of_time_backward():
    torch._dynamo.reset()
    plain = network()
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = KFAC(compiled, 0.1, factor_every=2)
    twin = KFAC(plain, 0.1, factor_every=2)
    for _ in zip(steps_of(compiled, optimizer, 4), steps_of(plain, twin, 4), strict=True):
        pass
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)
