"""One run on a GPU: the laws, then the time of every method and of the ways to factorise.

    python tests/bench/gpu.py --out gpu.json
    python tests/bench/gpu.py --device cpu    # a rehearsal: tiny sizes, the host's clock

The laws are the tests with the marker gpu, on CuPy, CUDA PyTorch and CUDA JAX. A method's step is
forward and backward pass, statistics, refresh and update of one network, and is timed beside SGD
and Adam of the same framework (of `ngd_core.step` for CuPy, which has none): contenders in turn,
in blocks of a whole refresh cycle, with the quartiles of milliseconds a step and of the ratio to
SGD over the rounds. PyTorch and CuPy are timed by events of the device, JAX by the host's clock
around `block_until_ready`. Everything goes into one JSON file; what fails in one place is written
down there, the rest runs on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ngd_core import losses, nn, step
from ngd_core.inversion import PURE

ROOT = Path(__file__).parents[2]
NO_GPU = (
    "No NVIDIA GPU that {} can use was found; install a build for CUDA, or rehearse with "
    "--device cpu."
)
# JAX shares the device with the others, and multiplies float32 as such, as they do: no TF32
JAX = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "float32"}
RATE = 1e-3
ADAPTERS = {"torch": "ngd_torch", "jax": "ngd_jax", "cupy": "ngd_cupy"}
PACKAGES = ("numpy", "torch", "jax", "jaxlib", "optax", "cupy", "cupy-cuda13x", "cupy-cuda12x")
TIMED = {"factor_every": 1}
# method: names in PyTorch and CuPy, and in JAX; options; whether it samples labels
METHODS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "kfac": ("KFAC", "kfac", TIMED, True),
    "ekfac": ("EKFAC", "ekfac", TIMED, True),
    "sngd": ("SNGD", "sngd", TIMED, False),
    "fngd": ("FNGD", "fngd", {}, False),
    "sofim": ("SOFIM", "sofim", {"rho": 1.0}, False),
    "projective": ("ProjectiveKFAC", "projective_kfac", TIMED, True),
}


class Sizes(NamedTuple):
    """How much is run."""

    widths: tuple[int, ...] = (784, 1024, 1024, 10)
    batch: int = 512
    cycle: int = 20
    rounds: int = 15
    orders: tuple[int, ...] = (32, 128, 512, 1024, 2048)
    repeats: int = 10


TINY = Sizes((5, 3), 8, 2, 2, (3,), 2)


class Problem(NamedTuple):
    """Data and initial blocks [W b], the same for every framework."""

    x: np.ndarray
    y: np.ndarray
    blocks: list[np.ndarray]


class Framework(NamedTuple):
    """What is timed, and how.

    A contender is a function that takes one step and returns something to wait for. `elapsed`
    gives the milliseconds of a call. An inverse takes a matrix to its inverse.
    """

    clock: str
    elapsed: Callable[[Callable[[], Any]], float]
    array: Callable[[np.ndarray], Any]
    contenders: dict[str, Callable[[Problem, Sizes], tuple[Callable[[], Any], Callable[[], Any]]]]
    inverses: dict[str, Callable[[Any], Any]]


def problem_of(sizes: Sizes) -> Problem:
    r = np.random.default_rng(0)
    x = r.standard_normal((sizes.batch, sizes.widths[0])).astype(np.float32)
    y = r.integers(0, sizes.widths[-1], sizes.batch)
    pairs = zip(sizes.widths[1:], sizes.widths[:-1], strict=True)
    blocks = [r.standard_normal((m, n + 1)).astype(np.float32) / n**0.5 for m, n in pairs]
    return Problem(x, y, blocks)


def options_of(name: str, sizes: Sizes) -> dict[str, Any]:
    options = dict(METHODS[name][2])
    if "factor_every" in options:
        options["inverse_every"] = sizes.cycle
    return {**options, "batch_size": sizes.batch} if name == "fngd" else options


def by_host(wait: Callable[[Any], Any]) -> Callable[[Callable[[], Any]], float]:
    def elapsed(f: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        wait(f())
        return 1e3 * (time.perf_counter() - begin)

    return elapsed


def with_torch(gpu: bool) -> Framework:
    import array_api_compat.torch as xp
    import ngd_torch
    import torch

    if gpu and not torch.cuda.is_available():
        msg = "torch.cuda.is_available() is False"
        raise LookupError(msg)
    device = "cuda" if gpu else "cpu"

    def by_events(f: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        f()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def contender(make: Callable[[Any, Sizes], Any]) -> Any:
        def begin(problem: Problem, sizes: Sizes) -> Any:
            layers: list[Any] = []
            for block in problem.blocks:
                linear = torch.nn.Linear(block.shape[1] - 1, block.shape[0])
                with torch.no_grad():
                    linear.weight.copy_(torch.from_numpy(block[:, :-1]))
                    linear.bias.copy_(torch.from_numpy(block[:, -1]))
                layers += [linear, torch.nn.Tanh()]
            model = torch.nn.Sequential(*layers[:-1]).to(device)
            optimizer = make(model, sizes)
            x, y = (torch.from_numpy(part).to(device) for part in (problem.x, problem.y))

            def one() -> Any:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return loss

            return one, getattr(optimizer, "epoch_end", lambda: None)

        return begin

    def made(name: str) -> Any:
        maker, _, _, sampled = METHODS[name]
        kind = {"fisher": "mc"} if sampled else {}
        return contender(
            lambda model, sizes: getattr(ngd_torch, maker)(
                model, RATE, **options_of(name, sizes), **kind
            )
        )

    def solved(m: Any) -> Any:
        lower, _ = torch.linalg.cholesky_ex(m)
        identity = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
        root = torch.linalg.solve_triangular(lower, identity, upper=False)
        return root.mT @ root

    return Framework(
        "torch.cuda.Event" if gpu else "time.perf_counter",
        by_events if gpu else by_host(lambda _: None),
        lambda x: torch.from_numpy(x).to(device),
        {
            "sgd": contender(lambda m, _: torch.optim.SGD(m.parameters(), RATE, momentum=0.9)),
            "adam": contender(lambda m, _: torch.optim.Adam(m.parameters(), RATE)),
            **{name: made(name) for name in METHODS},
        },
        {
            "pure": lambda m: PURE.spd_inverse(m, xp=xp),
            "native: cholesky_ex, cholesky_inverse": lambda m: ngd_torch.NATIVE.spd_inverse(
                m, xp=xp
            ),
            "cholesky_ex, solve_triangular": solved,
            "inv": torch.linalg.inv,
        },
    )


def with_jax(gpu: bool) -> Framework:
    import jax
    import jax.numpy as jnp
    import ngd_jax
    import optax

    device = jax.devices("cuda" if gpu else "cpu")[0]

    def put(x: np.ndarray) -> Any:
        return jax.device_put(x, device)

    def loss_fn(params: Any, x: Any, y: Any) -> Any:
        for k, (w, b) in enumerate(params):
            x = x @ w + b
            x = jnp.tanh(x) if k < len(params) - 1 else x
        chosen = jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)
        return -jnp.mean(chosen), x

    def contender(make: Callable[..., Any], records: str | None) -> Any:
        def begin(problem: Problem, sizes: Sizes) -> Any:
            params = [(put(block[:, :-1].T), put(block[:, -1])) for block in problem.blocks]
            x, y = put(problem.x), put(problem.y)
            optimizer = make(sizes, lambda: ngd_jax.report(loss_fn, params, x, y))
            recorded = ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher=records or "empirical")
            plain = jax.value_and_grad(loss_fn, has_aux=True)

            @jax.jit
            def advance(params: Any, memory: Any, key: Any) -> Any:
                key, own = jax.random.split(key)
                extra = {}
                if records is None:
                    (value, _), grads = plain(params, x, y)
                else:
                    sample = {"key": own} if records == "mc" else {}
                    (value, _), grads, extra["records"] = recorded(params, x, y, **sample)
                updates, memory = optimizer.update(grads, memory, params, **extra)
                return optax.apply_updates(params, updates), memory, key, value

            held = [params, optimizer.init(params), put(jax.random.key(0))]

            def one() -> Any:
                *held[:], value = advance(*held)
                return value, held[0]

            return one, lambda: None

        return begin

    def made(name: str) -> Any:
        _, maker, _, sampled = METHODS[name]

        def make(sizes: Sizes, report: Callable[[], Any]) -> Any:
            options = options_of(name, sizes)
            if name == "sofim":
                return ngd_jax.sofim(RATE, **options)
            if name == "fngd":
                options["steps_per_epoch"] = sizes.cycle
            return getattr(ngd_jax, maker)(report(), RATE, **options)

        kind = "mc" if sampled else "empirical"
        return contender(make, None if name == "sofim" else kind)

    return Framework(
        "time.perf_counter around jax.block_until_ready",
        by_host(jax.block_until_ready),
        put,
        {
            "sgd": contender(lambda *_: optax.sgd(RATE, momentum=0.9), None),
            "adam": contender(lambda *_: optax.adam(RATE), None),
            **{name: made(name) for name in METHODS},
        },
        {
            "pure": jax.jit(lambda m: PURE.spd_inverse(m, xp=jnp)),
            "native: cholesky, cho_solve": jax.jit(lambda m: ngd_jax.NATIVE.spd_inverse(m, xp=jnp)),
            "inv": jax.jit(jnp.linalg.inv),
        },
    )


def with_cupy(gpu: bool) -> Framework:
    """CuPy, or in a rehearsal NumPy, which the same adapter takes."""
    import ngd_cupy

    cp, own = (importlib.import_module("cupy") if gpu else np), ngd_cupy.NATIVE
    compat = importlib.import_module(f"array_api_compat.{'cupy' if gpu else 'numpy'}")
    if gpu:
        cp.cuda.runtime.getDeviceCount()
    else:
        own = ngd_cupy.cholesky_ops(np.linalg.cholesky, np.linalg.solve)
    explicit = ngd_cupy.cholesky_ops(cp.linalg.cholesky, lambda lower, _: cp.linalg.inv(lower))

    def by_events(f: Callable[[], Any]) -> float:
        begin, end = cp.cuda.Event(), cp.cuda.Event()
        begin.record()
        f()
        end.record()
        end.synchronize()
        return float(cp.cuda.get_elapsed_time(begin, end))

    def network(problem: Problem) -> tuple[Any, dict[str, Any], Any, Any]:
        layers: list[Any] = []
        for k, block in enumerate(problem.blocks):
            layers += [nn.Dense(str(k), block.shape[1] - 1, block.shape[0]), nn.Tanh()]
        params = {str(k): cp.asarray(block) for k, block in enumerate(problem.blocks)}
        return nn.Sequential(*layers[:-1]), params, cp.asarray(problem.x), cp.asarray(problem.y)

    def first_order(init: Callable[..., Any], rule: Callable[..., Any]) -> Any:
        def begin(problem: Problem, sizes: Sizes) -> Any:
            model, params, x, y = network(problem)
            held = [params, init(params)]

            def one() -> Any:
                outputs, tape = nn.forward(model, held[0], x)
                slopes = losses.categorical.gradient(outputs, y)
                grads, _, _ = nn.backward(model, held[0], tape, slopes)
                moves, held[1] = rule(held[1], grads)
                held[0] = step.sgd(held[0], moves, RATE)
                return outputs

            return one, lambda: None

        return begin

    def made(name: str) -> Any:
        maker, _, _, sampled = METHODS[name]
        kind = {"fisher": "mc"} if sampled else {}

        def begin(problem: Problem, sizes: Sizes) -> Any:
            model, params, x, y = network(problem)
            options = {**options_of(name, sizes), **kind}
            optimizer = getattr(ngd_cupy, maker)(model, params, RATE, **options)
            return lambda: optimizer.step(x, y), optimizer.epoch_end

        return begin

    return Framework(
        "cupy.cuda.Event" if gpu else "time.perf_counter",
        by_events if gpu else by_host(lambda _: None),
        cp.asarray,
        {
            "sgd": first_order(step.momentum_init, lambda s, g: step.momentum(s, g, decay=0.9)),
            "adam": first_order(step.adam_init, lambda s, g: step.adam(s, g)),
            **{name: made(name) for name in METHODS},
        },
        {
            "pure": lambda m: PURE.spd_inverse(m, xp=compat),
            "native: potrf, checked, trsm": lambda m: own.spd_inverse(m, xp=compat),
            "potrf, checked, inverse of the factor": lambda m: explicit.spd_inverse(m, xp=compat),
            "inv": cp.linalg.inv,
        },
    )


FRAMEWORKS = {"torch": with_torch, "jax": with_jax, "cupy": with_cupy}


def quartiles(values: list[float]) -> list[float]:
    return [float(f"{q:.5g}") for q in np.quantile(values, (0.25, 0.5, 0.75))]


def tried(f: Callable[[], Any]) -> Any:
    """What the function returns, or where it failed; a GPU's hour is not lost to one contender."""
    try:
        return f()
    except Exception:
        return {"error": traceback.format_exc(limit=-3)}


def failed(x: Any) -> bool:
    return isinstance(x, dict) and "error" in x


def steps_of(framework: Framework, methods: list[str], sizes: Sizes) -> dict[str, Any]:
    """Milliseconds a step of each contender, and the ratio to SGD, round by round."""

    def repeat(one: Callable[[], Any]) -> Any:
        last = None
        for _ in range(sizes.cycle):
            last = one()
        return last

    def warm(begin: Callable[..., Any]) -> Callable[[], Any]:
        one, epoch_end = begin(problem_of(sizes), sizes)
        framework.elapsed(lambda: repeat(one))
        epoch_end()
        framework.elapsed(lambda: repeat(one))
        return one

    ready = {
        name: tried(lambda name=name: warm(framework.contenders[name]))
        for name in ("sgd", "adam", *methods)
    }
    found = {name: one for name, one in ready.items() if failed(one)}
    times: dict[str, list[float]] = {name: [] for name in ready if name not in found}
    for _ in range(sizes.rounds):
        for name, past in times.items():
            past.append(framework.elapsed(lambda n=name: repeat(ready[n])) / sizes.cycle)
    for name, past in times.items():
        ratios = [own / sgd for own, sgd in zip(past, times.get("sgd", past), strict=True)]
        found[name] = {"ms": quartiles(past), "ratio_to_sgd": quartiles(ratios)}
    return found


def inverses_of(framework: Framework, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of each inverse, its residual, and whether it shows that it failed."""

    def host(x: Any) -> np.ndarray:
        return np.asarray(x.get() if hasattr(x, "get") else getattr(x, "cpu", lambda: x)())

    def measure(f: Callable[[Any], Any], m: np.ndarray) -> dict[str, Any]:
        n, array = len(m), framework.array(m)
        residual = np.abs(host(f(array)).astype(np.float64) @ m - np.eye(n)).max()
        past = [framework.elapsed(lambda: f(array)) for _ in range(sizes.repeats)]
        return {"ms": quartiles(past), "residual": float(f"{residual:.3g}")}

    def shows(f: Callable[[Any], Any], n: int) -> bool | str:
        w = np.ones(n, np.float32)
        w[-1] = -0.5
        q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
        try:
            found = host(f(framework.array(((q * w) @ q.T).astype(np.float32))))
        except Exception as error:
            return f"raises {type(error).__name__}"
        return not np.isfinite(found).any()

    found: dict[str, Any] = {}
    for n in sizes.orders:
        x = np.random.default_rng(n).standard_normal((2 * n, n))
        for dtype in ("float32", "float64"):
            m = (x.T @ x / len(x) + 0.1 * np.eye(n)).astype(dtype)
            for name, f in framework.inverses.items():
                own = found.setdefault(name, {}).setdefault(dtype, {})
                own[str(n)] = tried(lambda f=f, m=m: measure(f, m))
    for name, f in framework.inverses.items():
        found[name]["shows_indefinite"] = tried(lambda f=f: shows(f, sizes.orders[-1]))
    return found


def laws(path: str, environment: dict[str, str]) -> dict[str, Any]:
    """Outcomes of the tests with the marker gpu, by array library, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, path],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if not junit.exists():
            return {"error": (done.stdout + done.stderr)[-2000:]}
        cases = list(ElementTree.parse(junit).iter("testcase"))
    counts: Counter[tuple[str, str]] = Counter()
    failures = {}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        library = re.search(r"\b(cupy|torch:cuda|jax:cuda)\b", case.get("name", ""))
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = any(part.tag == "skipped" for part in case)
        outcome = "failed" if bad else "skipped" if skipped else "passed"
        counts[library.group(1) if library else "other", outcome] += 1
        if bad:
            failures[name] = (bad[0].get("message") or "").partition("\n")[0][:300]
    found: dict[str, Any] = {"exit_status": done.returncode, "failures": failures}
    for (library_name, outcome), count in sorted(counts.items()):
        found.setdefault(library_name, {})[outcome] = count
    return found


def machine(gpu: bool) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = platform.processor() or platform.machine()
    if gpu:
        asked = "name,driver_version,memory.total,clocks.current.sm,clocks.max.sm"
        line = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
        device = tried(lambda: subprocess.check_output(line, text=True).strip())
    settings = {name: os.environ.get(name) for name in JAX}
    python = platform.python_version()
    return {"device": device, "python": python, "packages": versions, "environment": settings}


def opened(names: list[str], gpu: bool) -> tuple[dict[str, Framework], dict[str, str]]:
    """Frameworks that see the device, and why the others do not."""
    found, absent = {}, {}
    for name in names:
        try:
            found[name] = FRAMEWORKS[name](gpu)
        except Exception as error:
            if not gpu:
                raise
            absent[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return found, absent


def report(
    sizes: Sizes, names: list[str], methods: list[str], gpu: bool, tests: str | None
) -> dict[str, Any]:
    """All that goes into the file."""
    frameworks, absent = opened(names, gpu)
    if not frameworks:
        raise SystemExit(NO_GPU.format(" or ".join(names)))
    found: dict[str, Any] = {
        "rehearsal": not gpu,
        **machine(gpu),
        "absent": absent,
        "sizes": sizes._asdict(),
        "laws": "not run",
        "frameworks": {},
    }
    if tests is not None:
        # where JAX is built for the CPU alone, asking it for CUDA would end the collection of tests
        seen = {"JAX_PLATFORMS": "cuda,cpu" if gpu and "jax" in frameworks else "cpu"}
        found["laws"] = tried(lambda: laws(tests, {**seen, "NGD_GPU": "1" if gpu else ""}))
    for name, framework in frameworks.items():
        found["frameworks"][name] = {
            "clock": framework.clock,
            "steps": tried(lambda f=framework: steps_of(f, methods, sizes)),
            "inverses": tried(lambda f=framework: inverses_of(f, sizes)),
        }
    return found


def errors(found: Any, path: str = "") -> list[str]:
    """Places of a report where something failed."""
    if not isinstance(found, dict):
        return []
    own = [path] if "error" in found or found.get("failures") else []
    return own + [each for key, x in found.items() for each in errors(x, f"{path}/{key}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--frameworks", default=",".join(FRAMEWORKS))
    parser.add_argument("--methods", default=",".join(METHODS), help="beside sgd and adam")
    parser.add_argument("--tests", default="tests", help="what pytest runs; '' for nothing")
    given = parser.parse_args()
    gpu = given.device == "gpu"
    for name, value in {**JAX, "JAX_PLATFORMS": "cuda,cpu" if gpu else "cpu"}.items():
        os.environ.setdefault(name, value)
    sizes = Sizes() if gpu else TINY
    names, methods = (each.split(",") for each in (given.frameworks, given.methods))
    found = report(sizes, names, methods, gpu, given.tests or None)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    wrong = errors(found)
    print(f"{given.out}: {len(wrong)} failures", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
