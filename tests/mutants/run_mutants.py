"""Every mutant of the catalogue is caught by the test that it names: `make mutants`.

The library and its tests are copied once for each worker. A mutant is written into the copy, its
catcher runs there in a process of its own and must fail by what it asserts, and the file is put
back. Catchers pass before that on the copy as it is.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys

import pytest
from mutants.mutant import ROOT, catalogue

ENTRIES = [(stem, mutant) for stem, mutants in catalogue().items() for mutant in mutants]
BY_FILE: dict[str, list[str]] = {}
for _, entry in ENTRIES:
    catchers = BY_FILE.setdefault(entry.catcher.partition("::")[0], [])
    if entry.catcher not in catchers:
        catchers.append(entry.catcher)

# what an edit that is no Python, rather than a mistake in a formula, ends in
BROKEN = re.compile(r"^E\s+(SyntaxError|NameError|ImportError|AttributeError)", re.MULTILINE)
RAISED = re.compile(r"^E\s+(?:\w+\.)*(assert|\w+(?:Error|Group|Warning|Exception))\b", re.MULTILINE)


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """Copy of the source tree; its bytecode is checked by content, since edits are quick."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("ngd_core", "backends", "tests", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(root, quiet=1, invalidation_mode=mode)
    return root


def run(root, *nodes):
    """Exit code and output of some tests, run in a tree."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environment = keep | {
        "NGD_PROFILE": "default",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "backends")]),
    }
    options = ["-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *nodes]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", BY_FILE)
def test_catchers_pass_without_a_mutant(copy, file):
    code, output = run(copy, *BY_FILE[file])
    assert code == 0, output
    assert f"{len(BY_FILE[file])} passed" in output, output


def test_the_copy_is_what_is_tested(copy):
    """A mutant that breaks the import breaks it, so the copy is what Python finds."""
    environment = os.environ | {"PYTHONPATH": str(copy)}
    found = subprocess.check_output(
        [sys.executable, "-c", "import ngd_core; print(ngd_core.__file__)"],
        cwd=copy,
        env=environment,
        text=True,
    )
    assert found.startswith(str(copy)), found


@pytest.mark.parametrize(
    ("stem", "mutant"), [pytest.param(s, m, id=f"{s}: {m.name}") for s, m in ENTRIES]
)
def test_mutant_is_caught(copy, record_property, stem, mutant):
    path = copy / mutant.file
    original = path.read_text()
    assert original.count(mutant.old) == 1, f"stale: {mutant.old!r} in {mutant.file}"
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        code, output = run(copy, mutant.catcher)
    finally:
        path.write_text(original)
    raised = RAISED.findall(output)
    record_property("mutant", (stem, mutant.name, mutant.catcher, raised[0] if raised else "-"))
    assert code == 1, f"exit code {code}; 1 is that of a failing test\n{output}"
    assert " failed" in output.splitlines()[-1], output
    assert " error" not in output.splitlines()[-1], output
    assert not BROKEN.search(output), f"the edit is broken Python\n{output}"
