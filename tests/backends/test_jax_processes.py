"""Two processes of `jax.distributed` give the parameters of one on the joint batch."""

import contextlib
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from backends import jax_processes as job
from ngd_core.testing import assert_close

LATE = 240.0
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}


def run(commands):
    """What each of several processes printed and gave; all are ended when one is late."""
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    found = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=LATE)
            found.append((process.returncode, output))
    finally:
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.communicate()
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def test_two_processes_take_the_steps_of_one(tmp_path):
    port = free_port()
    paths = [tmp_path / f"{rank}.npz" for rank in range(2)]
    found = run([(job.__file__, rank, 2, port, path) for rank, path in enumerate(paths)])
    assert [code for code, _ in found] == [0, 0], found
    params, x, y = jax.tree.map(jnp.asarray, job.numbers())
    want = job.trained(params, x, y)
    assert not np.allclose(want["w"], params["w"], rtol=1e-2)
    for path in paths:
        got = np.load(path)
        assert got["processes"] == 2
        for k, p in want.items():
            assert_close(got[k], np.asarray(p), size=1000, kappa=1000)
