"""Checks and encodings that the estimators share: targets, sample weights, held-out samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, column_or_1d

DTYPES = [np.float64, np.float32]


def encode_labels(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the class index of each label.

    Raises
    ------
    ValueError
        If a label is not among `classes`.
    """
    index = classes.searchsorted(y)
    unknown = classes.take(index, mode="clip") != y  # (What is beyond the last class is not it.)
    if unknown.any():
        raise ValueError(
            f"y contains labels that are not in classes={classes.tolist()}: "
            f"{sorted(set(np.asarray(y)[unknown].tolist()))}. The model knows the classes of its "
            "first fit, or those named in the first call of partial_fit."
        )
    return index.astype(np.int32)


def check_labels(y: Any, *, multilabel: bool, known: bool = False) -> np.ndarray:
    """Return y of a classifier as a 1-D array of labels, or as a 0/1 indicator matrix.

    If the classes are `known`, what the numbers of an array are is left to `encode_labels`.
    """
    if known and isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "biu":
        return y
    check_classification_targets(y)
    kind = type_of_target(y, input_name="y", raise_unknown=True)
    if kind == "multilabel-indicator" and multilabel:
        return np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    if kind not in ("binary", "multiclass"):
        raise ValueError(f"y of type {kind!r} is not supported; expected one label a sample.")
    return column_or_1d(y, warn=True)


def check_weights(
    sample_weight: Any,
    y: Any,
    labels: np.ndarray | None,
    classes: np.ndarray | None,
    class_weight: Any,
) -> np.ndarray | None:
    """Return the product of sample and class weights, or None when all are one.

    Raises
    ------
    ValueError
        If a weight is negative or infinite, or the shapes do not fit.
    """
    weights = None
    if sample_weight is not None:
        weights = _check_sample_weight(
            sample_weight, y, dtype=np.float64, allow_all_zero_weights=True
        )
        if (weights < 0).any():
            raise ValueError("sample_weight must not be negative.")
    if class_weight is not None and labels is not None and classes is not None:
        per_class = compute_class_weight(
            class_weight, classes=classes, y=classes[labels], sample_weight=sample_weight
        )
        if not ((per_class >= 0) & (per_class < np.inf)).all():
            raise ValueError(
                f"class_weight={class_weight!r} must give weights that are finite and not negative."
            )
        weights = per_class[labels] * (1.0 if weights is None else weights)
    return weights


def normalise_weights(weights: np.ndarray | None, dtype: Any) -> np.ndarray | None:
    """Scale weights to a mean of one, so that the objective is the weighted mean loss."""
    if weights is None:
        return None
    total = weights.sum(dtype=np.float64)
    if not total > 0:
        raise ValueError(
            "sample_weight, times class_weight if given, sums to zero: at least one sample must "
            "count."
        )
    return np.ascontiguousarray(weights * (len(weights) / total), dtype=dtype)


def hold_out(
    n_samples: int,
    validation_fraction: float,
    labels: np.ndarray | None,
    random_state: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and to validate on, in proportion to the classes.

    Raises
    ------
    ValueError
        If a class has a single member, or a part would be empty.
    """
    if labels is not None:
        counts = np.bincount(labels)
        if (counts[counts > 0] < 2).any():
            raise ValueError(
                "early_stopping=True holds out samples of every class, and a class of y has only "
                "one member; remove the class, or pass X_val and y_val."
            )
    try:
        train, held = train_test_split(
            np.arange(n_samples),
            test_size=validation_fraction,
            stratify=labels,
            random_state=random_state,
        )
    except ValueError as error:
        raise ValueError(
            f"early_stopping=True cannot hold out validation_fraction={validation_fraction} of "
            f"{n_samples} samples: {error} Raise validation_fraction, or pass X_val and y_val."
        ) from error
    return np.sort(train), np.sort(held)
