"""States as named arrays, and from library to library."""

from dataclasses import replace

import numpy as np
import pytest
from harness import BACKENDS, over_backends

import ngd_core
from ngd_core import Hyper, LayerRecord, LayerSpec, state

SPECS = (
    LayerSpec("fc", "dense", 3, 2),
    LayerSpec("out", "dense", 2, 2, bias=False),
)
METHODS = {
    "kfac": ngd_core.KFAC(),
    "exact": ngd_core.KFAC(damping_split="exact"),
    "ekfac": ngd_core.EKFAC(),
    "sngd": ngd_core.SNGD(),
    "fngd": ngd_core.FNGD(batch_size=4),
    "projective": ngd_core.ProjectiveKFAC(rank=1),
    "tridiagonal": ngd_core.TridiagonalKFAC(),
    "dense": ngd_core.DenseNGD(),
}


def trained(method, xp, array):
    """State after a batch, its inverses, and a direction."""
    r = np.random.default_rng(0)
    records = {
        spec: LayerRecord(
            array(r.standard_normal((4, spec.in_features))),
            array(r.standard_normal((4, spec.out_features))),
        )
        for spec in SPECS
    }
    grads = {spec: array(r.standard_normal(spec.block_shape)) for spec in SPECS}
    found = method.init(SPECS, array(np.zeros(())), xp=xp)
    hyper = Hyper(damping=0.1)
    found = method.accumulate(found, records, hyper, xp=xp)
    found, _ = method.refresh(found, hyper, xp=xp)
    return found, lambda s: method.direction(s, grads, records, hyper, xp=xp)[0]


@over_backends
@pytest.mark.parametrize("name", METHODS)
def test_a_state_comes_back_and_acts_the_same(backend, name):
    """Put into a fresh state of the same library, dtype and device."""
    method = METHODS[name]
    found, act = trained(method, backend.xp, backend.array)
    arrays = state.flatten(found)
    assert arrays
    assert all("/" in path for path in arrays)
    fresh = method.init(SPECS, backend.array(np.zeros(())), xp=backend.xp)
    back = state.unflatten(fresh, arrays)
    assert type(back) is type(found)
    assert list(state.flatten(back)) == list(arrays)
    for path, x in state.flatten(back).items():
        assert x is not arrays[path]
        assert np.array_equal(backend.numpy(x), backend.numpy(arrays[path]))
    want, got = (backend.numpy(act(each)) for each in (found, back))
    for spec in SPECS:
        assert np.array_equal(want[spec], got[spec])


LIBRARIES = [b for b in BACKENDS if ":" not in b.name or b.variant == "device1"]


@pytest.mark.parametrize("source", LIBRARIES, ids=str)
@pytest.mark.parametrize("target", LIBRARIES, ids=str)
def test_a_file_goes_from_library_to_library(tmp_path, source, target):
    method = METHODS["kfac"]
    found, act = trained(method, source.xp, source.array)
    path = tmp_path / "state.safetensors"
    state.save(path, state.flatten(found), method=method, step="1")
    arrays, notes, *_ = state.load(path, method=method)
    assert notes == {"step": "1"}
    fresh, other = trained(method, target.xp, target.array)
    back = state.unflatten(method.init(SPECS, target.array(np.zeros(())), xp=target.xp), arrays)
    for key, x in state.flatten(fresh).items():
        assert arrays[key].dtype == source.numpy(state.flatten(found)[key]).dtype
        assert np.array_equal(target.numpy(state.flatten(back)[key]), arrays[key])
        assert target.numpy(x).dtype == target.numpy(state.flatten(back)[key]).dtype
    want, got = source.numpy(act(found)), target.numpy(other(back))
    for spec in SPECS:
        np.testing.assert_allclose(got[spec], want[spec], rtol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"m": np.ones(3)}, ["shape (3,)", "'m'", "expected shape (2,)"]),
        ({}, ["nothing for 'm'", "same method"]),
        ({"m": np.ones(2), "n": np.ones(1)}, ["'n'", "no place"]),
    ],
)
def test_arrays_that_do_not_fit(arrays, parts):
    template = {"m": np.zeros(2)}
    with pytest.raises(ValueError, match="load a state of the same method") as raised:
        state.unflatten(template, arrays)
    for part in parts:
        assert part in str(raised.value)
    assert template["m"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", METHODS)
def test_layers_of_other_names_are_taken_by_a_mapping(name):
    """Also where a layer has the name that another has in the file."""
    method = METHODS[name]
    found, _ = trained(method, np, np.asarray)
    other = [replace(spec, name=new) for spec, new in zip(SPECS, ("out", "2"), strict=True)]
    fresh = method.init(other, np.zeros(()))
    names = {"out": "fc", "2": "out"}
    back = state.unflatten(fresh, state.flatten(found), names=names)
    for want, got in zip(*(state.flatten(each).values() for each in (found, back)), strict=True):
        assert np.array_equal(want, got)
    with pytest.raises(ValueError, match="load a state of the same method"):
        state.unflatten(fresh, state.flatten(found), names={"2": "out"} | {"out": "gone"})


def test_two_layers_do_not_get_the_arrays_of_one():
    template = {"a": np.zeros(1), "b": np.zeros(1)}
    with pytest.raises(ValueError, match="Two arrays of the state are called 'b'"):
        state.unflatten(template, {"b": np.ones(1)}, names={"a": "b"})


def test_names_are_of_layers_alone():
    """What is within a layer keeps its name, whatever layers are called."""
    back = state.unflatten({"m": {"m": np.zeros(1)}}, {"0/m": np.ones(1)}, names={"m": "0"})
    assert back["m"]["m"].tolist() == [1.0]


def test_two_arrays_of_one_name():
    with pytest.raises(ValueError, match="Two arrays of the state are called '1'"):
        state.flatten({1: np.ones(1), "1": np.ones(1)})


def test_what_is_no_array_stays():
    tree = {"a": None, "b": (1, "x", np.ones(1)), "c": []}
    assert list(state.flatten(tree)) == ["b/2"]
    back = state.unflatten(tree, {"b/2": np.zeros(1)})
    assert back["a"] is None
    assert back["b"][:2] == (1, "x")
    assert back["c"] == []
