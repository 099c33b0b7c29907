"""Several processes give the parameters of one process on the joint batches."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks_job as job
import torch
from ngd_torch import _ranks

from ngd_core.testing import assert_close

ROOT = Path(__file__).parents[2]
LATE = 300.0
ENVIRONMENT = {
    **os.environ,
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}


def run(*command):
    """What a command printed; whoever is late is ended, with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LATE)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers then
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        output, _ = process.communicate()
        output += "\nwas late"
    return output, process.returncode


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank wrote, by the name of the work and the number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    output, _ = run(job.__file__, str(folder))
    results = {}
    for work, size in job.WORKS:
        written = [folder / f"{work.__name__}{size}-{rank}.pt" for rank in range(size)]
        if work is job.last:
            written = written[:1]  # the other one has died, as it was to do
        missing = [path.name for path in written if not path.exists()]
        assert not missing, output
        each = [torch.load(path, weights_only=True) for path in written]
        results[f"{work.__name__}{size}"] = each
    return results


@pytest.fixture(scope="module")
def alone():
    known = {}

    def parameters(name):
        if name not in known:
            known[name] = job.alone(name)
        return known[name]

    return parameters


def same(ranks, key, want):
    """Bit for bit the same on all ranks, and to rounding what one process has."""
    for rank in ranks[1:]:
        assert torch.equal(rank[key], ranks[0][key])
    assert torch.isfinite(want).all()
    assert_close(ranks[0][key].numpy(), want.numpy(), size=20, kappa=100)


CASES = [(size, name, k) for size in (2, 4) for name, k in job.settings(size)]
SHARDED = [(size, name, k) for size in (2, 4) for name, k in job.sharded_settings(size)]


@pytest.mark.parametrize(("size", "name", "k"), CASES)
def test_data_parallel_ranks_are_one_process(found, alone, size, name, k):
    same(found[f"together{size}"], f"{name}/{k}", alone(name))


@pytest.mark.parametrize(("size", "name", "k"), SHARDED)
def test_sharded_ranks_are_one_process(found, alone, size, name, k):
    same(found[f"together{size}"], f"fsdp/{name}/{k}", alone(name))


@pytest.mark.parametrize("name", ["kfac", "ekfac", "fngd"])
def test_unequal_batches_weigh_by_their_examples(found, alone, name):
    same(found["together2"], f"unequal/{name}", alone(name))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", job.STORED)
def test_a_checkpoint_of_four_ranks_resumes_on_fewer(found, alone, size, name):
    same(found[f"resume{size}"], name, alone(name.removeprefix("fsdp/")))


def test_a_rank_that_dies_ends_in_an_error(found):
    (rank,) = found["last2"]
    assert rank["error"]
    assert rank["seconds"] < job.TIMEOUT.total_seconds()


def test_further_groups_have_the_timeout_of_the_first(found):
    for rank in found["together4"]:
        assert rank["timeouts"] == [job.TIMEOUT.total_seconds()] * 2


INVERSES = [8 * (d**2 + o**2) for d, o in ((5, 2), (9, 5), (6, 3))]
"""Bytes of each layer's inverse."""


@pytest.mark.parametrize(("size", "key"), [(2, "bytes/1"), (4, "bytes/1"), (2, "fsdp/bytes")])
def test_each_inverse_is_kept_once(found, size, key):
    kept = [rank[key] for rank in found[f"together{size}"]]
    assert sum(kept) == sum(INVERSES)
    assert max(kept) == max(INVERSES)  # the dearest layer is alone on its rank


def test_between_the_ends_as_many_ranks_keep_an_inverse_as_are_said(found):
    for k, times in ((1, 1), (2, 2), (None, 4)):
        kept = [rank[f"bytes/{k}"] for rank in found["together4"]]
        assert sum(kept) == times * sum(INVERSES)


def test_the_report_counts_what_is_on_the_rank(found):
    for rank in found["together4"]:
        saved = rank["bytes/None"] - rank["bytes/1"]
        assert 0 <= rank["report/None"] - rank["report/1"] - saved < 16 * 3


@pytest.mark.parametrize("k", [1, 2])
def test_every_rank_knows_the_measures_of_every_layer(found, k):
    want = found["together4"][0]["stats/None"]
    for rank in found["together4"]:
        for layer, measures in rank[f"stats/{k}"].items():
            assert measures["code"] == want[layer]["code"] == 0
            assert_close(measures["inner"], want[layer]["inner"], size=20, kappa=1e4)


def test_momentum_stays_sharded(found):
    assert [rank["fsdp/momentum"] for rank in found["together2"]] == [(3, 8), (2, 8)]


def test_gradients_that_are_bad_on_one_rank_are_refused_by_all(found):
    model = job.network()
    job.bad_gradients(model)
    job.MAKERS["sofim"](model).step()
    same(found["together2"], "bad gradients", job.flat(model))
    assert all(set(rank["rejected"]) == {1} for rank in found["together2"])


def test_labels_differ_between_ranks_and_come_back(found):
    first, second = found["together2"]
    assert first["untouched"]
    assert second["untouched"]
    assert not torch.equal(first["noise"], second["noise"])
    same([first, second], "sampled again", first["sampled"])
    assert torch.equal(first["sampled"], second["sampled"])


def test_rows_of_a_packed_weight_are_layers_of_their_own(found):
    model = job.Attention()
    job.train(model, job.MAKERS["kfac"](model), range(job.HALF))
    same(found["together2"], "packed", job.flat(model))


def test_sharded_weights_that_no_called_layer_has_are_told(found):
    for rank in found["together2"]:
        uncovered = rank["packed and sharded"]
        assert {name.split(".")[0] for name in uncovered} == {"attention"}
        assert set(uncovered.values()) == {"it is sharded, and in no layer that is called"}


def test_a_group_of_one_is_a_process_by_itself(found):
    for number, rank in enumerate(found["together2"]):
        model = job.network()
        job.train(model, job.MAKERS["kfac"](model), range(3), slice(number, None))
        assert torch.equal(rank["by itself"], job.flat(model))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("kfac/3", "inverse_ranks is 3; expected 'each', or a number that divides the 2 ranks"),
        ("kfac/0", "inverse_ranks is 0; expected"),
        ("ekfac/1", "EKFAC needs what a refresh made for its statistics"),
        ("recursive/1", "ProjectiveKFAC needs what a refresh made for its statistics"),
        ("fngd/1", "FNGD keeps no inverses that could be split"),
        ("other batches", "The ranks saw different layers or numbers of batches"),
        ("other layers", "The ranks have different methods, inverse_ranks or layers"),
        ("early", "torch.distributed was initialised after the optimizer was made"),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank(found, key, message):
    for rank in found["together2"]:
        assert rank[f"refused/{key}"].startswith(message)


def test_buckets_hold_all_in_order_and_no_more_than_fits(monkeypatch):
    monkeypatch.setattr(_ranks, "BUCKET", 10)
    sizes = [4, 6, 1, 30, 0, 10, 3]
    buckets = list(_ranks._buckets([0, 1, 2, 3, 4, 5, 6], sizes))
    assert [k for some in buckets for k in some] == [0, 1, 2, 3, 4, 5, 6]
    assert [sum(sizes[k] for k in some) for some in buckets] == [10, 1, 30, 10, 3]


def test_the_example_runs_under_torchrun():
    """To its last line: at the end of the interpreter PyTorch was once seen to abort."""
    script = str(ROOT / "docs" / "examples" / "several_processes.py")
    end = "print('ended', flush=True); os._exit(0)"
    to_its_end = f"import os, runpy, sys; runpy.run_path(sys.argv[1]); {end}"
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"
    output, code = run(*launcher, sys.executable, "-c", to_its_end, script)
    assert code == 0, output
    lines = output.splitlines()
    assert output.count("ended") == 2, output
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert len(losses) == 4, output
    assert losses[-1] < 0.1 * losses[0]
    assert np.all(np.diff(losses) <= 0)
