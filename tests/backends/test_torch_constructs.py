"""Constructs that other libraries crash on, skip, or get silently wrong: right here, or said.

The rows are those of a probe of eight libraries; what is right is held to the oracle of
`test_torch_capture.py`, this file holds that nothing crashes and that nothing is left unsaid.
"""

import copy

import pytest
import torch
from ngd_torch import KFAC, SNGD
from torch import nn
from torch.nn import functional

from ngd_core.testing import assert_close, assert_far

N = 3
LABELS = torch.arange(N)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Turned(nn.Module):
    """Classes on an axis of one's choice, 1 or the last."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.fc = axis, nn.Linear(4, 3)

    def forward(self, x):
        z = self.fc(x)
        return z.movedim(-1, 1) if self.axis == 1 else z


class Dictionary(nn.Module):
    """Outputs in a dict, as language models give them."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return {"loss": None, "logits": self.fc(x)}


def sequence():
    return torch.randn(N, 5, 4)


def flat():
    return torch.randn(N, 4)


def chain():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def headed(body, features):
    return nn.Sequential(body, nn.Flatten(), nn.Linear(features, 3))


def normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3))


def parts(prefix, names, why):
    return {f"{prefix}.{name}": f"no rule for {why}" for name in names}


ROWS = {
    "attention": (Attention, sequence, {}),
    "LSTM": (lambda: Recurrent(nn.LSTM), sequence, {}),
    "GRU": (lambda: Recurrent(nn.GRU), sequence, {}),
    "transformer layer": (
        lambda: headed(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 20),
        sequence,
        {},
    ),
    "computed weight": (
        normed,
        flat,
        {"0.bias": "its weight is no parameter"}
        | parts("0.parametrizations.weight", ("original0", "original1"), "ParametrizationList"),
    ),
    "outputs in a dict": (Dictionary, flat, {}),
}


def taken(model, optimizer, x, steps=2):
    for _ in range(steps):
        outputs = model(x)
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
        optimizer.zero_grad()
        functional.cross_entropy(outputs, LABELS[: len(x)]).backward()
        optimizer.step()


@pytest.mark.parametrize("row", ROWS)
def test_what_has_no_curvature_is_said_and_follows_its_gradient(row):
    torch.manual_seed(0)
    build, inputs, uncovered = ROWS[row]
    model = build()
    optimizer = KFAC(model, 0.1, momentum=0.0)
    assert {k.removeprefix("0."): v for k, v in optimizer.report().uncovered.items()} == {
        k.removeprefix("0."): v for k, v in uncovered.items()
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken(model, optimizer, inputs(), steps=1)
    for name, p in model.named_parameters():
        plain = before[name] - 0.1 * p.grad
        if name in uncovered:
            assert_close(p.detach(), plain, dtype="float32")
        else:
            assert torch.isfinite(p).all()
    assert all(stats["code"] == 0 for stats in optimizer.stats.values())


def test_every_other_parameter_is_preconditioned():
    torch.manual_seed(0)
    model = ROWS["transformer layer"][0]()
    optimizer = KFAC(model, 0.1, momentum=0.0, damping=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken(model, optimizer, sequence(), steps=1)
    for name, p in model.named_parameters():
        if name not in optimizer.report().uncovered:
            assert_far(p.detach() - before[name], -0.1 * p.grad, least=0.01)


# torch's own compiler looks at .grad where a graph goes on behind a hook
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("when", ["before", "after", "as the model"])
def test_a_compiled_model_takes_the_steps_of_the_plain_one(when):
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain, x = chain(), flat()
    model = copy.deepcopy(plain)
    if when == "before":
        compiled = torch.compile(model, backend="eager")
        optimizer = KFAC(model, 0.1, fisher="exact")
    else:
        optimizer = None if when == "as the model" else KFAC(model, 0.1, fisher="exact")
        compiled = torch.compile(model, backend="eager")
        optimizer = optimizer or KFAC(compiled, 0.1, fisher="exact")
    taken(compiled, optimizer, x)
    taken(plain, KFAC(plain, 0.1, fisher="exact"), x)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_autocast(fisher):
    torch.manual_seed(0)
    model, x = chain(), flat()
    optimizer = KFAC(model, 0.1, fisher=fisher)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        optimizer.zero_grad()
        functional.cross_entropy(outputs.float(), LABELS).backward()
        optimizer.step()
    assert {stats["code"] for stats in optimizer.stats.values()} == {0}
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_scaled_loss(fisher):
    """With a gradient scaler the same steps as without; a step that overflows is left out."""
    torch.manual_seed(0)
    plain, x = chain(), flat()
    model = copy.deepcopy(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1, loss_scale=scaler.get_scale)
    for k in range(3):
        loss = functional.cross_entropy(model(x), LABELS)
        optimizer.zero_grad()
        scaler.scale(loss * float("inf") if k == 2 else loss).backward()
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(model[0].weight, before)
    taken(plain, KFAC(plain, 0.1, fisher=fisher, factor_every=1), x)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)


def test_channels_last_is_the_same():
    torch.manual_seed(0)
    plain = headed(nn.Conv2d(2, 3, 3, padding=1), 48)
    model, x = copy.deepcopy(plain).to(memory_format=torch.channels_last), torch.randn(N, 2, 4, 4)
    taken(model, KFAC(model, 0.1, fisher="exact"), x.to(memory_format=torch.channels_last))
    taken(plain, KFAC(plain, 0.1, fisher="exact"), x)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)


def test_other_shapes_from_step_to_step():
    torch.manual_seed(0)
    model = chain()
    optimizer = KFAC(model, 0.1, factor_every=1)
    for n in (3, 1, 2):
        taken(model, optimizer, torch.randn(n, 4), steps=1)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("axis", "shape"), [(1, (N, 3, 4)), (-1, (N, 4, 3))])
def test_the_axis_of_the_classes_is_said(axis, shape):
    """Positions of an output, by torch's convention and the other, give the same exact Fisher."""
    torch.manual_seed(0)
    model, x = Turned(axis), torch.randn(N, 4, 4)
    assert model(x).shape == shape
    with (
        KFAC(model, 0.1, fisher="exact"),
        pytest.raises(ValueError, match="say which axis holds the classes"),
    ):
        model(x)
    optimizer = KFAC(model, 0.1, fisher="exact", class_axis=axis, examples="rows")
    p = torch.softmax(model(x).detach().movedim(axis, -1), dim=-1)
    want = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]).sum(1).mean(0)
    spec = optimizer.curvature.layers[0].spec
    got = optimizer.curvature.state.layers[spec].g
    assert_close(got, want, dtype="float32", size=12)


@pytest.mark.parametrize(("axis", "shape"), [(1, (N, 3, 4)), (-1, (N, 4, 3))])
def test_labels_are_sampled_along_the_axis_of_the_classes(axis, shape):
    """The mean of many sampled Fishers is the exact one, at every position."""
    torch.manual_seed(0)
    model, x = Turned(axis), torch.randn(N, 4, 4)
    assert model(x).shape == shape
    optimizer = KFAC(model, 0.1, class_axis=axis, examples="rows", factor_every=1, decay=1.0)
    exact = KFAC(model, 0.1, fisher="exact", class_axis=axis, examples="rows")
    for _ in range(300):
        model(x)
    got, want = (o.curvature.state.layers[o.curvature.layers[0].spec].g for o in (optimizer, exact))
    assert torch.linalg.norm(got - want) < 0.1 * torch.linalg.norm(want)


def test_a_layer_that_is_read_but_never_called_is_warned_of():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(functional.linear(x, self.fc.weight, self.fc.bias))

    torch.manual_seed(0)
    model = Read()
    optimizer = KFAC(model, 0.1)
    with pytest.warns(UserWarning, match=r"came through 'fc', so there they follow"):
        taken(model, optimizer, flat(), steps=1)
    taken(model, optimizer, flat(), steps=1)  # once is enough


def test_a_model_that_is_not_called_as_a_whole_is_warned_of():
    torch.manual_seed(0)
    model = chain()
    optimizer = KFAC(model, 0.1)
    functional.cross_entropy(model[2](torch.relu(model[0](flat()))), LABELS).backward()
    with pytest.warns(UserWarning, match="call the model as a whole"):
        optimizer.step()


def test_kinds_that_a_method_does_not_take():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    uncovered = SNGD(model, 0.1).report().uncovered
    assert uncovered["1.weight"] == "the method has nothing for the kind 'scale'"
