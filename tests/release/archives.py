"""What the wheel and the source archive hold, against the tree that they were made from."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Collection, Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]
NOTES = ("CHANGELOG.md", "CITATION.cff")


def expected(sources: Iterable[str], packages: Iterable[str]) -> set[str]:
    """Files of the import packages in a tree, as a wheel names them."""
    found = set()
    for package in packages:
        parent = PurePosixPath(package).parent
        inside = (name for name in sources if name.startswith(f"{package}/"))
        found |= {str(PurePosixPath(name).relative_to(parent)) for name in inside}
    return found


def wheel_faults(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """Files that are missing from a wheel, and those that do not belong there."""
    about = {name.partition("/")[2] for name in names if ".dist-info/" in name}
    needed = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    packages = {name.partition("/")[0] for name in wanted}
    typed = {f"{package}/py.typed" for package in packages}
    code = {name for name in names if ".dist-info/" not in name}
    return [
        *(f"the wheel lacks {name}" for name in sorted({*wanted, *typed} - code)),
        *(f"the wheel holds {name}, no file of the library" for name in sorted(code - {*wanted})),
        *(f"the wheel lacks its {name}" for name in sorted(needed - about)),
    ]


def sdist_faults(names: Collection[str], tracked: Collection[str]) -> list[str]:
    """Files of the tree that a source archive lacks, and those that nobody put into the tree."""
    inside = {name.partition("/")[2] for name in names} - {"", "PKG-INFO"}
    missing, alien = sorted({*tracked} - inside), sorted(inside - {*tracked})
    return [
        *(f"the source archive lacks {name}" for name in missing),
        *(f"the source archive holds {name}, which is not in the tree" for name in alien),
    ]


def metadata_faults(text: str, readme: str, version: str) -> list[str]:
    """What an index would refuse in a wheel's metadata, or show wrongly."""
    message: Message = Parser().parsestr(text)
    found = []
    try:
        Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        found += [f"the metadata is not valid: {error}" for error in group.exceptions]
    for field, wanted in {
        "Version": version,
        "License-Expression": "Apache-2.0",
        "Description-Content-Type": "text/markdown",
    }.items():
        if message[field] != wanted:
            found.append(f"{field} is {message[field]!r}, not {wanted!r}")
    if str(message.get_payload()).strip() != readme.strip():
        found.append("the description is not README.md")
    return found


def version_faults(version: str, changelog: str, citation: str) -> list[str]:
    """A version has three numbers and a section in the changelog, and the citation has it too."""
    found = []
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}((a|b|rc)\d+|\.dev\d+)?", version):
        found.append(f"the version is {version!r}, expected three numbers as 0.1.0")
    final = re.split(r"a|b|rc|\.dev", version)[0]
    if not re.search(rf"^## \[{re.escape(final)}\]", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section [{final}]")
    if f"\nversion: {version}\n" not in citation:
        found.append(f"CITATION.cff is not of version {version}")
    return found


def faults(folder: Path, root: Path = ROOT) -> list[str]:
    """All that is wrong with the archives in a folder."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    version = project["project"]["version"]
    stem = f"ngd_core-{version}"
    wheel, sdist = folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"
    others = sorted({path.name for path in folder.iterdir()} ^ {wheel.name, sdist.name})
    if others:
        return [f"{folder} should hold {wheel.name} and {sdist.name}; look at {', '.join(others)}"]
    tracked = _tracked(root)
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"{stem}.dist-info/METADATA").decode()
    with tarfile.open(sdist) as archive:
        inside = [member.name for member in archive.getmembers() if not member.isdir()]
    return [
        *wheel_faults(names, expected(tracked, packages)),
        *sdist_faults(inside, tracked),
        *metadata_faults(metadata, (root / "README.md").read_text(), version),
        *version_faults(version, *((root / name).read_text() for name in NOTES)),
    ]


def _tracked(root: Path) -> list[str]:
    """Files of the tree: those that git knows, or will when they are added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [name for name in said.stdout.splitlines() if (root / name).exists()]
