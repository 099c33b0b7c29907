"""Files of states: whole or refused, old or new, and nothing in them is ever run."""

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as decoded
from safetensors.numpy import save as encoded

import ngd_core
from ngd_core import LayerSpec, state

METHOD = ngd_core.KFAC(damping_split="exact")


def written(folder, **notes):
    """A file of a state, and its bytes."""
    path = folder / "state"
    found = METHOD.init([LayerSpec("fc", "dense", 3, 2)], np.zeros(()))
    state.save(path, state.flatten(found), method=METHOD, **notes)
    return path, path.read_bytes()


def remade(data, change):
    """The bytes with another entry ``ngd_core`` in the header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]
    header["ngd_core"] = change(header["ngd_core"])
    return encoded(decoded(data), metadata={name: x for name, x in header.items() if x is not None})


def test_memory_order_and_views_are_kept(tmp_path):
    x = np.arange(12.0).reshape(3, 4)
    arrays = {"turned": x.T, "every second": x[:, ::2], "none": np.zeros((0, 2)), "number": x[0, 1]}
    state.save(tmp_path / "f", arrays)
    back, notes, method, options = state.load(tmp_path / "f")
    assert (notes, method, options) == ({}, None, {})
    assert {name: value.tolist() for name, value in back.items()} == {
        name: np.asarray(value).tolist() for name, value in arrays.items()
    }


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    state.save(path, {"x": np.ones(2)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        state.save(path, {"x": np.zeros(2)})
    assert state.load(path)[0]["x"].tolist() == [1.0, 1.0]
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def test_another_writer_in_the_folder_is_left_alone(tmp_path):
    """A file of the user's, even one with a dot, is never the temporary one."""
    other = tmp_path / ".f"
    other.write_text("mine")
    state.save(str(tmp_path / "f"), {"x": np.ones(1)})
    assert other.read_text() == "mine"
    assert stat.S_ISREG(Path(tmp_path / "f").stat().st_mode)


def test_a_file_tells_its_method(tmp_path):
    """Options are those to make the method again, tuples as tuples."""
    path, _ = written(tmp_path)
    found = state.load(path, method=METHOD)
    assert found.method == "KFAC"
    assert ngd_core.KFAC(**found.options) == METHOD
    method = ngd_core.SNGD(metric="relu", linear_layers=("a", "b"))
    state.save(path, {}, method=method)
    assert ngd_core.SNGD(**state.load(path).options) == method


def refused(path, data, want=None):
    """The sentence about a file of these bytes; None where it is read as it was written."""
    want = want or state.load(path)
    path.with_name("other").write_bytes(data)
    try:
        found = state.load(path.with_name("other"))
    except ValueError as error:
        return str(error)
    assert found[1:] == want[1:]
    for name, x in want.arrays.items():
        assert np.array_equal(found.arrays[name], x)
        assert found.arrays[name].dtype == x.dtype
    assert list(found.arrays) == list(want.arrays)
    return None


def test_a_byte_that_changed_is_noticed_wherever_it_is(tmp_path):
    path, data = written(tmp_path, step="12")
    masks = np.random.default_rng(0).integers(1, 256, len(data))
    sentences, want = [], state.load(path)
    for k, mask in enumerate(masks):
        changed = bytearray(data)
        changed[k] ^= int(mask)
        sentences.append(refused(path, bytes(changed), want))
    assert sum(sentence is None for sentence in sentences) <= 1  # white space
    for sentence in filter(None, sentences):
        assert "other' is " in sentence
        assert sentence.count("\n") == 0


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path, data = written(tmp_path)
    want, header = state.load(path), int.from_bytes(data[:8], "little")
    for length in {*range(0, len(data), 7), 7, 8, 9, header + 7, header + 8, len(data) - 1}:
        sentence = refused(path, data[:length], want)
        assert "is damaged, or no safetensors file" in sentence
        assert "take an older one" in sentence


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(data=st.binary(max_size=300))
@example(b"")
@example(pickle.dumps({"x": 1}))
@example(b"\x08\0\0\0\0\0\0\0" + b"[[[[[[[[")
def test_anything_else_is_refused(tmp_path_factory, data):
    path, whole = written(tmp_path_factory.mktemp("any"))
    assert refused(path, data) is not None
    if data:
        assert refused(path, data + whole) is not None
        assert refused(path, whole + data) is not None


def test_a_file_is_never_run(tmp_path):
    """A pickle that would write a file is refused as any other file, and writes none."""

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "state"
    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        state.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def changed(**entries):
    return lambda own: json.dumps(json.loads(own) | entries)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda _: None, ["something else than ngd_core"]),
        (changed(version=2), ["version 2", "reads 1", "update ngd_core"]),
        (changed(version=10, sha256=None, method=["new"]), ["version 10", "update ngd_core"]),
        (changed(version="two"), ["is damaged"]),
        (changed(sha256="0" * 64), ["is damaged", "digest"]),
        (changed(method="EKFAC"), ["is damaged", "digest"]),
        (changed(options=None), ["is damaged"]),
        (lambda _: "[" * 100_000, ["is damaged"]),
        (lambda _: "7", ["is damaged"]),
    ],
    ids=("foreign", "two", "ten", "word", "digest", "method", "options", "nested", "number"),
)
def test_files_of_others_and_of_later_versions(tmp_path, change, parts):
    path, data = written(tmp_path)
    assert refused(path, remade(data, lambda own: own)) is None
    sentence = refused(path, remade(data, change))
    for part in parts:
        assert part in sentence


def test_numbers_that_numpy_has_not_are_refused_both_ways(tmp_path):
    path, data = written(tmp_path)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for entry in header.values():
        if entry.get("shape") == [2, 2]:
            entry |= {"dtype": "BF16", "shape": [2, 8]}
    text = json.dumps(header).encode()
    sentence = refused(path, len(text).to_bytes(8, "little") + text + data[8 + size :])
    # NumPy knows these numbers as soon as anything has imported ml_dtypes; then the digest tells
    assert "no safetensors file" in sentence or "has not the digest" in sentence
    import ml_dtypes

    with pytest.raises(TypeError, match="The array 'x' holds bfloat16; cast it"):
        state.save(path, {"x": np.ones(2, ml_dtypes.bfloat16)})
    assert path.read_bytes() == data


def test_a_state_of_another_method_or_of_other_options(tmp_path):
    path, _ = written(tmp_path)
    with pytest.raises(ValueError, match=r"is of KFAC, expected EKFAC\.$"):
        state.load(path, method=ngd_core.EKFAC())
    with pytest.raises(ValueError, match="KFAC with damping_split='exact', expected 'pi'"):
        state.load(path, method=ngd_core.KFAC())
    faster = ngd_core.KFAC(damping_split="exact", ops=ngd_core.inversion.EAGER)
    by_rows, usual = ngd_core.KFAC(factored_gradient=True), ngd_core.KFAC()
    state.save(tmp_path / "b", {"x": np.ones(1)}, method=by_rows)
    assert state.load(tmp_path / "b", method=usual).options == {
        "damping_split": "pi",
        "solve_dtype": None,
    }
    assert state.load(path, method=faster).method == "KFAC"
    assert state.load(path).options["damping_split"] == "exact"


@pytest.mark.parametrize(
    ("notes", "error", "part"),
    [({"step": 3}, TypeError, "'step' is a int"), ({"ngd_core": "x"}, ValueError, "'ngd_core'")],
)
def test_notes_are_strings_of_other_names(tmp_path, notes, error, part):
    with pytest.raises(error, match=part):
        state.save(tmp_path / "f", {}, **notes)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened_has_the_systems_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        state.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        state.load(tmp_path)


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path):
    """Threads of one process, each with another number in all places."""
    path = tmp_path / "f"

    def work(k):
        for _ in range(10):
            state.save(path, {"x": np.full(1000, k)})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(state.load(path).arrays["x"].tolist())) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from ngd_core import state
from ngd_core.state import files

folder, found = Path(sys.argv[1]), {"lines": [], "times": [], "cut": 0}
path = folder / "f"

def save(k, size):
    state.save(path, {"x": np.full(size, k)}, number=str(k))

def look():
    x, notes = state.load(path)[:2]
    assert set(x["x"].tolist()) == {int(notes["number"])}
    for part in folder.glob(".f.*"):
        found["cut"] += part.stat().st_size < path.stat().st_size
        part.unlink()
    return int(notes["number"])

def killed(child, kill):
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    kill(pid)
    return os.waitpid(pid, 0)[1]

def stopped_at(line):  # a process that ends itself before the line-th line of the module is run
    left = [line]
    def trace(frame, event, _):
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    save(1, 50)

line = ended = 0
while not ended:
    line += 1
    save(0, 50)
    status = killed(lambda: stopped_at(line), lambda pid: None)
    ended = status == 0
    found["lines"].append(look())

big = 100_000
save(0, big)
begin = time.perf_counter()
save(0, big)
whole = time.perf_counter() - begin
random.seed(0)
for _ in range(30):
    save(0, big)
    wait = random.uniform(0, 1.5 * whole)
    killed(lambda: save(1, big), lambda pid: (time.sleep(wait), os.kill(pid, signal.SIGKILL)))
    found["times"].append(look())
print(json.dumps(found))
"""


def test_a_process_killed_at_any_instant_leaves_the_old_file_or_the_new(tmp_path):
    """Before each line that saving runs, and at thirty moments of a longer one."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lines = found["lines"]
    assert len(lines) > 30
    assert lines == sorted(lines)
    assert (lines[0], lines[-1]) == (0, 1)
    assert set(found["times"]) == {0, 1}
    assert found["cut"] > 0  # some were in the middle of writing


@pytest.mark.parametrize("call", [lambda path: state.save(path, {}), state.load])
def test_a_missing_package_is_named_with_how_to_install_it(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ngd-core\[files\]'"):
        call(tmp_path / "a")
