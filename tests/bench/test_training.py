"""`bench_training` trains what it says, runs nothing twice, and reads its curves rightly."""

import dataclasses
import json
from itertools import islice, pairwise

import bench_training
import numpy as np
import pytest
import torch
import training_contender
from torch import nn
from training_contender import CONTENDERS, Contender, run
from training_exact import ExactNGD
from training_quadratic import QuadraticKFAC
from training_tables import at, draw, reached, rivals, table
from training_tasks import INCOMING, TASKS, Task, batches, bernoulli, categorical

TINY = (5, 4, 2)


def tiny(likelihood):
    """Sixteen examples of five inputs, eight a batch."""
    r = np.random.default_rng(3)
    x = torch.from_numpy(r.random((16, 5), dtype=np.float32))
    labels = torch.from_numpy(r.integers(0, 3, 16))
    sums = likelihood == "bernoulli"
    y = x if sums else labels

    def make():
        return nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 5 if sums else 3))

    return Task(
        about="tiny",
        make=make,
        loss=bernoulli if sums else categorical,
        rows=(x, y),
        shown=(x, y),
        batch=8,
        options={"likelihood": "bernoulli"} if sums else {},
        short=4,
        horizon=8,
        every=2,
        targets=(1.0,),
    )


def test_autoencoder_starts_sparse_with_a_linear_code():
    network = TASKS["digits-autoencoder"](None).make()
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    sizes = [layer.in_features for layer in linear] + [linear[-1].out_features]
    assert sizes == [64, 200, 100, 50, 12, 50, 100, 200, 64]
    for layer in linear:
        assert ((layer.weight != 0).sum(1) == min(INCOMING, layer.in_features)).all()
        assert not layer.bias.any()
    behind = [isinstance(b, nn.Sigmoid) for a, b in pairwise(network) if a in linear]
    assert behind == [True, True, True, False, True, True, True]
    assert isinstance(network[-1], nn.Linear)


def test_bernoulli_loss_is_summed_over_pixels_and_averaged_over_examples():
    logits, pixels = torch.zeros(4, 10), torch.full((4, 10), 0.25)
    assert bernoulli(logits, pixels).item() == pytest.approx(10 * np.log(2), rel=1e-6)


def test_an_epoch_holds_every_example_once_and_says_where_it_ends():
    task = tiny("bernoulli")
    seen = list(islice(batches(task, 1), 4))
    assert [last for *_, last in seen] == [False, True, False, True]
    for first in (0, 2):
        rows = torch.cat([seen[first][0], seen[first + 1][0]])
        assert {tuple(r.tolist()) for r in rows} == {tuple(r.tolist()) for r in task.rows[0]}
    assert not torch.equal(seen[0][0], seen[2][0])


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_quadratic_model_has_the_fisher_of_the_outputs(likelihood):
    task = tiny(likelihood)
    torch.manual_seed(0)
    network = task.make().double()
    x = task.rows[0].double()
    kfac = QuadraticKFAC(network, task.loss, 1.0, **task.options)
    params = dict(network.named_parameters())
    vs = [{name: torch.randn_like(p) for name, p in params.items()} for _ in range(2)]
    found = kfac.inner(x, vs)

    jacobian = torch.autograd.functional.jacobian(
        lambda *ps: torch.func.functional_call(network, dict(zip(params, ps, strict=True)), (x,)),
        tuple(params.values()),
    )
    moved = [
        sum((j * v).flatten(2).sum(-1) for j, v in zip(jacobian, w.values(), strict=True))
        for w in vs
    ]
    z = network(x).detach()
    if likelihood == "bernoulli":
        p = torch.sigmoid(z)
        middle = torch.diag_embed(p * (1 - p))
    else:
        p = torch.softmax(z, -1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = [[torch.einsum("no,nop,np->", a, middle, b) / len(x) for b in moved] for a in moved]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype))


def test_exact_ngd_solves_with_the_whole_empirical_fisher():
    task = tiny("categorical")
    torch.manual_seed(0)
    network, x, y = task.make().double(), task.rows[0].double(), task.rows[1]
    found = ExactNGD(network, task.loss, 0.1, 0.3).direction(x, y)
    rows = []
    for n in range(len(x)):
        grads = torch.autograd.grad(
            task.loss(network(x[n : n + 1]), y[n : n + 1]), network.parameters()
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    u = torch.stack(rows)
    fisher = u.T @ u / len(u) + 0.3 * torch.eye(u.shape[1], dtype=u.dtype)
    torch.testing.assert_close(found, torch.linalg.solve(fisher, u.mean(0)))


def test_quadratic_kfac_lowers_the_loss_of_one_batch_and_follows_it_with_its_damping():
    task = tiny("bernoulli")
    torch.manual_seed(0)
    network = task.make()
    kfac = QuadraticKFAC(
        network,
        task.loss,
        1.0,
        thin=1,
        factor_every=1,
        inverse_every=1,
        fisher="exact",
        **task.options,
    )
    losses = []
    for _ in range(10):
        losses.append(task.loss(network(task.rows[0]), task.rows[1]).item())
        kfac(*task.rows)
    assert losses == sorted(losses, reverse=True)
    assert kfac.preconditioner.curvature.damping < 1.0


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_every_contender_trains_and_has_at_most_four_settings(likelihood):
    task = tiny(likelihood)
    for name, contender in CONTENDERS.items():
        if contender.needs is None or not contender.settings(task):
            continue
        assert len(contender.settings(task)) <= 4, name
        found = run(contender, task, contender.settings(task)[0], 1, 4)
        assert found["steps"] == [0, 2, 4], name
        assert np.isfinite(found["losses"]).all(), name
        assert found["losses"][0] != found["losses"][-1], name
        assert found["seconds"] == sorted(found["seconds"]), name


def test_a_run_is_made_again_by_its_seed():
    task, settings = tiny("categorical"), {"lr": 0.1}
    one, same, other = (
        run(CONTENDERS["SGD, Nesterov"], task, settings, seed, 4)["losses"] for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_a_run_that_diverges_ends_early():
    found = run(CONTENDERS["SGD, Nesterov"], tiny("categorical"), {"lr": 1e6}, 1, 100)
    assert found["steps"][-1] < 100


def test_what_is_stored_is_not_run_again_and_what_is_not_installed_is_named(tmp_path, monkeypatch):
    calls, said = [], []

    def counted(contender, task, settings, seed, steps):
        calls.append((settings["lr"], seed, steps))
        return {"steps": [0, steps], "losses": [2.0, settings["lr"]], "seconds": [0.0, 1.0]}

    contenders = {
        "here": Contender(None, ({"lr": 0.5}, {"lr": 0.1}), (), first_order=True),
        "absent": Contender(None, ({"lr": 0.5},), (), needs=None),
    }
    task = dataclasses.replace(tiny("categorical"), longer=3)
    for name, value in (("CONTENDERS", contenders), ("run", counted), ("SEEDS", 2)):
        monkeypatch.setattr(bench_training, name, value)
    monkeypatch.setitem(bench_training.TASKS, "tiny", lambda _: task)
    path = tmp_path / "tiny.json"
    found = bench_training.trained("tiny", "digits", path, said.append)
    assert calls == [(0.5, 0, 12), (0.1, 0, 12), (0.1, 1, 24), (0.1, 2, 24)]
    assert bench_training.trained("tiny", "digits", path, said.append) == found
    assert len(calls) == 4
    stale = {"contender": "here", "settings": {"lr": 0.7}, "seed": 1, "asked": 24}
    path.write_text(json.dumps({**found, "runs": [stale, *found["runs"]]}))
    assert bench_training.trained("tiny", "digits", path, said.append) == found
    assert "absent is left out" in said[0]
    assert "absent" in table(found)


def runs(*curves):
    return [
        {
            "contender": "one",
            "settings": {"lr": 0.1},
            "asked": 10,
            "steps": [0, 5, 10],
            "seconds": [0.0, 1.0, 2.0],
            "losses": list(losses),
        }
        for losses in curves
    ]


def test_a_target_is_reached_at_the_first_look_below_it():
    (one,) = runs((3.0, 1.0, 2.0))
    assert reached(one, 1.0) == (5, 1.0)
    assert reached(one, 0.5) is None


def test_tables_give_medians_over_seeds_and_say_how_many_arrived():
    three = runs((3.0, 1.0, 0.5), (3.0, 2.0, 1.0), (3.0, 2.0, 2.0))
    assert at(three, 2.0) == "5, 1 s"
    assert at(three, 1.0) == "10, 2 s (2 of 3)"
    assert at(three, 0.5) == "1 of 3"
    assert at(three, 0.1) == "not reached"


def test_pictures_and_tables_are_made_of_the_stored_file(tmp_path):
    about = {"task": "t", "batch": 8, "horizon": 10, "targets": [1.0], "missing": []}
    found = {"about": about, "tuning": [], "runs": runs((3.0, 1.0, 0.5), (3.0, 2.0, 1.0))}
    draw(found, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    head, _, row = table(found).splitlines()
    assert head.count("|") == row.count("|")
    assert "| one | lr 0.1 | 200 | 7.5, 1.5 s | 0.75 |" in row


def test_rivals_are_measured_to_where_they_ended():
    ours, sgd = runs((3.0, 1.0, 0.5), (3.0, 0.5, 0.5)), runs((3.0, 1.5, 1.5), (3.0, 1.5, 1.5))
    named = [{**run, "contender": "SGD, Nesterov"} for run in sgd]
    head, _, peer, own = rivals({"runs": ours + named}).splitlines()
    assert "to 2, the end of SGD, Nesterov (10 steps, 2 s)" in head
    assert own == "| one | 5, 1 s |"
    assert peer == "| SGD, Nesterov |  |"


def test_contenders_without_their_package_are_left_out():
    absent = [name for name, one in CONTENDERS.items() if one.needs is None]
    assert bool(absent) == (training_contender.pytorch_optimizer is None)
