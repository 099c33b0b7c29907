"""What one example is, and losses of several outputs: the Fisher is that of the loss."""

import pytest
import torch
from ngd_torch import FNGD, KFAC, SNGD
from torch import nn
from torch.nn import functional

from ngd_core import factors
from ngd_core.testing import assert_close

N, T = 3, 4
MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()


class Mixing(nn.Module):
    """Every position's output depends on all positions."""

    def __init__(self, axis=-1):
        super().__init__()
        self.axis, self.fc, self.head = axis, nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = torch.tanh(self.fc(x))
        return self.head(z + z.mean(1, keepdim=True) ** 2).movedim(-1, self.axis)


class Several(nn.Module):
    """A body, and three outputs of which the last has no loss."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.body = kind, nn.Linear(2, 4)
        self.label, self.value, self.spare = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        z = torch.tanh(self.body(x))
        parts = {"label": self.label(z), "value": self.value(z), "spare": self.spare(z)}
        return parts if self.kind == "dict" else tuple(parts.values())


def made(build, *shape):
    torch.manual_seed(0)
    return build().double(), torch.randn(N, *shape, dtype=torch.float64)


def fishers(model, x, **options):
    """Dense Fisher of each layer by the records, and what the model returned."""
    found = {}
    optimizer = KFAC(model, 0.1, fisher="exact", **options)
    optimizer.curvature.deliver = found.update
    outputs = model(x)
    optimizer.close()
    dense = {}
    for layer in optimizer.curvature.layers:
        if layer.spec.name in found:
            u = factors.per_example_gradients(layer.spec, found[layer.spec.name][0])
            u = u.reshape(-1, u.shape[-2] * u.shape[-1])
            dense[layer.spec.name] = u.T @ u / N
    return dense, outputs


def gauss_newton(loss_hessian, outputs, layer):
    """J^T H J of all examples together, J by autograd, one output number at a time."""
    flat = outputs.reshape(-1)
    rows = []
    for value in flat:
        grads = torch.autograd.grad(value, (layer.weight, layer.bias), retain_graph=True)
        rows.append(torch.cat([grads[0], grads[1][:, None]], dim=1).reshape(-1))
    J = torch.stack(rows)
    return J.T @ loss_hessian(flat) @ J


def hessian_of(loss, outputs):
    """Hessian of the loss that is trained with, at the outputs, by autograd."""
    return lambda flat: torch.autograd.functional.hessian(
        lambda f: loss(f.reshape(outputs.shape)), flat.detach()
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("examples", ["rows", "positions"])
def test_the_curvature_is_that_of_the_loss_as_it_is_averaged(examples, axis, masked):
    """Exact Fisher = Gauss-Newton matrix of cross entropy over positions, with ignored ones."""
    model, x = made(lambda: Mixing(axis), T, 2)
    mask = MASK if masked else torch.ones(N, T, dtype=torch.bool)
    options = {"mask": lambda *_: MASK} if masked else {}
    got, outputs = fishers(model, x, class_axis=axis, examples=examples, **options)
    labels = torch.where(mask, torch.zeros(N, T).long(), -100)

    def loss(f):
        if examples == "positions":
            return functional.cross_entropy(f.movedim(axis, 1), labels)
        return functional.cross_entropy(f.movedim(axis, 1), labels, reduction="sum") / N

    for name in ("fc", "head"):
        want = gauss_newton(hessian_of(loss, outputs), outputs, getattr(model, name))
        assert_close(got[name], want, size=100)


def test_the_direction_of_a_mean_over_tokens():
    """Where K-FAC is exact: (F + damping I)^-1 grad, both of the mean over all tokens."""
    model, x = made(lambda: nn.Sequential(nn.Linear(2, 3)), T, 2)
    optimizer = KFAC(
        model,
        1.0,
        fisher="exact",
        likelihood="gaussian",
        class_axis=-1,
        examples="positions",
        damping=0.1,
        damping_split="exact",
        momentum=0.0,
        kl_clip=None,
    )
    before = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1).detach().reshape(-1)
    outputs = model(x)
    loss = 0.5 * (outputs - 1).square().sum(-1).mean()
    loss.backward()
    grad = torch.cat([model[0].weight.grad, model[0].bias.grad[:, None]], dim=1).reshape(-1)
    outputs = model.eval()(x)
    F = gauss_newton(lambda _: torch.eye(N * T * 3).double() / (N * T), outputs, model[0])
    optimizer.step()
    after = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1).detach().reshape(-1)
    want = torch.linalg.solve(F + 0.1 * torch.eye(len(F)).double(), grad)
    assert_close(before - after, want, size=100, kappa=100)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_token_gradients_of_the_training_loss(reduction, masked):
    """Empirical factor of a layer that does not mix positions: (1/tokens) sum of g g^T."""
    model, x = made(lambda: nn.Sequential(nn.Linear(2, 3)), T, 2)
    mask = MASK if masked else torch.ones(N, T, dtype=torch.bool)
    optimizer = KFAC(
        model,
        0.1,
        fisher="empirical",
        class_axis=-1,
        examples="positions",
        loss_reduction=reduction,
        loss_scale=lambda: 8.0,
        **({"mask": lambda *_: MASK} if masked else {}),
    )
    outputs = model(x)
    labels = torch.where(mask, torch.arange(N * T).reshape(N, T) % 3, -100)
    loss = functional.cross_entropy(outputs.movedim(-1, 1), labels, reduction=reduction)
    (8 * loss).backward()
    g = (torch.softmax(outputs.detach(), -1) - functional.one_hot(labels.clamp(0), 3))[mask]
    state = next(iter(optimizer.curvature.state.layers.values()))
    assert_close(state.g, g.T @ g / len(g), size=100)
    assert float(state.weight) == N


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_several_outputs(kind):
    """The Fisher of the sum of the losses, each with its weight, for every layer."""
    model, x = made(lambda: Several(kind), 2)
    likelihood = {"label": "categorical", "value": ("gaussian", 0.3), "spare": None}
    if kind == "tuple":
        likelihood = list(likelihood.values())
    got, outputs = fishers(model, x, likelihood=likelihood)
    label, value = (outputs[key] for key in (("label", "value") if kind == "dict" else (0, 1)))
    labels = torch.zeros(N).long()

    def square(f):
        return 0.3 * 0.5 * f.square().sum() / N

    for name in ("body", "label", "value"):
        layer, want = getattr(model, name), 0
        if name != "value":
            entropy = hessian_of(lambda f: functional.cross_entropy(f, labels), label)
            want = want + gauss_newton(entropy, label, layer)
        if name != "label":
            want = want + gauss_newton(hessian_of(square, value), value, layer)
        assert_close(got[name], want, size=100)
    assert "spare" not in got


def test_sampled_vectors_of_several_outputs_do_not_mix_on_average():
    model, x = made(lambda: Several("dict"), 2)
    likelihood = {"label": "categorical", "value": ("gaussian", 0.3)}
    optimizer = KFAC(model, 0.1, likelihood=likelihood, factor_every=1, decay=1.0)
    exact = KFAC(model, 0.1, fisher="exact", likelihood=likelihood)
    for _ in range(150):
        model(x)
    for name in ("body", "label", "value"):
        spec = optimizer.curvature.by_name[name].spec
        got, want = (o.curvature.state.layers[spec].g for o in (optimizer, exact))
        assert torch.linalg.norm(got - want) < 0.2 * torch.linalg.norm(want)


def test_sngd_and_fngd_need_not_be_told():
    for make in (lambda m: SNGD(m, 0.1), lambda m: FNGD(m, 0.1, batch_size=N)):
        model, x = made(Mixing, T, 2)
        optimizer = make(model)
        model(x).square().mean().backward()
        optimizer.step()
        assert all(stats["code"] == 0 for stats in optimizer.stats.values())


def test_outputs_of_one_axis():
    """A logit or a value an example."""
    model, x = made(lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), 2)
    optimizer = KFAC(model, 0.1, fisher="exact", likelihood="bernoulli")
    p = torch.sigmoid(model(x).detach())
    state = next(iter(optimizer.curvature.state.layers.values()))
    assert_close(state.g, (p * (1 - p)).mean().reshape(1, 1), size=10)


DICT = {"label": "categorical", "value": "gaussian", "spare": None}


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (Mixing, {}, ["(3, 4, 3)", "which axis holds the classes", "class_axis=-1"]),
        (Mixing, {"class_axis": -1}, ["(3, 4, 3)", "what one example is", "'positions'", "'rows'"]),
        (Mixing, {"likelihood": "gaussian"}, ["(3, 4, 3)", "what one example is"]),
        (
            Mixing,
            {"class_axis": -1, "examples": "rows", "mask": lambda x: x[:, 0] > 0},
            ["The mask has shape (3, 2)", "(3, 4)"],
        ),
        (lambda: Several("dict"), {"likelihood": {"logits": "categorical"}}, ["dict", "'logits'"]),
        (lambda: Several("tuple"), {"likelihood": DICT}, ["tuple", "'label'"]),
        (lambda: Several("tuple"), {"likelihood": ["gaussian"]}, ["tuple", "1 outputs"]),
    ],
)
def test_what_has_to_be_said(build, options, words):
    model, x = made(build, *((T, 2) if build is Mixing else (2,)))
    with KFAC(model, 0.1, **options), pytest.raises(ValueError, match=r"expected|say") as raised:
        model(x)
    for word in words:
        assert word in str(raised.value)


def test_a_scalar_output_has_no_examples():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            logits = self.fc(x)
            return {"loss": logits.square().mean(), "logits": logits}

    model, x = made(Loss, 2)
    with KFAC(model, 0.1), pytest.raises(ValueError, match=r"a scalar.*likelihood=\{'logits'"):
        model(x)
    optimizer = KFAC(model, 0.1, likelihood={"logits": "categorical"})
    model(x)["loss"].backward()
    optimizer.step()
    assert {stats["code"] for stats in optimizer.stats.values()} == {0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": "tokens"}, ["examples is 'tokens'", "'positions'"]),
        ({"likelihood": {"a": None}}, ["at least one output"]),
        ({"likelihood": {"a": ("gaussian", -1.0)}}, ["weight -1.0", "> 0"]),
        ({"likelihood": 3}, ["likelihood is 3", "mapping or sequence"]),
        ({"factor_dtype": "bfloat16"}, ["factor_dtype is 'bfloat16'", "'float64'"]),
        ({"chunk_bytes": 0}, ["chunk_bytes is 0"]),
    ],
)
def test_a_mistake_gets_one_sentence(options, words):
    with pytest.raises(ValueError, match="expected") as raised:
        KFAC(nn.Linear(2, 3), 0.1, **options)
    for word in words:
        assert word in str(raised.value)


def test_fngd_has_no_gradients_of_single_positions():
    with pytest.raises(ValueError, match="FNGD weights rows"):
        FNGD(nn.Linear(2, 3), 0.1, batch_size=N, examples="positions")
