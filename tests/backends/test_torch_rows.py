"""K-FAC from the rows of a backward pass: steps as ever, the usual way where anything differs."""

import gc
import weakref

import ngd_torch
import pytest
import torch
from backends.torch_cases import flat
from torch import distributed, nn
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore

import ngd_core
from ngd_core.testing import assert_close

N = 4


class Net(nn.Module):
    """Two wide layers, one of them over positions, and layers that go the usual way."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 20)
        self.plain = nn.Linear(20, 22, bias=False)
        self.twice = nn.Linear(22, 22)
        self.norm = nn.LayerNorm(22)
        self.head = nn.Linear(22, 3)

    def forward(self, x):
        h = functional.relu(self.wide(x), inplace=True)
        h = torch.tanh(self.plain(h))
        h = self.twice(torch.tanh(self.twice(h)))
        return self.head(self.norm(h).mean(1))


FROM_ROWS = {"wide": 1, "plain": 1, "twice": 0, "norm": 0, "head": 0}


def batch(k, n=N):
    r = torch.Generator().manual_seed(k)
    x = torch.randn(n, 2, 24, generator=r, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=r)


def made(**options):
    torch.manual_seed(0)
    model = Net().double()
    options = {"factor_every": 2, "inverse_every": 3, **options}
    return model, ngd_torch.KFAC(model, 0.1, **options)


def backward(model, optimizer, k, n=N):
    x, y = batch(k, n)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    return x


def used(optimizer):
    return {name: stats["factored"] for name, stats in optimizer.stats.items()}


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_twenty_steps_are_those_of_the_usual_optimizer(fisher):
    trained = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored, fisher=fisher, weight_decay=0.01)
        for k in range(20):
            backward(model, optimizer, k)
            optimizer.step()
            if factored:
                assert used(optimizer) == FROM_ROWS
        trained.append(flat(model).numpy())
    assert_close(*trained, size=1000, kappa=1e4)


def test_gradients_are_left_as_they_are():
    grads = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored)
        backward(model, optimizer, 0)
        optimizer.step()
        backward(model, optimizer, 1)
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        after = [p.grad for p in model.parameters()]
        assert all(map(torch.equal, before, after))
        assert model.wide.weight.grad.is_contiguous()
    model, optimizer = made(factored_gradient=True)
    twin, other = made()
    for net, opt in ((model, optimizer), (twin, other)):
        backward(net, opt, 0)
        grads.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *grads))


def test_gradients_of_gradients_are_there():
    found = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored)
        x, y = batch(0)
        loss = functional.cross_entropy(model(x), y)
        (grad,) = torch.autograd.grad(loss, model.wide.weight, create_graph=True)
        (grad**2).sum().backward()
        found.append(model.plain.weight.grad)
        optimizer.step()
    assert torch.equal(*found)


def test_several_vectors_at_a_time_make_nobodys_gradient():
    found = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored)
        x, y = batch(0)
        outputs = model(x)
        functional.cross_entropy(outputs, y).backward(retain_graph=True)
        vectors = torch.stack([torch.ones_like(outputs), torch.zeros_like(outputs)])
        torch.autograd.grad(outputs, model.wide.weight, vectors, is_grads_batched=True)
        optimizer.step()
        found.append(model.wide.weight.detach())
    assert_close(found[0].numpy(), found[1].numpy(), size=100, kappa=1e3)


def clipped(model, optimizer):
    backward(model, optimizer, 9)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def written_as_it_was(model, optimizer):
    backward(model, optimizer, 9)
    for p in model.parameters():
        p.grad.mul_(1.0)


def clipped_out_of_sight(model, optimizer):
    backward(model, optimizer, 9)
    for p in model.parameters():
        p.grad.data.mul_(1 - 1e-6)


def penalised(model, optimizer):
    optimizer.zero_grad()
    x, y = batch(9)
    penalty = sum((p**2).sum() for p in model.parameters())
    (functional.cross_entropy(model(x), y) + 1e-14 * penalty).backward()


def accumulated(model, optimizer):
    optimizer.zero_grad()
    for k in (8, 9):
        x, y = batch(k)
        functional.cross_entropy(model(x), y).backward()


def not_set_to_none(model, optimizer):
    optimizer.zero_grad(set_to_none=False)
    x, y = batch(9)
    functional.cross_entropy(model(x), y).backward()


def replaced(model, optimizer):
    backward(model, optimizer, 9)
    for p in model.parameters():
        p.grad = p.grad.clone()


def overwritten_input(model, optimizer):
    backward(model, optimizer, 9).zero_()


def hooked(model, optimizer):
    handle = model.wide.weight.register_hook(lambda g: g * 2)
    backward(model, optimizer, 9)
    handle.remove()


CHANGES = {
    clipped: {"wide": 0, "plain": 0},
    written_as_it_was: {"wide": 0, "plain": 0},
    clipped_out_of_sight: {"wide": 0, "plain": 0},
    penalised: {"wide": 0, "plain": 0},
    accumulated: {"wide": 0, "plain": 0},
    not_set_to_none: {"wide": 0, "plain": 0},
    replaced: {"wide": 0, "plain": 0},
    overwritten_input: {"wide": 0, "plain": 1},
    hooked: {"wide": 0, "plain": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_that_is_no_longer_the_product_goes_the_usual_way(change):
    """Known by where it lies and what was written, else by its numbers to half of their digits."""
    trained = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored)
        backward(model, optimizer, 0)
        optimizer.step()
        change(model, optimizer)
        optimizer.step()
        if factored:
            assert used(optimizer) == FROM_ROWS | CHANGES[change]
        trained.append(flat(model).numpy())
    assert_close(*trained, size=1000, kappa=1e4)


def test_a_step_that_was_given_up_leaves_no_rows_to_the_next():
    trained = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored)
        backward(model, optimizer, 0)
        optimizer.step()
        backward(model, optimizer, 1)
        backward(model, optimizer, 2)
        optimizer.step()
        if factored:
            assert used(optimizer) == FROM_ROWS
        trained.append(flat(model).numpy())
    assert_close(*trained, size=1000, kappa=1e4)


def test_a_shared_weight_goes_the_usual_way():
    """One pass through either module alone could have made the gradient, but the layer is both."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(24, 20), "other": nn.Linear(24, 20)}).double()
    model["other"].weight = model["one"].weight
    model["other"].bias = model["one"].bias
    model.forward = lambda x: model["one"](x)
    optimizer = ngd_torch.KFAC(model, 0.1, factored_gradient=True)
    x, y = batch(0)
    functional.cross_entropy(model(x[:, 0]), y).backward()
    optimizer.step()
    assert set(used(optimizer).values()) == {0}


def test_batches_with_more_rows_than_pay_go_the_usual_way():
    model, optimizer = made(factored_gradient=True)
    backward(model, optimizer, 0, n=30)
    optimizer.step()
    assert set(used(optimizer).values()) == {0}


def test_no_rows_outlive_a_step_and_no_optimizer_its_model():
    model, optimizer = made(factored_gradient=True)
    x = backward(model, optimizer, 0)
    kept = [weakref.ref(rows.g) for rows in optimizer.curvature.rows.values()]
    assert kept
    optimizer.step()
    gc.collect()
    assert not optimizer.curvature.rows
    assert all(g() is None for g in kept)
    loss = functional.cross_entropy(model(x), torch.zeros(N, dtype=int))
    gone = weakref.ref(optimizer.curvature)
    del optimizer
    gc.collect()
    assert gone() is None
    loss.backward()
    assert model.wide.weight.grad is not None


def test_a_compiled_model_goes_the_usual_way():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 3))
    model = torch.compile(inner, backend="eager")
    optimizer = ngd_torch.KFAC(model, 0.1, factored_gradient=True, factor_every=10)
    for k in range(3):
        optimizer.zero_grad()
        x, y = batch(k)
        functional.cross_entropy(model(x[:, 0].float()), y).backward()
        optimizer.step()
    assert used(optimizer) == {"_orig_mod.0": 0, "_orig_mod.2": 0}


def test_the_report_counts_the_rows():
    rows = []
    for factored in (True, False):
        model, optimizer = made(factored_gradient=factored, factor_every=10**6)
        backward(model, optimizer, 0)
        optimizer.step()
        rows.append(optimizer.report().layers)
    found, usual = rows
    assert usual["wide"]["step"] - found["wide"]["step"] == 20 * 25 * 45
    of_rows = 8 * 24 * 25 + 9 * (20**2 + 20 * 25)
    more = found["wide"]["row"] - usual["wide"]["row"]
    assert_close(8 * more, of_rows, size=1)
    assert found["twice"] == usual["twice"]


def test_a_method_of_the_core_is_taken_as_well():
    model = nn.Linear(24, 20)
    method = ngd_core.KFAC(factored_gradient=True)
    optimizer = ngd_torch.NaturalGradient(model, method, 0.1)
    x, y = batch(0)
    functional.cross_entropy(model(x[:, 0].float()), y).backward()
    optimizer.step()
    assert used(optimizer) == {"Linear": 1}


def test_the_split_exact_is_refused():
    with pytest.raises(ValueError, match="whose inverse is no product of two"):
        made(factored_gradient=True, damping_split="exact")


def test_several_processes_are_refused():
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ValueError, match="no product of one's rows"):
            made(factored_gradient=True)
    finally:
        distributed.destroy_process_group()
