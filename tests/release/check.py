"""Look at what `make dist` built, and use the wheel as a stranger would.

``python -m release.check ../dist``, in tests, looks into both archives, then installs the wheel
into an empty environment of each supported Python on the PATH (or of those named by ``--python``),
and runs the ``ngd`` command there, in a folder away from the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from release.archives import ROOT, faults

NEWEST = 20
IMPORTS = """
import sys
from importlib.util import find_spec

import ngd_core
import ngd_core.reference

for name in ("ngd_core", "ngd_torch", "ngd_jax", "ngd_cupy"):
    origin = find_spec(name).origin
    assert not origin.startswith(sys.argv[1]), f"{name} comes from the tree: {origin}"
for name in ("torch", "jax", "cupy"):
    assert find_spec(name) is None, f"{name} is installed, so this environment proves nothing"
"""
COMPARE = "compare --steps 20 --models mlp --limit 400 --batch-size 128 --out first"
INSPECT = "inspect --model mlp --examples 16 --out second"
CHECK = "check --backend numpy --json check.json"


def pythons(path: str | None = None, root: Path = ROOT) -> list[str]:
    """Supported interpreters on the PATH that start, one a minor version."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    oldest = int(project["requires-python"].removeprefix(">=3."))
    named = (shutil.which(f"python3.{minor}", path=path) for minor in range(oldest, NEWEST))
    return [name for name in named if name and _version(name)] or [sys.executable]


def _version(python: str) -> str:
    """What an interpreter calls itself; nothing if it does not start, as a stale launcher."""
    said = subprocess.run([python, "--version"], check=False, capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else ""


def use(python: str, wheel: Path, folder: Path, root: Path = ROOT) -> None:
    """Install the wheel into an empty environment of this Python, and run it in `folder`."""
    environment = folder / "venv"
    _run([python, "-m", "venv", str(environment)], folder)
    own = str(environment / "bin" / "python")
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-c", str(root / "constraints.txt"), f"{wheel}[lab,checks]"], folder)
    _run([own, "-m", "pip", "check"], folder)
    _run([own, "-I", "-c", IMPORTS, str(root)], folder)
    ngd = str(environment / "bin" / "ngd")
    for words in ("--help", COMPARE, INSPECT, CHECK):
        _run([ngd, *words.split()], folder)
    assert json.loads((folder / "first" / "results.json").read_text()), "ngd compare wrote nothing"
    assert (folder / "second" / "index.html").read_text(), "ngd inspect wrote nothing"
    assert json.loads((folder / "check.json").read_text())["ok"], "ngd check found a fault"


def _run(command: list[str], folder: Path) -> None:
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    clean["OMP_NUM_THREADS"] = "1"
    print("$", " ".join(word if "\n" not in word else "..." for word in command), flush=True)
    subprocess.run(command, cwd=folder, env=clean, stdin=subprocess.DEVNULL, check=True)


def main(words: Iterable[str] | None = None) -> int:
    """Check a folder of archives; the exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", action="append", help="an interpreter (repeatable)")
    arguments = parser.parse_args(None if words is None else list(words))
    folder = arguments.folder.resolve()
    if wrong := faults(folder):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    print("Both archives hold what they should.")
    [wheel] = folder.glob("*.whl")
    for python in arguments.python or pythons():
        print(f"The wheel in an empty environment of {_version(python)}", flush=True)
        with tempfile.TemporaryDirectory() as away:
            try:
                use(python, wheel, Path(away))
            except subprocess.CalledProcessError as error:
                print(f"{error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
