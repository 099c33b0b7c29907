"""The CuPy adapter, on other array libraries: its code names none."""

import ngd_torch
import numpy as np
import pytest
import torch
from harness import BACKENDS, GPU_BACKENDS
from ngd_cupy import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    Epoch,
    NaturalGradient,
    ProjectiveKFAC,
    evaluate,
    fit,
)

import ngd_core
from ngd_core import losses, nn, state
from ngd_core.testing import assert_close

N = 6
NAMES = ("kfac", "ekfac", "sngd", "fngd", "sofim", "projective")
EAGER = [b for b in BACKENDS if b.library != "jax" and b.variant != "compile"]
over_eager = pytest.mark.parametrize(
    "backend", [*(pytest.param(b, id=str(b)) for b in EAGER), GPU_BACKENDS[0]]
)


def network():
    return nn.Sequential(
        nn.Conv2d("conv", 1, 2, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dense("hidden", 8, 4),
        nn.LayerNorm("norm", 4),
        nn.Tanh(),
        nn.Dense("out", 4, 3),
    )


def blocks(model, seed=0):
    r = np.random.default_rng(seed)
    return nn.init(model, {name: r.random(shape) for name, shape in nn.shapes(model).items()})


def data(k=0, n=N):
    r = np.random.default_rng(100 + k)
    return r.standard_normal((n, 1, 3, 3)), r.integers(0, 3, n)


def made(name, model, params, maker=None, **options):
    """Optimizer of the adapter, or of another one of the same option names."""
    if name == "fngd":
        options["batch_size"] = N
    if name == "sofim":
        options["rho"] = 0.3
    elif name != "fngd":
        options = {"factor_every": 2, "inverse_every": 3, **options}
    own = {"kfac": KFAC, "ekfac": EKFAC, "sngd": SNGD, "fngd": FNGD, "sofim": SOFIM}
    maker = maker or {**own, "projective": ProjectiveKFAC}[name]
    arguments = (model,) if params is None else (model, params)
    return maker(*arguments, 0.1, **options)


@pytest.mark.parametrize("name", NAMES)
@over_eager
def test_every_library_takes_the_steps_of_numpy(backend, name):
    """Six steps, an epoch's end after the third; results stay where the parameters are."""
    model = network()
    initial = blocks(model)
    optimizers = {
        "numpy": made(name, model, initial),
        "other": made(name, model, backend.tree(initial)),
    }
    kept = {name: np.array(p) for name, p in initial.items()}
    for k in range(6):
        # enough examples for factors of full rank: elsewhere eigenvectors are anyone's
        x, y = data(k, N if name == "fngd" else 4 * N)
        want = optimizers["numpy"].step(x, y)
        got = optimizers["other"].step(backend.array(x), backend.array(y))
        assert_close(
            backend.numpy(got),
            want,
            dtype="float64" if is_double(got) else "float32",
            size=100,
            kappa=1e4,
        )
        if k == 2:
            for optimizer in optimizers.values():
                optimizer.epoch_end()
    for block, p in optimizers["numpy"].params.items():
        other = optimizers["other"].params[block]
        dtype = "float64" if is_double(other) else "float32"
        assert_close(backend.numpy(other), p, dtype=dtype, size=100, kappa=1e4)
        assert np.array_equal(initial[block], kept[block])
        assert not np.array_equal(p, kept[block])


def is_double(x):
    return str(x.dtype).endswith("float64")


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_torch_adapter(name):
    """The same options, weights and batches: the same parameters, over an epoch's end."""
    twin = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    twin = twin.double()
    model = nn.Sequential(nn.Dense("a", 5, 4), nn.Tanh(), nn.Dense("b", 4, 3))

    def joined(linear):
        return torch.column_stack([linear.weight, linear.bias]).detach().numpy()

    params = {"a": joined(twin[0]), "b": joined(twin[2])}
    other = {"kfac": "KFAC", "ekfac": "EKFAC", "sngd": "SNGD", "fngd": "FNGD", "sofim": "SOFIM"}
    maker = getattr(ngd_torch, {**other, "projective": "ProjectiveKFAC"}[name])
    options = {"weight_decay": 0.01}
    if name not in ("sofim", "sngd", "fngd"):
        options["fisher"] = "exact"
    mine = made(name, model, params, **options)
    theirs = made(name, twin, None, maker, **options)
    r = np.random.default_rng(0)
    for k in range(7):
        x, y = r.standard_normal((N, 5)), r.integers(0, 3, N)
        loss = mine.step(x, y)
        theirs.zero_grad()
        value = torch.nn.functional.cross_entropy(twin(torch.asarray(x)), torch.asarray(y))
        value.backward()
        theirs.step()
        assert_close(loss, value.item(), size=100, kappa=1e4)
        if k == 3 and name == "fngd":
            mine.epoch_end()
            theirs.epoch_end()
    for linear, block in ((twin[0], "a"), (twin[2], "b")):
        assert_close(mine.params[block], joined(linear), size=100, kappa=1e4)


def test_the_exact_step_is_that_of_the_oracle():
    """One dense layer, exact damping: (F + damping)^-1 g by the reference, the clip included."""
    model = nn.Sequential(nn.Dense("fc", 4, 3))
    params, r = blocks(model), np.random.default_rng(0)
    x, y = r.standard_normal((1, 4)), r.integers(0, 3, 1)
    optimizer = KFAC(
        model, params, 0.5, damping=0.1, damping_split="exact", fisher="exact", kl_clip=None
    )
    outputs = nn.predict(model, params, x)
    border = np.column_stack([x, np.ones(1)])
    rows = losses.fisher_vectors("exact", losses.categorical, outputs)[:, 0]
    jacobian = np.stack([np.outer(v, border[0]).reshape(-1) for v in rows])
    g = np.outer(losses.categorical.gradient(outputs, y)[0], border[0]).reshape(-1)
    want = np.linalg.solve(jacobian.T @ jacobian + 0.1 * np.eye(15), g)
    optimizer.step(x, y)
    got = (params["fc"] - optimizer.params["fc"]).reshape(-1) / 0.5
    assert_close(got, want, size=15, kappa=100)


def test_labels_are_drawn_by_the_seed_and_the_step_alone():
    model = network()
    found = []
    for seed in (0, 0, 1):
        np.random.seed(len(found))  # noqa: NPY002
        optimizer = made("kfac", model, blocks(model), seed=seed)
        for k in range(3):
            optimizer.step(*data(k))
        found.append(optimizer.params["out"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_every_step_draws_labels_of_its_own():
    """On one batch, at parameters that stay, with statistics that forget."""
    model, found = network(), []
    optimizer = made("kfac", model, blocks(model), factor_every=1, decay=0.0)
    optimizer.lr = 0.0
    for _ in range(2):
        optimizer.step(*data())
        found.append(state.flatten(optimizer.curvature))
    assert np.array_equal(found[0]["layers/out/a"], found[1]["layers/out/a"])
    assert not np.allclose(found[0]["layers/out/g"], found[1]["layers/out/g"])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_other_likelihoods_train(likelihood, fisher):
    model = nn.Sequential(nn.Dense("a", 3, 8), nn.Tanh(), nn.Dense("b", 8, 2))
    optimizer = KFAC(
        model,
        blocks(model),
        0.1,
        likelihood=likelihood,
        fisher=fisher,
        factor_every=1,
        inverse_every=1,
        damping=0.1,
        kl_clip=None,
    )
    r = np.random.default_rng(0)
    x = r.standard_normal((32, 3))
    y = (x[:, :2] > 0).astype(np.float64)
    values = [float(optimizer.step(x, y)) for _ in range(30)]
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_broken_off_goes_on_as_if_it_had_not(tmp_path, name):
    model = network()
    train = data(n=2 * N + 1)
    whole = made(name, model, blocks(model))
    history = fit(whole, train, epochs=4, batch_size=N, progress=False)
    path = tmp_path / "run.safetensors"
    first = made(name, model, blocks(model))
    fit(first, train, epochs=2, batch_size=N, checkpoint=path, progress=False)
    rest = made(name, model, blocks(model, 1))
    again = fit(rest, train, epochs=4, batch_size=N, checkpoint=path, resume=True, progress=False)
    assert again == history[2:]
    for block, p in whole.params.items():
        assert np.array_equal(p, rest.params[block])
    assert rest.steps == whole.steps == 12


@over_eager
@pytest.mark.parametrize("name", NAMES)
def test_every_library_trains_evaluates_and_resumes_as_numpy_does(tmp_path, backend, name):
    """`fit` as a whole: order, labels, evaluation, a checkpoint, and what goes on from it."""
    # batches of enough examples for factors of full rank: elsewhere eigenvectors are anyone's
    model, (x, y), size = network(), data(n=8 * N), N if name == "fngd" else 4 * N

    def fitted(library, epochs, **options):
        optimizer = made(name, model, library.tree(blocks(model)))
        examples = library.array(x), library.array(y)
        options |= {"batch_size": size, "validation": examples, "progress": False}
        return optimizer, fit(optimizer, examples, epochs=epochs, **options)

    _, want = fitted(EAGER[0], 2)
    fitted(backend, 1, checkpoint=tmp_path / "run")
    again, got = fitted(backend, 2, checkpoint=tmp_path / "run", resume=True)
    dtype = "float64" if is_double(again.params["out"]) else "float32"
    for mine, theirs in zip(got, want[1:], strict=True):
        assert_close(mine[1:3], theirs[1:3], dtype=dtype, size=100, kappa=1e4)
        assert_close(mine.accuracy, theirs.accuracy, dtype="float32")
    assert backend.numpy(again.params["out"]).shape == (3, 5)


def test_fit_sees_every_example_once_an_epoch_and_evaluates(capsys):
    model = nn.Sequential(nn.Dense("fc", 4, 2))
    seen = []

    class Watched(NaturalGradient):
        def step(self, x, y):
            seen.append(y)
            return super().step(x, y)

    r = np.random.default_rng(0)
    x, y = r.standard_normal((11, 4)), np.arange(11) % 2
    optimizer = Watched(model, blocks(model), ngd_core.KFAC(), 0.0)
    history = fit(optimizer, (x, y), epochs=2, batch_size=4, validation=(x, y))
    assert [len(part) for part in seen] == [4, 4, 3] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(epoch)) == sorted(y)
    assert not np.array_equal(np.concatenate(seen[:3]), np.concatenate(seen[3:]))
    outputs = nn.predict(model, optimizer.params, x)
    loss = np.mean(losses.categorical.value(outputs, y))
    accuracy = np.mean(outputs.argmax(axis=1) == y)
    assert [epoch.epoch for epoch in history] == [1, 2]
    for epoch in history:
        assert_close([epoch.loss, epoch.test_loss], [loss, loss], size=11)
        assert_close(epoch.accuracy, accuracy, dtype="float32")
    out = capsys.readouterr().out
    assert len(out.strip().splitlines()) == 2
    assert f"epoch 1/2  loss {loss:.4g}  validation {loss:.4g}  accuracy {accuracy:.1%}" in out


def test_evaluation_in_chunks_is_that_of_the_whole(monkeypatch):
    model = network()
    optimizer = made("kfac", model, blocks(model))
    x, y = data(n=11)
    whole = evaluate(optimizer, x, y)
    monkeypatch.setattr("ngd_cupy._fit.CHUNK", 4)
    assert_close(evaluate(optimizer, x, y), whole, size=11)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_is_not_finite_moves_nothing(name):
    model = network()
    optimizer = made(name, model, blocks(model), **({} if name == "sofim" else {"momentum": 0.0}))
    optimizer.step(*data())
    before = {key: np.array(x) for key, x in state.flatten(optimizer._all()).items()}
    x, y = data(1)
    with np.errstate(all="ignore"):
        optimizer.step(np.full_like(x, np.nan), y)
    after = state.flatten(optimizer._all())
    assert all(np.isfinite(after[key]).all() for key in after)
    if name != "sofim":  # its momentum goes on
        for block in optimizer.params:
            assert np.array_equal(after[f"params/{block}"], before[f"params/{block}"])
    optimizer.step(*data(2))
    assert all(np.isfinite(p).all() for p in optimizer.params.values())


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda m, p: KFAC(m, p, -1.0), ValueError, ["lr is -1.0", ">= 0"]),
        (lambda m, p: KFAC(m, p, 0.1, fisher="mine"), ValueError, ["'mine'", "'mc'"]),
        (lambda m, p: KFAC(m, p, 0.1, factor_every=0), ValueError, ["factor_every is 0"]),
        (lambda m, p: KFAC(m, p, 0.1, kl_clip=0.0), ValueError, ["kl_clip is 0.0", "or None"]),
        (lambda m, p: KFAC(m, p, 0.1, likelihood="x"), ValueError, ["'x'", "categorical"]),
        (lambda m, _: KFAC(m, {}, 0.1), ValueError, ["'conv'", "nn.init"]),
        (lambda m, p: SOFIM(m, p, 0.1, rho=1.0, damping=1.0), TypeError, ["'damping'", "rho"]),
        (lambda m, p: fit(KFAC(m, p, 0.1), data(), epochs=0, batch_size=2), ValueError, ["epochs"]),
        (
            lambda m, p: fit(KFAC(m, p, 0.1), (data()[0], data(n=2)[1]), epochs=1, batch_size=2),
            ValueError,
            ["6 inputs and 2 targets"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(make, error, parts):
    model = network()
    with pytest.raises(error) as raised:
        make(model, blocks(model))
    for part in parts:
        assert part in str(raised.value)
    assert str(raised.value).count("\n") == 0


def test_files_that_do_not_fit_change_nothing(tmp_path):
    model = network()
    optimizer = made("kfac", model, blocks(model))
    optimizer.step(*data())
    optimizer.save(tmp_path / "kfac")
    other = made("sngd", model, blocks(model))
    with pytest.raises(ValueError, match="is of KFAC, expected SNGD"):
        other.load(tmp_path / "kfac")
    small = nn.Sequential(nn.Dense("out", 4, 3))
    third = KFAC(small, blocks(small), 0.1)
    kept = third.params
    with pytest.raises(ValueError, match="no place for"):
        third.load(tmp_path / "kfac")
    assert third.params is kept
    assert third.steps == 0
    with pytest.raises(FileExistsError, match="pass resume=True"):
        fit(optimizer, data(), epochs=1, batch_size=N, checkpoint=tmp_path / "kfac", progress=False)


def test_an_epoch_is_plain_numbers():
    assert Epoch(1, 0.5, None, None)._asdict()["loss"] == 0.5
