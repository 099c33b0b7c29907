"""Data sets of the lab: scikit-learn's handwritten digits, or arrays from an .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ngd_core.lab.errors import UserError, need

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Data", "load"]

PARTS = ("x_train", "y_train", "x_test", "y_test")
TEST_DIGITS = 360


class Data(NamedTuple):
    """Standardised inputs (float32) and class labels (int32) as NumPy arrays.

    Parameters
    ----------
    x_train, x_test : array, shape (N, features) or (N, channels, height, width)
        Inputs, shifted and scaled by the mean and the standard deviation of all training entries.
    y_train, y_test : array, shape (N,)
        Labels ``0, ..., classes - 1``.
    classes : int
        One more than the largest label.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


def load(source: str, limit: int | None = None) -> Data:
    """Read a data set and standardise it.

    Parameters
    ----------
    source : str
        "digits" (1437 training and the last 360 of the 1797 images as test), or the path of an
        .npz file with arrays `x_train`, `y_train`, `x_test`, `y_test`.
    limit : int, optional
        Keep at most this many training and this many test examples, the first ones.

    Returns
    -------
    Data
        Standardised arrays.

    Raises
    ------
    UserError
        If there is no such data set, or the file does not hold usable arrays.
    """
    arrays = _digits() if source == "digits" else _file(source)
    x_train, y_train, x_test, y_test = (arrays[part][:limit] for part in PARTS)
    classes = int(max(y_train.max(), y_test.max())) + 1
    x_train, x_test = x_train.astype("float64"), x_test.astype("float64")
    mean, scale = x_train.mean(), x_train.std() or 1.0
    return Data(
        ((x_train - mean) / scale).astype("float32"),
        y_train.astype("int32"),
        ((x_test - mean) / scale).astype("float32"),
        y_test.astype("int32"),
        classes,
    )


def _digits() -> dict[str, np.ndarray]:
    digits = need("sklearn.datasets", "scikit-learn", "lab").load_digits()
    images, labels = digits.images[:, None], digits.target
    return {
        "x_train": images[:-TEST_DIGITS],
        "y_train": labels[:-TEST_DIGITS],
        "x_test": images[-TEST_DIGITS:],
        "y_test": labels[-TEST_DIGITS:],
    }


def _file(source: str) -> dict[str, np.ndarray]:
    import numpy as np

    path = Path(source)
    if path.suffix != ".npz" or not path.is_file():
        msg = (
            f"There is no data set '{source}'; give 'digits', or the path of an .npz file with "
            f"the arrays {', '.join(PARTS)}."
        )
        raise UserError(msg)
    try:
        if not zipfile.is_zipfile(path):
            msg = "it is no zip archive"
            raise ValueError(msg)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {part: stored[part] for part in PARTS if part in stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = f"The file '{source}' cannot be read as an .npz file of plain arrays: {error}."
        raise UserError(msg) from None
    _check(source, arrays)
    return {part: _as_images(x) if part[0] == "x" else x for part, x in arrays.items()}


def _as_images(x: np.ndarray) -> np.ndarray:
    return x[:, None] if x.ndim == 3 else x


def _check(source: str, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np

    missing = [part for part in PARTS if part not in arrays]
    if missing:
        msg = f"The file '{source}' lacks {', '.join(missing)}; it must hold {', '.join(PARTS)}."
        raise UserError(msg)
    x_train, y_train, x_test, y_test = (arrays[part] for part in PARTS)
    for name, x, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        real = np.isdtype(x.dtype, ("real floating", "integral"))
        if not real or x.ndim not in (2, 3, 4) or x.size == 0 or not np.isfinite(x).all():
            msg = (
                f"{_found(source, f'x_{name}', x)}; expected finite real numbers, (N, features), "
                "(N, height, width) or (N, channels, height, width)"
            )
            raise UserError(msg)
        integers = np.isdtype(labels.dtype, "integral")
        if not integers or labels.shape != x.shape[:1] or labels.min() < 0:
            msg = (
                f"{_found(source, f'y_{name}', labels)}; expected one class label 0, 1, ... for "
                f"each of the {x.shape[0]} inputs"
            )
            raise UserError(msg)
    if x_train.shape[1:] != x_test.shape[1:]:
        msg = (
            f"Inputs in '{source}' differ in shape: {x_train.shape[1:]} in x_train and "
            f"{x_test.shape[1:]} in x_test."
        )
        raise UserError(msg)


def _found(source: str, name: str, x: np.ndarray) -> str:
    return f"The array {name} in '{source}' has dtype {x.dtype} and shape {x.shape}"
