"""The `ngd` command: options in; for a mistake one sentence out, never a traceback."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from ngd_core.lab import check
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.errors import UserError, need, unknown
from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.settings import Settings

__all__ = ["main"]

T = TypeVar("T", int, float)
USER_ERROR, INTERRUPTED = 2, 130
FIRST_MODELS, FIRST_METHODS = "cnn,mlp", "kfac,sgd,adam"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after `ngd`; the process's own if not given.

    Returns
    -------
    int
        0; 1 if `ngd check` found a law that does not hold; 2 after a mistake that was explained
        on the standard error stream.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        text = str(error).rstrip(".")
        end = "" if text.endswith("?") else "."
        print(f"ngd: {text[0].upper()}{text[1:]}{end}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("ngd: Stopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises where argparse prints its usage and leaves."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _run(words: list[str]) -> int:
    parser = _Parser(
        prog="ngd", description="Natural-gradient methods at work on real data.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    options = {}
    for name, (handler, summary, table) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for option, how in table.items():
            command.add_argument(option, **how)
        command.set_defaults(handler=handler)
        options[name] = table
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    arguments, extra = parser.parse_known_args(words)
    if extra:
        word = extra[0].partition("=")[0]
        kind = "option" if word.startswith("-") else "argument"
        raise UserError(unknown(kind, word, options.get(words[0], COMMANDS)))
    if "handler" in arguments:
        return arguments.handler(arguments) or 0
    parser.print_help()
    return 0


def _compare(arguments: argparse.Namespace) -> None:
    settings = Settings(
        backend=arguments.backend,
        data=arguments.data,
        models=arguments.models,
        methods=arguments.methods,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        evaluate_every=arguments.evaluate_every,
        target=arguments.target,
        grids=_each(
            "--grid", arguments.grid, {name: METHODS[name].rates for name in arguments.methods}
        ),
        damping=_each(
            "--damping",
            arguments.damping,
            {
                name: damping
                for name in arguments.methods
                if (damping := METHODS[name].damping) is not None
            },
        ),
        out=arguments.out,
        probe=arguments.agreement,
        limit=arguments.limit,
        threads=arguments.threads,
    )
    need("rich", "rich", "lab")
    need("matplotlib", "matplotlib", "lab")
    from ngd_core.lab.compare import compare

    compare(settings, overwrite=arguments.overwrite, save=arguments.save)


def _inspect(arguments: argparse.Namespace) -> None:
    need("rich", "rich", "lab")
    from ngd_core.lab.inspect import Inspect, inspect

    settings = Inspect(
        model=arguments.model,
        data=arguments.data,
        weights=arguments.weights,
        backend=arguments.backend,
        examples=arguments.examples,
        damping=arguments.damping,
        seed=arguments.seed,
        threads=arguments.threads,
        out=arguments.out,
    )
    inspect(settings, overwrite=arguments.overwrite)


def _each(
    option: str, given: Iterable[tuple[str | None, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Values by method: the defaults, replaced by those given for all methods or for one."""
    values = dict(defaults)
    for method, value in given:
        if method is not None and method not in defaults:
            msg = f"{option} names the method '{method}', which has none in this comparison"
            raise UserError(msg)
        values.update(dict.fromkeys(defaults if method is None else [method], value))
    return values


def _number(
    convert: Callable[[str], T], allowed: Callable[[T], bool], wanted: str
) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value) or not allowed(value):
            msg = f"'{text}' is not {wanted}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return read


_count = _number(int, lambda value: value >= 1, "a whole number of at least 1")
_seed = _number(int, lambda value: value >= 0, "a whole number of at least 0")
_positive = _number(float, lambda value: value > 0, "a number above 0")


def _name(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(unknown(kind, text, known))
        return text

    return read


def _names(kind: str, known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    one = _name(kind, known)

    def read(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one(word.strip()) for word in text.split(",")))

    return read


def _rates(text: str) -> tuple[float, ...]:
    return tuple(sorted({_positive(word) for word in text.split(",")}))


def _by_method(read: Callable[[str], Any]) -> Callable[[str], tuple[str | None, Any]]:
    """Read ``METHOD=VALUE`` or ``VALUE``."""

    def read_both(text: str) -> tuple[str | None, Any]:
        method, equals, value = text.rpartition("=")
        return (_name("method", METHODS)(method) if equals else None), read(value)

    return read_both


_COMPARE: dict[str, dict[str, Any]] = {
    "--backend": {
        "type": _name("backend", BACKENDS),
        "default": "numpy",
        "help": f"{', '.join(BACKENDS)}: arrays of that library, with torch nn.Module models and "
        "ngd_torch, with jax Equinox and Flax models and ngd_jax (default: numpy)",
    },
    "--data": {
        "default": "digits",
        "metavar": "digits|FILE.npz",
        "help": "scikit-learn's 8x8 digits, or a file with the arrays x_train, y_train, x_test, "
        "y_test (default: digits)",
    },
    "--models": {
        "type": _names("model", MODELS),
        "default": FIRST_MODELS,
        "metavar": "NAMES",
        "help": f"of {','.join(MODELS)} (default: {FIRST_MODELS})",
    },
    "--methods": {
        "type": _names("method", METHODS),
        "default": FIRST_METHODS,
        "metavar": "NAMES",
        "help": f"of {','.join(METHODS)} (default: {FIRST_METHODS})",
    },
    "--steps": {"type": _count, "default": 400, "help": "steps of a run (default: 400)"},
    "--batch-size": {"type": _count, "default": 512, "help": "examples a step (default: 512)"},
    "--seed": {
        "type": _seed,
        "default": 0,
        "help": "of initial values, batch order and noise (default: 0)",
    },
    "--target": {
        "type": _positive,
        "default": 0.002,
        "metavar": "LOSS",
        "help": "training loss to reach (default: 0.002)",
    },
    "--evaluate-every": {
        "type": _count,
        "default": 5,
        "metavar": "STEPS",
        "help": "steps between two measurements of the training loss (default: 5)",
    },
    "--grid": {
        "type": _by_method(_rates),
        "action": "append",
        "default": [],
        "metavar": "[METHOD=]LR,LR,...",
        "help": "learning rates to try, for every method or for one (repeatable; default: "
        + "; ".join(f"{n}={','.join(map(str, m.rates))}" for n, m in METHODS.items())
        + ")",
    },
    "--damping": {
        "type": _by_method(_positive),
        "action": "append",
        "default": [],
        "metavar": "[METHOD=]NUMBER",
        "help": "added to the curvature (repeatable; default: "
        + "; ".join(f"{n}={m.damping}" for n, m in METHODS.items() if m.damping is not None)
        + ")",
    },
    "--agreement": {
        "type": _number(int, lambda value: value >= 0, "a whole number of at least 0"),
        "default": 64,
        "metavar": "EXAMPLES",
        "help": "examples on which each method's direction is compared with the exact natural "
        "gradient, at three points of its best run; 0 for no comparison (default: 64)",
    },
    "--threads": {
        "type": _count,
        "default": 1,
        "help": "threads of the linear algebra that NumPy and PyTorch call (default: 1)",
    },
    "--limit": {"type": _count, "metavar": "N", "help": "use the first N examples only"},
    "--out": {
        "default": "ngd-compare",
        "metavar": "DIR",
        "help": "folder for results.json and compare.png (default: ngd-compare)",
    },
    "--save": {
        "action": "store_true",
        "help": "write each method's trained weights to MODEL-METHOD.safetensors in the folder, "
        "for ngd inspect (not with jax)",
    },
    "--overwrite": {"action": "store_true", "help": "replace results that are there"},
}

INSPECTED = ("numpy", "torch")
"""Backends of `ngd inspect`."""

_INSPECT: dict[str, dict[str, Any]] = {
    "--model": {
        "type": _name("model", MODELS),
        "default": FIRST_MODELS.partition(",")[0],
        "metavar": "NAME",
        "help": f"of {','.join(MODELS)} (default: {FIRST_MODELS.partition(',')[0]})",
    },
    "--data": _COMPARE["--data"],
    "--weights": {
        "metavar": "FILE.safetensors",
        "help": "trained weights, named as in a PyTorch state_dict, as ngd compare --save writes "
        "them (default: initial values)",
    },
    "--backend": {
        "type": _name("backend", INSPECTED),
        "default": "numpy",
        "help": "numpy: methods on arrays; torch: nn.Module models and the optimizers of ngd_torch "
        "(default: numpy)",
    },
    "--examples": {
        "type": _count,
        "default": 64,
        "metavar": "N",
        "help": "of the training set, the first N (default: 64)",
    },
    "--damping": {
        "type": _positive,
        "default": 0.001,
        "metavar": "NUMBER",
        "help": "added to the Fisher of the mean loss; SNGD, FNGD and SOFIM keep their own "
        "(default: 0.001)",
    },
    "--seed": {"type": _seed, "default": 0, "help": "of initial values (default: 0)"},
    "--threads": _COMPARE["--threads"],
    "--out": {
        "default": "ngd-inspect",
        "metavar": "DIR",
        "help": "folder for inspect.json and index.html (default: ngd-inspect)",
    },
    "--overwrite": _COMPARE["--overwrite"],
}

COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], str, dict[str, Any]]] = {
    "compare": (
        _compare,
        "train small networks with several methods, each at its best learning rate of a grid; "
        "a table, a picture and the numbers",
        _COMPARE,
    ),
    "inspect": (
        _inspect,
        "look at a model: its Fisher information, spectra, and methods beside the exact natural "
        "gradient; tables and a page",
        _INSPECT,
    ),
    "check": (
        check.run,
        "hold an array library, an adapter or a preconditioner to the laws of this library",
        check.OPTIONS,
    ),
}
