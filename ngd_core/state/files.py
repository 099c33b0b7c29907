"""Named arrays as safetensors files: numbers alone, so that reading one runs no code.

A file's header has one entry more than the notes of whoever wrote it, ``ngd_core``: JSON with the
version of this format, the method with its options, and a SHA-256 digest of all the rest, for
safetensors itself takes numbers that were changed as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ngd_core import _xp
from ngd_core._typing import Array

__all__ = ["Stored", "load", "save"]

VERSION = 1
OWN = "ngd_core"
OF_SPEED = ("factored_gradient", "ops")
"""Options of methods that change no state."""
NUMBERS = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


class Stored(NamedTuple):
    """What a file holds.

    Parameters
    ----------
    arrays : dict of str to numpy array
        As they were saved.
    notes : dict of str to str
        As they were saved.
    method : str or None
        Name of the method, such as "KFAC".
    options : dict
        Its options, for ``ngd_core.KFAC(**options)``; those of speed alone, ``ops`` and
        ``factored_gradient``, are left out.
    """

    arrays: dict[str, Array]
    notes: dict[str, str]
    method: str | None
    options: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    *,
    method: Any = None,
    **notes: str,
) -> None:
    """Write named arrays, all or nothing.

    Whenever the process, or the machine, is stopped, the file is the old one or the new one; a
    process that was stopped may leave a further file, whose name begins with a dot.

    Parameters
    ----------
    path : path
        File; one that is there is replaced, by a rename after everything is on the disk.
    arrays : mapping of str to array
        Of NumPy, or of a library whose arrays NumPy can read or copy from its device.
    method : Method, optional
        Whose state this is; its name and options are kept.
    **notes : str
        Kept in the file's header.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors (extra ``files``).
    TypeError
        If a note is no string, or an array has numbers that NumPy does not know (bfloat16).
    ValueError
        If a note is called ``ngd_core``.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "a"), {"x": np.ones(1)}, step="3")
    ...     load(os.path.join(folder, "a"))[:2]
    ({'x': array([1.])}, {'step': '3'})
    """
    _need_safetensors()
    from safetensors.numpy import save as serialised

    if OWN in notes:
        msg = f"A note is called {OWN!r}, the name of the file's own entry; give it another name."
        raise ValueError(msg)
    for name, note in notes.items():
        if not isinstance(note, str):
            msg = f"The note {name!r} is a {type(note).__name__}; give a string."
            raise TypeError(msg)
    rows = {name: _row(name, x) for name, x in arrays.items()}
    about = {"version": VERSION, **_described(method)}
    about["sha256"] = _digest(rows, notes, about)
    data = serialised(rows, metadata={**notes, OWN: json.dumps(about)})
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    _settle(target.parent)


def load(path: str | os.PathLike[str], *, method: Any = None) -> Stored:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path
        File.
    method : Method, optional
        Whose state is expected.

    Returns
    -------
    Stored
        Arrays, notes, the method's name and options.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors (extra ``files``).
    OSError
        If the file is not there, or cannot be read.
    ValueError
        If it is damaged, cut off, of something else, of a later version, or of another method.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> from ngd_core import KFAC
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "a"), {"x": np.ones(2)}, method=KFAC())
    ...     stored = load(os.path.join(folder, "a"))
    >>> stored.arrays["x"], stored.method, stored.options["damping_split"]
    (array([1., 1.]), 'KFAC', 'pi')
    """
    _need_safetensors()
    from safetensors import SafetensorError, safe_open

    where = os.fspath(path)
    with Path(path).open("rb"):
        pass  # the system's own words for what cannot be read
    try:
        with safe_open(path, framework="numpy") as file:
            notes = dict(file.metadata() or {})
            if OWN not in notes:
                msg = f"The file {where!r} is of something else than ngd_core; name a state of its."
                raise ValueError(msg)
            about = _read(notes.pop(OWN), where)
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, AttributeError, TypeError) as error:
        # the last two: numbers of a type that NumPy does not know
        msg = f"The file {where!r} is damaged, or no safetensors file ({error}); take an older one."
        raise ValueError(msg) from error
    written = about.pop("sha256", None)
    if written != _digest(arrays, notes, about):
        raise ValueError(_damaged(where))
    _compare(about, method, where)
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in about["options"].items()
    }
    return Stored(arrays, notes, about["method"], options)


def _need_safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ModuleNotFoundError as error:
        msg = (
            "Files of states need the package safetensors, which is not installed; "
            "install it with: pip install 'ngd-core[files]'"
        )
        raise ModuleNotFoundError(msg) from error


def _row(name: str, x: Any) -> Any:
    """Array as NumPy's, by rows in memory: safetensors writes memory, whatever the strides."""
    import numpy as np

    x = np.from_dlpack(x, device="cpu") if _xp.is_other(x) else np.asarray(_xp.on_host(x))
    if x.dtype.name not in NUMBERS:
        msg = f"The array {name!r} holds {x.dtype.name}; cast it, to float32 for example."
        raise TypeError(msg)
    return np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")


def _digest(arrays: Mapping[str, Any], notes: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """SHA-256 of everything that is read from a file, however it is laid out."""
    names = sorted(arrays)
    outline = [[name, arrays[name].dtype.name, list(arrays[name].shape)] for name in names]
    found = hashlib.sha256(json.dumps([about, notes, outline], sort_keys=True).encode())
    for name in names:
        found.update(arrays[name].reshape(-1).view("u1"))
    return found.hexdigest()


def _described(method: Any) -> dict[str, Any]:
    if method is None:
        return {"method": None, "options": {}}
    fields = [field.name for field in dataclasses.fields(method) if field.name not in OF_SPEED]
    options = {name: getattr(method, name) for name in fields}
    return {"method": type(method).__name__, "options": json.loads(json.dumps(options))}


def _read(text: str, where: str) -> dict[str, Any]:
    """Own entry of a header, unless it is of a later version."""
    try:
        about = json.loads(text)
        version = about["version"]
        later = version > VERSION
        if not later:
            about["method"], about["options"].items()
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(_damaged(where)) from error
    if later:
        msg = (
            f"The file {where!r} is of version {version}, and this ngd_core reads {VERSION}; "
            "update ngd_core."
        )
        raise ValueError(msg)
    return dict(about)


def _damaged(where: str) -> str:
    return (
        f"The file {where!r} is damaged: what it holds has not the digest that was written with "
        "it; take an older one."
    )


def _compare(about: Mapping[str, Any], method: Any, where: str) -> None:
    """Refuse a state of another method, or of other options."""
    if method is None:
        return
    wanted = _described(method)
    if about["method"] != wanted["method"]:
        msg = f"The file {where!r} is of {about['method']}, expected {wanted['method']}."
        raise ValueError(msg)
    for name in sorted({*about["options"], *wanted["options"]}):
        got, own = (each["options"].get(name) for each in (about, wanted))
        if got != own:
            msg = (
                f"The file {where!r} is of {about['method']} with {name}={got!r}, expected "
                f"{own!r}; use the option of the file, or pass no method to take it nonetheless."
            )
            raise ValueError(msg)


def _settle(folder: Path) -> None:
    """Have a rename on the disk, where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
