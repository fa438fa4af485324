"""Arrays of other libraries at the boundary: native ones inside, the caller's outside.

Native are NumPy, SciPy, CuPy and cupyx; all else of the library knows only these. Other arrays are
exchanged through DLPack, without a copy where the memory is one that NumPy or CuPy can read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn import get_config
from sklearn.utils._array_api import check_same_namespace, get_namespace_and_device, move_to
from sklearn.utils.validation import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    validate_data,
)

from skoptim._devices import cpu, cuda_device, device_of, is_cuda_array, to_host
from skoptim.optimizers import OptimizerState

# kDLCUDA and kDLCUDAManaged of dlpack.h.
_DLPACK_CUDA = (2, 13)
_NUMERIC = "biufc"
# Of an array so many numbers are copied at once.
_FINGERPRINT_CHUNK = 2**18
_FINGERPRINT_FACTOR = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio (Knuth, 6.4).


# On the way in.


def native(array: Any) -> Any:
    """Return an array of another library as NumPy's, or CuPy's if it lies on a CUDA device.

    Native arrays, and what is not an array (lists, data frames, None), are returned as they are.

    Raises
    ------
    ValueError
        If the array lies on another CUDA device than the current one.
    ImportError, RuntimeError
        If the array lies on a CUDA device, and CuPy cannot be used.
    """
    if is_cuda_array(array):
        values = array.data if hasattr(array, "tocsr") else array
        _require_current(values.device.id)
        return array
    if not _is_foreign(array):
        return array
    if getattr(array, "requires_grad", False):
        array = array.detach()
    kind, number = array.__dlpack_device__()
    if kind not in _DLPACK_CUDA:
        return move_to(array, xp=np, device="cpu")
    _require_current(number)
    return cuda_device().xp.from_dlpack(array)


def _require_current(number: int) -> None:
    """Raise ValueError if a CUDA device is not the current one."""
    current = cuda_device().xp.cuda.Device().id
    if number != current:
        raise ValueError(
            f"An array lies on CUDA device {number}, and device {current} is the current one; call "
            f"within 'with cupy.cuda.Device({number}):'."
        )


def host(array: Any) -> Any:
    """Return an array of any library as NumPy or SciPy; what is not an array as it is."""
    array = native(array)
    return to_host(array) if is_cuda_array(array) else array


def fingerprint(array: Any) -> tuple[int, int]:
    """Return numbers that tell the contents of a native array from others, on any device."""
    xp, size, total = device_of(array).xp, array.size, 0
    bits = xp.ascontiguousarray(array).reshape(-1).view(np.dtype(f"u{array.dtype.itemsize}"))
    # Sums of whole numbers do not depend on their order. Odd factors lose no bit.
    factors = 2 * xp.arange(min(size, _FINGERPRINT_CHUNK), dtype=xp.uint64) + 1
    for first in range(0, size, _FINGERPRINT_CHUNK):
        words = bits[first : first + _FINGERPRINT_CHUNK].astype(xp.uint64)
        words *= factors[: len(words)]
        total = (total * _FINGERPRINT_FACTOR + int(words.sum())) % 2**64
    return size, total


def moved(array: Any, device: Any) -> Any:
    """Return parameters or state as an array of a device (`_devices.cpu` or `_devices.cuda`).

    Sparse coefficients stay so on the CPU.
    """
    if device is cpu:
        return host(array)
    array = native(array)
    return device.asarray(array.toarray() if hasattr(array, "toarray") else array)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the arrays of an attribute: an array, some in a list or dict, a state."""
    if isinstance(value, OptimizerState):
        return replace(value, slots=mapped(function, value.slots), carries=dict(value.carries))
    if isinstance(value, dict):
        return {name: mapped(function, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, item) for item in value)
    return function(value)


def _is_foreign(array: Any) -> bool:
    return (
        not isinstance(array, np.ndarray | np.generic)
        and hasattr(array, "__dlpack__")
        and not is_cuda_array(array)
    )


# On the way out.


@dataclass(frozen=True)
class Place:
    """Where the arrays of a caller lie; everything follows `X`, so results are given back there.

    Attributes
    ----------
    on_cuda : bool
        Whether the native arrays there are CuPy's.
    namespace, device : module and object, or None
        Those of another library, under scikit-learn's array-API dispatch.
    """

    on_cuda: bool = False
    namespace: Any = None
    device: Any = None

    @classmethod
    def of(cls, X: Any) -> Place:
        """Return the place of an array; of what is not an array, the host."""
        if is_cuda_array(X):
            return cls(on_cuda=True)
        if not _is_foreign(X):
            return cls()
        on_cuda = X.__dlpack_device__()[0] in _DLPACK_CUDA
        if not get_config()["array_api_dispatch"]:
            return cls(on_cuda)
        namespace, _, device = get_namespace_and_device(X)
        return cls(on_cuda, namespace, device)

    def native(self, array: Any) -> Any:
        """Return a native array as the native one of this place."""
        if not self.on_cuda:
            return to_host(array) if is_cuda_array(array) else array
        if is_cuda_array(array):
            return array
        if sp.issparse(array):
            from cupyx.scipy.sparse import csr_matrix

            return csr_matrix(array)
        return cuda_device().xp.asarray(array)

    def give(self, array: Any) -> Any:
        """Return a native array in the caller's library, if that has its type of numbers."""
        if array.dtype.kind not in _NUMERIC:
            return array  # Strings and objects are NumPy's.
        array = self.native(array)
        if self.namespace is None or hasattr(array, "tocsr"):
            return array
        if self.on_cuda:
            return self.namespace.from_dlpack(array)
        return move_to(array, xp=self.namespace, device=self.device)


def check_same_place(X: Any, estimator: Any, *, attribute: str, method: str) -> None:
    """Raise scikit-learn's ValueError if, under dispatch, X is not where the estimator was fitted.

    Parameters
    ----------
    X : array
        As the caller gave it.
    estimator : estimator
    attribute : str
        An attribute of the estimator that is a dense array, or a SciPy matrix.
    method : str
        The method called.
    """
    if get_config()["array_api_dispatch"]:
        if is_cuda_array(X) and hasattr(X, "tocsr"):
            X = X.data  # scikit-learn knows no sparse matrices of cupyx.
        check_same_namespace(X, estimator, attribute=attribute, method=method)


# Validation.


def check_data(estimator: Any, X: Any, y: Any = "no_validation", *, dtype: Any, reset: bool) -> Any:
    """Return native X, or X and y, checked as scikit-learn's `validate_data` checks them.

    Parameters
    ----------
    estimator : estimator
        Its `n_features_in_` and `feature_names_in_` are set with `reset`, else compared.
    X : array-like, SciPy or cupyx sparse matrix of shape (n_samples, n_features)
        CuPy's stays on its device, whether or not dispatch is enabled.
    y : array-like on the host
    dtype : dtype or list of dtype
        What `X` may be; all else becomes the first.
    reset : bool

    Raises
    ------
    ValueError
        In the words of scikit-learn.
    """
    alone = isinstance(y, str) and y == "no_validation"
    if not alone and (isinstance(y, str | bytes) or np.isscalar(y)):
        raise ValueError(f"y={y!r} is one value; it must be an array with one for each sample.")
    if not reset and _is_known_csr(X, dtype, estimator) and (alone or _is_plain(y, X.shape[0])):
        name = type(estimator).__name__
        if not _has_finite_sum(X.data):
            assert_all_finite(X, estimator_name=name, input_name="X")
        if alone:
            return X
        if y.dtype.kind == "f" and not _has_finite_sum(y):
            assert_all_finite(y, estimator_name=name, input_name="y")
        return X, y
    if not is_cuda_array(X):
        targets = {} if alone else {"y": y, "multi_output": True}
        return validate_data(
            estimator,
            X,
            **targets,
            accept_sparse="csr",
            accept_large_sparse=True,
            dtype=dtype,
            order="C",
            reset=reset,
        )
    X = _check_on_device(X, dtype, type(estimator).__name__)
    if alone:
        return validate_data(estimator, X, reset=reset, skip_check_array=True)
    X, y = validate_data(estimator, X, y, reset=reset, skip_check_array=True)
    y = check_array(
        y,
        accept_sparse="csr",
        ensure_2d=False,
        dtype=None,
        input_name="y",
        estimator=estimator,
    )
    check_consistent_length(X, y)
    return X, y


def _is_known_csr(X: Any, dtype: Any, estimator: Any) -> bool:
    """Whether only the values of X need a look: the full check takes 0.1 ms, as do 400 texts."""
    return (
        sp.issparse(X)
        and X.format == "csr"
        and X.ndim == 2
        and X.shape[0] > 0
        and X.shape[1] == getattr(estimator, "n_features_in_", None)
        and X.dtype in (dtype if isinstance(dtype, list) else [dtype])
        and "feature_names_in_" not in vars(estimator)
    )


def _has_finite_sum(values: Any, xp: Any = np) -> bool:
    """Whether the sum is finite: then all values are; if not, it may be the sum that overflows.

    It takes no memory.
    """
    with np.errstate(all="ignore"):
        return bool(xp.isfinite(values.sum()))


def _is_plain(y: Any, n_samples: int) -> bool:
    """Whether y is a plain array of numbers, one for each sample."""
    return type(y) is np.ndarray and y.shape == (n_samples,) and y.dtype.kind in "biuf"


def _check_on_device(X: Any, dtype: Any, name: str) -> Any:
    """Check a CuPy array or cupyx matrix, which `check_array` takes under dispatch alone."""
    xp = cuda_device().xp
    if X.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{X}\n")
    if X.ndim < 2:
        given = "scalar array" if X.ndim == 0 else "1D array"
        raise ValueError(
            f"Expected 2D array, got {given} instead:\narray={X}.\n"
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
            "or array.reshape(1, -1) if it contains a single sample."
        )
    if X.ndim > 2:
        raise ValueError(f"Found array with dim {X.ndim}, while dim <= 2 is required by {name}.")
    allowed = dtype if isinstance(dtype, list) else [dtype]
    target = X.dtype if X.dtype in allowed else np.dtype(allowed[0])
    if hasattr(X, "tocsr"):
        X = X.tocsr() if X.dtype == target else X.tocsr().astype(target)
        values = X.data
    else:
        X = values = xp.asarray(X, dtype=target, order="C")
    for size, what in zip(X.shape, ("sample", "feature"), strict=True):
        if size == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is required "
                f"by {name}."
            )
    if not get_config()["assume_finite"] and not _has_finite_sum(values, xp):
        if bool(xp.isnan(values).any()):
            raise ValueError(f"Input X contains NaN.\n{name} does not accept missing values.")
        if bool(xp.isinf(values).any()):
            raise ValueError(
                f"Input X contains infinity or a value too large for {values.dtype!r}."
            )
    return X


# Copies of fitted estimators.


def on_host(state: dict[str, Any], names: Any) -> dict[str, Any]:
    """Return the attributes of an estimator with the arrays of some of them on the host."""
    state = copy(state)
    for name in names:
        if name in state:
            state[name] = mapped(host, state[name])
    return state
