"""What the extra backward pass keeps, hands on and leaves alone."""

import pytest
import torch
from backends.torch_cases import flat
from ngd_torch import EKFAC, KFAC, SNGD, NaturalGradient, ProjectiveKFAC
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core import factors
from ngd_core.testing import assert_close

N = 12
KINDS = {"kfac": KFAC, "ekfac": EKFAC, "sngd": SNGD, "projective": ProjectiveKFAC}


class Twice(nn.Module):
    """A layer used twice, behind two branches of convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.left, self.right = nn.ConvTranspose2d(2, 2, 2), nn.Conv2d(2, 2, 2)
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        both = self.left(x)[:, :, :2, :2] + self.right(x)[:, :, :2, :2]
        z = torch.tanh(self.fc(both.flatten(1)))
        return self.head(torch.tanh(self.fc(z)))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular")
        self.norm, self.head = nn.GroupNorm(1, 2), nn.Linear(4, 3)

    def forward(self, x):
        z = self.norm(self.conv(x)).flatten(2).unfold(2, 4, 4).mean(1)
        return self.head(torch.tanh(z)).mean(1)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.norm(self.table(tokens)))).mean(1)


MODELS = {
    "twice": (Twice, lambda: torch.randn(N, 2, 4, 3)),
    "volume": (Volume, lambda: torch.randn(N, 1, 3, 2, 2)),
    "language": (Language, lambda: torch.randint(0, 5, (N, 6))),
}


def made(name):
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    x = inputs()
    return build().double(), x.double() if x.is_floating_point() else x, torch.arange(N) % 3


def trained(model, optimizer, x, y, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def peak(run):
    """Most bytes that are allocated at once while it runs, above those from before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


class Branches(nn.Module):
    """Layers side by side."""

    def __init__(self, number, width):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(width, width) for _ in range(number)])

    def forward(self, x):
        return sum(torch.tanh(part(x)) for part in self.parts)


def peak_of_the_extra_pass(depth, fisher, *, shape="chain", **options):
    torch.manual_seed(0)
    width, rows = 16, 512
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    body = nn.Sequential(*parts) if shape == "chain" else Branches(depth, width)
    model = nn.Sequential(body, nn.Linear(width, 3))
    optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1, **options)
    capture, most, x = optimizer.curvature.capture, [], torch.randn(rows, width)
    end = capture.end

    def watched(*args):
        most.append(peak(lambda: end(*args)))

    capture.end = watched
    model(x)
    model(x)
    return most[1] / (4 * width * rows)  # in gradients of a layer


@pytest.mark.parametrize(
    ("shape", "fisher"), [("chain", "mc"), ("chain", "exact"), ("branches", "mc")]
)
def test_gradients_of_no_other_layer_are_kept(shape, fisher):
    """The peak of a pass does not grow with the layers, as it would if gradients waited."""
    few, many = (
        peak_of_the_extra_pass(depth, fisher, shape=shape, chunk_bytes=2**17) for depth in (3, 12)
    )
    assert many < few + 0.5
    assert many < 8


def test_vectors_wait_for_each_other_where_there_is_room():
    """With room for all layers' gradients of three vectors, inputs are read once."""
    few, many = (peak_of_the_extra_pass(depth, "exact") for depth in (3, 12))
    assert many > few + 9 * 2 - 0.5


@pytest.mark.parametrize(("size", "parts"), [(2, [2] * 6), (5, [5, 5, 2])])
def test_a_record_is_no_larger_than_asked_for(size, parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3)).double()
    bound = 8 * size * 16 * (19 + 3)  # so many examples of the convolution
    optimizer = KFAC(model, 0.1, chunk_bytes=bound)
    seen = []

    def keep(found, share=1.0):
        seen.extend((name, len(use.a)) for name, uses in found.items() for use in uses)

    optimizer.curvature.deliver = keep
    model(torch.randn(N, 2, 6, 6, dtype=torch.float64))
    assert [n for name, n in seen if name == "0"] == parts
    assert [n for name, n in seen if name == "2"] == [12]


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_some_examples_and_one_vector_at_a_time(kind, model, fisher):
    """Parameters and averages after three steps, in one piece and in the smallest."""
    if kind == "sngd" and fisher == "exact":
        fisher = "empirical"
    found = []
    for size in (2**28, 1):
        net, x, y = made(model)
        optimizer = KINDS[kind](
            net,
            0.1,
            damping=0.1,
            factor_every=1,
            inverse_every=1,
            chunk_bytes=size,
            **({} if kind == "sngd" else {"fisher": fisher}),
        )
        trained(net, optimizer, x, y)
        weights = [float(layer.weight) for layer in optimizer.curvature.state.layers.values()]
        found.append((flat(net), weights))
    assert_close(found[1][0].numpy(), found[0][0].numpy(), size=100, kappa=100)
    assert_close(found[1][1], found[0][1])
    assert_close(found[0][1], [N * (1 + 0.95 + 0.95**2)] * len(found[0][1]))


def test_a_part_of_the_vectors_weighs_a_part_of_the_examples():
    """Batches of different numbers of vectors: what one costs in passes is not its weight."""
    state = []
    for size in (2**28, 1):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        optimizer = KFAC(
            model,
            0.0,
            fisher="exact",
            likelihood="gaussian",
            examples="rows",
            factor_every=1,
            chunk_bytes=size,
        )
        for positions in (1, 3, 2):
            x = torch.randn(N, positions, 4, dtype=torch.float64)
            model(x).square().sum().backward()
            optimizer.step()
        state.append(next(iter(optimizer.curvature.state.layers.values())))
    for name in ("a", "g", "weight"):
        assert_close(getattr(state[1], name), getattr(state[0], name), size=100)


@pytest.mark.parametrize("first", ["mc", "empirical"])
def test_sampled_gradients_are_not_taken_for_those_of_the_loss(first):
    """Two optimizers on one model: each has the records that it has alone."""
    states = []
    for kinds in ((first, "empirical" if first == "mc" else "mc"), ("empirical",)):
        model, x, y = made("twice")
        optimizers = {kind: KFAC(model, 0.1, fisher=kind) for kind in kinds}
        functional.cross_entropy(model(x), y).backward()
        states.append(optimizers["empirical"].curvature.state)
    for spec, layer in states[1].layers.items():
        assert_close(states[0].layers[spec].g, layer.g)
        assert float(states[0].layers[spec].weight) == N


def test_the_users_own_backward_passes_are_not_taken_for_the_extra_one():
    """A model that differentiates inside its forward pass, and the backward pass afterwards."""

    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            x = x.requires_grad_()
            z = torch.tanh(self.fc(x))
            force = torch.autograd.grad(z.sum(), x, create_graph=True)[0]
            return self.head(z) + 0 * force.sum()

    torch.manual_seed(0)
    model, x = Force().double(), torch.randn(N, 4, dtype=torch.float64)
    plain = nn.Sequential(model.fc, nn.Tanh(), model.head)
    with KFAC(plain, 0.1, fisher="exact") as other:
        plain(x)
        want = list(other.curvature.state.layers.values())
    optimizer = KFAC(model, 0.1, fisher="exact")
    model(x).sum().backward(retain_graph=True)
    for got, layer in zip(optimizer.curvature.state.layers.values(), want, strict=True):
        assert_close(got.g, layer.g, size=100)
        assert float(got.weight) == N


def test_uses_without_a_way_to_the_output_do_not_hold_up_the_others():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.spare = self.fc(self.idle(x))
            return self.fc(x)

    torch.manual_seed(0)
    model, x = Spare().double(), torch.randn(N, 4, dtype=torch.float64)
    optimizer = KFAC(model, 0.1, fisher="exact")
    p = torch.softmax(model(x).detach(), dim=-1)
    fc, idle = optimizer.curvature.state.layers.values()
    want = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    assert_close(fc.g, want, size=100)
    assert [float(fc.weight), float(idle.weight)] == [N, 0]


def test_nothing_is_left_on_the_graph_after_a_sampled_pass():
    model, x, y = made("twice")
    optimizer = KFAC(model, 0.1)
    seen = []
    model.head.register_forward_hook(lambda *args: seen.append(args[2]))
    out = model(x)
    assert not seen[0]._backward_hooks
    functional.cross_entropy(out, y).backward()
    assert {float(layer.weight) for layer in optimizer.curvature.state.layers.values()} == {N}


def test_a_pass_that_fails_leaves_the_next_one_right():
    """An error in the forward pass, and one in the extra pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    optimizer = NaturalGradient(model, ngd_core.KFAC(), 0.1, fisher="empirical")
    other = KFAC(model, 0.1)
    broken = model[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    broken.remove()
    deliver = other.curvature.deliver
    other.curvature.deliver = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model(x)
    other.curvature.deliver = deliver
    functional.cross_entropy(model(x), torch.arange(N) % 3).backward()
    for curvature in (optimizer.curvature, other.curvature):
        assert {float(layer.weight) for layer in curvature.state.layers.values()} == {N}


def test_rows_that_are_no_examples_are_refused():
    """Positions without the axis of examples: here five, where there are twelve examples."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(x + self.places(torch.arange(5)))).mean(1)

    model = Positions()
    message = r"'places' saw 5 rows .* has 12 examples"
    with KFAC(model, 0.1), pytest.raises(ValueError, match=message):
        model(torch.randn(N, 5, 4))


def test_per_example_gradients_of_a_chunk_are_those_of_the_batch():
    model, x, _ = made("twice")
    whole, parts = [], []
    for size, seen in ((2**28, whole), (1, parts)):
        optimizer = KFAC(model, 0.1, chunk_bytes=size)

        def keep(found, share=1.0, seen=seen):
            seen += [use for uses in found.values() for use in uses if "head" in found]

        optimizer.curvature.deliver = keep
        model(x)
        spec = optimizer.curvature.by_name["head"].spec
        optimizer.close()
    got = torch.cat([factors.per_example_gradients(spec, use) for use in parts], dim=1)
    assert len(parts) == N
    assert_close(got, factors.per_example_gradients(spec, whole[0]))
