"""The CUDA sources as NVRTC is given them, and the list of all kernels that may be asked for.

What is here needs no CuPy: the device and the tests compile from one list, with one set of options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from posixpath import dirname, join, normpath

from skoptim._native import core

#: What the kernels are compiled with. Without contraction to fused multiply-adds a rule rounds as
#: it does on the CPU. Division and square root are the correctly rounded ones, NVRTC's default.
OPTIONS = ("--std=c++17", "--fmad=false")

#: What `cupy.RawModule` adds of its own; part of what the tests compile with.
CUPY_OPTIONS = ("--device-as-default-execution-space", "-ftz=true")

#: Threads of a block, but for kernels that say otherwise; `block_size` in grid.cuh.
BLOCK_SIZE = 256

FILES = ("cuda/rules.cu", "cuda/network.cu", "cuda/sparse.cu", "cuda/quasi_newton.cu")

#: Parameters that may move with the steps of a recording: each has a ``*_per_step`` beside it.
MOVING = ("first", "stream", "step", "to", "batch")

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_KERNEL = re.compile(
    r"(?:template <([^>]*)>\s*)?__global__ (?:SKOPTIM_BLOCK\((\d+)\) )?void (\w+)\(([^)]*)\)"
)
_PARAMETER = re.compile(r"(?:const )?(\w+)(\*?) (\w+)")
_LISTED = re.compile(r'X\("(\w+)", (\w+)')


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: a scalar, or a pointer to an array."""

    name: str
    type: str
    is_array: bool


@dataclass(frozen=True)
class Kernel:
    """One ``__global__`` function (template) of the sources."""

    name: str
    file: str
    template: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    block_size: int

    def expression(self, *arguments: str) -> str:
        """Return the C++ name of an instantiation.

        Parameters
        ----------
        *arguments : str
            One of `choices` for each template parameter: "adam", "float32", ...
        """
        types = [
            choices()[parameter][argument]
            for parameter, argument in zip(self.template, arguments, strict=True)
        ]
        suffix = f"<{', '.join(types)}>" if types else ""
        return f"skoptim::device::{self.name}{suffix}"


@cache
def source(file: str) -> str:
    """Return a source file with its own headers in place of the ``#include`` lines.

    CuPy's cache on disk knows a kernel by its source and options; a header that it does not see
    could change behind its back.
    """
    return _inline(file, set())


def _inline(file: str, seen: set[str]) -> str:
    def replace(include: re.Match) -> str:
        header = normpath(join(dirname(file), include[1]))
        if header in seen:
            return ""
        seen.add(header)
        return _inline(header, seen)

    text = files("skoptim._native").joinpath(file).read_text(encoding="utf-8")
    return _INCLUDE.sub(replace, text.replace("#pragma once\n", ""))


@cache
def kernels() -> Mapping[str, Kernel]:
    """Return every kernel of the sources by name."""
    found = {}
    for file in FILES:
        for template, block_size, name, parameters in _KERNEL.findall(source(file)):
            found[name] = Kernel(
                name,
                file,
                tuple(parameter.split()[-1] for parameter in template.split(",") if parameter),
                tuple(
                    Parameter(parameter, type_, bool(star))
                    for type_, star, parameter in _PARAMETER.findall(parameters)
                ),
                int(block_size or BLOCK_SIZE),
            )
    return found


@cache
def choices() -> Mapping[str, Mapping[str, str]]:
    """Return, for each template parameter by its name, what it may be: name -> C++ type."""
    rules = core.describe_rules()
    return {
        "T": {"float32": "float", "float64": "double"},
        "Rule": {name: _qualified(rule["cpp_type"]) for name, rule in rules.items()},
        **{
            f"{kind.title()}Rule": {
                name: _qualified(rule["cpp_type"]) for name, rule in rules.items() if rule[kind]
            }
            for kind in ("uniform", "derived")
        },
        "Activation": {
            name: _qualified(activation["cpp_type"])
            for name, activation in core.describe_activations().items()
        },
        "Loss": {name: _qualified(type_) for name, type_ in _LISTED.findall(_losses())},
    }


def _losses() -> str:
    return files("skoptim._native").joinpath("losses.hpp").read_text(encoding="utf-8")


def _qualified(type_: str) -> str:
    return f"skoptim::device::{type_}"


def instantiations() -> list[tuple[str, str]]:
    """Return (source file, C++ name) of everything the device may ask for."""
    return [
        (kernel.file, kernel.expression(*arguments))
        for kernel in kernels().values()
        for arguments in product(*(choices()[parameter] for parameter in kernel.template))
    ]
