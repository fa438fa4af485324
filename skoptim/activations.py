"""Activations of the hidden layers: compiled ones by name, or your own (f, derivative) pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skoptim._native import core

__all__ = ["ACTIVATIONS", "Activation", "get_activation"]

_COMPILED = core.describe_activations()

#: Names of the compiled activations.
ACTIVATIONS: tuple[str, ...] = tuple(sorted(_COMPILED))


class Activation:
    """An activation as the network uses it.

    Attributes
    ----------
    name : str or None
        Of a compiled activation.
    needs_input : bool
        Whether the derivative needs the input as well as the output.
    """

    name: str | None

    def __init__(self, name: str):
        self.name = name
        self.needs_input: bool = _COMPILED[name]["needs_input"]

    def forward(self, device: Any, z: Any, bias: Any, a: Any) -> None:
        """Z += bias, a = f(z); `a` may be `z` unless `needs_input`."""
        device.activation_forward(self.name, z, bias, a)

    def backward(self, device: Any, z: Any, a: Any, delta: Any, sums: Any) -> None:
        """Delta *= f'(z), in place; its column sums go to `sums`."""
        device.activation_backward(self.name, z, a, delta, sums)


class _CallableActivation(Activation):
    name = None

    def __init__(self, function: Callable, derivative: Callable):
        self.function, self.derivative = function, derivative
        self.needs_input = True

    def forward(self, device: Any, z: Any, bias: Any, a: Any) -> None:
        z += bias
        a[...] = self.function(z)

    def backward(self, device: Any, z: Any, a: Any, delta: Any, sums: Any) -> None:
        delta *= self.derivative(z)
        device.column_sums(delta, sums)


def get_activation(activation: Any) -> Activation:
    """Return the activation of a name, or of a pair of callables.

    Parameters
    ----------
    activation : str or tuple of two callables
        A name in `ACTIVATIONS`, or ``(f, derivative)``: functions of an array that return an array
        of the same shape. Use module-level functions if the model is to be pickled.

    Returns
    -------
    activation : Activation

    Raises
    ------
    ValueError
        If it is neither.
    """
    if isinstance(activation, str) and activation in _COMPILED:
        return Activation(activation)
    if (
        isinstance(activation, tuple | list)
        and len(activation) == 2
        and all(callable(f) for f in activation)
    ):
        return _CallableActivation(*activation)
    raise ValueError(
        f"activation={activation!r} is not known: use one of {list(ACTIVATIONS)}, or a pair of "
        "callables (f, derivative)."
    )
