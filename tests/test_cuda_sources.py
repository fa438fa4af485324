"""The CUDA side as far as it goes without a device: every kernel compiles, every call fits.

NVRTC comes from a pip wheel and compiles what the device would ask for, with the device's options.
Whether the kernels compute the right thing is for ``test_gpu.py``, on a machine with a GPU.
"""

import ast
import ctypes
import gc
import inspect
import re
import subprocess
import sys
import weakref
from functools import cache
from importlib import resources
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse as sp

from skoptim import losses
from skoptim._devices import cpu, cuda, cuda_launch, cuda_recording
from skoptim._devices import kernel_sources as sources
from skoptim._devices.cuda_launch import Moving
from skoptim._native import core
from skoptim.linear_model import SGDClassifier
from skoptim.optimizers._base import COMMON

ARCHITECTURES = ("sm_70", "sm_80", "sm_90")

# Where float32 kernels are meant to use double precision: sums over many samples or steps.
IN_DOUBLE = {
    "pay_columns",
    "start_ledger",
    # Sums of whole numbers in units of a power of two.
    "scatter",
    "add_scattered",
    "scattered_squares",
    "apply_listed",
    "apply_derived",
    "elementwise_loss",
    "multinomial_loss",
    "gradient_squares",
    "clipping_scale",
    "dot",
    "add_up",
    "pair_products",
    "descend",
    "ascend",
    "end_step",
}
# These add the weights that are averaged to a sum in double, and do nothing else in it.
AVERAGING = {"apply", "apply_columns", "shrink_groups"}


@cache
def nvrtc():
    """Return the NVRTC library of the wheel nvidia-cuda-nvrtc-cu12."""
    package = find_spec("nvidia.cuda_nvrtc")
    assert package is not None, "NVRTC is missing: pip install 'skoptim[test]'"
    folder = Path(next(iter(package.submodule_search_locations))) / "lib"
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))


def call(function, *arguments):
    """Call an NVRTC function and check its status."""
    status = getattr(nvrtc(), function)(*arguments)
    assert status == 0, f"{function} returned {status}"


def text(program, what):
    """Return one of the outputs of a program: its log, PTX or CUBIN."""
    size = ctypes.c_size_t()
    call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def compiled(file, expressions, architecture, what):
    """Compile a source file; return the code and the lowered name of each expression.

    Fails with the compiler's log.
    """
    program = ctypes.c_void_p()
    code = sources.source(file).encode()
    call("nvrtcCreateProgram", ctypes.byref(program), code, file.encode(), 0, None, None)
    for expression in expressions:
        call("nvrtcAddNameExpression", program, expression.encode())
    options = [*sources.OPTIONS, *sources.CUPY_OPTIONS, f"-arch={architecture}"]
    status = nvrtc().nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
    )
    assert status == 0, f"{file} for {architecture}:\n{text(program, 'ProgramLog').decode()}"
    names = {}
    for expression in expressions:
        lowered = ctypes.c_char_p()
        call("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(lowered))
        names[expression] = lowered.value.decode()
    output = text(program, what)
    call("nvrtcDestroyProgram", ctypes.byref(program))
    return output, names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", sources.FILES)
def test_every_instantiation_compiles(file, architecture):
    expressions = [expression for where, expression in sources.instantiations() if where == file]
    binary, names = compiled(file, expressions, architecture, "CUBIN")
    assert len(set(names.values())) == len(expressions)
    missing = [expression for expression, name in names.items() if name.encode() not in binary]
    assert not missing


@cache
def float_kernels(file):
    """Return (kernel name, template arguments, PTX) of each float32 instantiation of a file."""
    wanted = {
        kernel.expression(*arguments): (kernel.name, arguments)
        for kernel in sources.kernels().values()
        if kernel.file == file
        for arguments in product(*(sources.choices()[p] for p in kernel.template))
        if "float64" not in arguments
    }
    ptx, names = compiled(file, list(wanted), "compute_80", "PTX")
    entry = re.compile(r"\.entry (\w+)\(.*?\n\{(.*?)\n\}", re.DOTALL)
    bodies = dict(entry.findall(ptx.decode()))
    return [(*wanted[expression], bodies[name]) for expression, name in names.items()]


@pytest.mark.parametrize("file", sources.FILES)
def test_no_double_precision_slips_into_float_kernels(file):
    found = {
        name for name, _, body in float_kernels(file) if re.search(r"^\s+[a-z@].*\.f64", body, re.M)
    }
    names = {name for name, _, _ in float_kernels(file)}
    assert found == (IN_DOUBLE | AVERAGING) & names
    for name, _, body in float_kernels(file):
        if name in AVERAGING:
            assert not re.search(r"^\s+(div|sqrt|rcp|neg|setp)[\w.]*\.f64", body, re.M)


def test_rules_are_not_contracted():
    # As on the CPU; a fused multiply-add would round once instead of twice. pow is the library's.
    contracted = {
        arguments[0]
        for name, arguments, body in float_kernels("cuda/rules.cu")
        if name.startswith("apply") and re.search(r"\bfma\.", body)
    }
    assert contracted == {"ftrl_power"}


def test_everything_that_the_cpu_compiles_has_kernels():
    choices = sources.choices()
    assert set(choices["Rule"]) == set(core.describe_rules())
    assert set(choices["Activation"]) == set(core.describe_activations())
    public = {getattr(losses, name) for name in losses.__all__} - {losses.Loss}
    # The softmax takes whole rows and has a kernel of its own.
    assert set(choices["Loss"]) | {"multinomial"} == {loss.name for loss in public}
    assert "multinomial_loss" in sources.kernels()


def test_sources_are_whole():
    for file in sources.FILES:
        assert '#include "' not in sources.source(file)


# Calls of the kernels.


def test_numbers_that_move_with_different_counters_are_refused():
    with pytest.raises(AssertionError):
        cuda_launch._spread({"first": Moving(0, 1, object()), "step": Moving(0, 1, object())})


def launches():
    """Return (kernel name, keywords, whether more come from a dictionary) of each launch."""
    return [
        (node.args[0].value, [keyword.arg for keyword in node.keywords if keyword.arg != "grid"])
        for module in (cuda, cuda_recording)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch"
    ]


@pytest.mark.parametrize(("kernel", "keywords"), launches())
def test_launches_name_the_parameters_of_their_kernel(kernel, keywords):
    wanted = {parameter.name for parameter in sources.kernels()[kernel].parameters}
    # Numbers that may move are given as one, see cuda_launch.
    per_step = {name for name in wanted if name.endswith("_per_step")}
    assert per_step == {f"{name}_per_step" for name in wanted & set(sources.MOVING)}
    assert ("counter" in wanted) == bool(per_step)
    wanted -= per_step | {"counter"}
    given = {keyword for keyword in keywords if keyword is not None}
    assert given <= wanted
    if None not in keywords:
        assert given == wanted


def test_every_kernel_is_launched():
    assert {kernel for kernel, _ in launches()} == set(sources.kernels())


def test_constants_agree_with_the_sources():
    sizes = f"block_size = {cuda_launch.BLOCK_SIZE}, warp_size = {cuda_launch.WARP_SIZE};"
    assert sizes in sources.source("cuda/rules.cu")
    assert f"most = {cuda._MOST_FREQUENT};" in sources.source("cuda/sparse.cu")
    words = f"n_words = {cuda.SCATTERED_WIDTH} * Frequent::most;"
    assert words in sources.source("cuda/sparse.cu")
    assert COMMON[cuda._GROUP_L1] == "group_l1"
    of_cpu = resources.files("skoptim._native").joinpath("cpu_units.hpp").read_text()
    assert f"constexpr int64_t sampled = {cuda._SAMPLED_ROWS};" in of_cpu


@pytest.mark.parametrize(
    ("width", "size"), [(0, 1), (1, 1), (2, 2), (3, 4), (17, 32), (32, 32), (500, 32)]
)
def test_tiles_are_powers_of_two(width, size):
    assert cuda_launch.tile_size(width) == size


def test_moving_numbers():
    counter = object()
    moving = 3 + 10 * Moving(0, 1, counter)
    assert (moving.offset, moving.per_step, moving.counter) == (3, 10, counter)
    batch = (moving + -3) // 5
    assert (batch.offset, batch.per_step) == (0, 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        moving // 4


def test_moving_numbers_are_spread_over_the_parameters_of_a_kernel():
    counter = object()
    spread = cuda_launch._spread({"first": Moving(7, 2, counter), "step": 4, "n": 9})
    assert spread == {
        "first": 7,
        "first_per_step": 2,
        "step": 4,
        "step_per_step": 0,
        "n": 9,
        "counter": counter,
    }
    assert cuda_launch._spread({"step": 4})["counter"] is None


def test_memory_of_recorded_launches_is_kept(monkeypatch):
    monkeypatch.setattr(cuda_launch, "cupy", lambda: np)
    kept = []
    cuda_launch.empty(3, np.float32)
    with cuda_launch.keeping(kept):
        arrays = [cuda_launch.empty(4, np.float32), cuda_launch.empty((2, 3), np.float64)]
    cuda_launch.empty(5, np.float32)
    assert all(a is b for a, b in zip(arrays, kept, strict=True))


# The same primitives as on the CPU.


def parameters(function):
    """Return the parameters of a Python or compiled function: names, and what inspect knows."""
    if hasattr(function, "__nb_signature__"):
        arguments = function.__nb_signature__[0][0].partition("(")[2].partition(") ->")[0]
        return [name for name in re.findall(r"(\w+):", arguments) if name != "self"]
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


def names_only(found):
    return [p if isinstance(p, str) else p[0] for p in found]


def cpu_primitives():
    return sorted(
        name
        for name, value in vars(cpu).items()
        if not name.startswith("_")
        and callable(value)
        and value.__module__ in (cpu.__name__, core.__name__)
    )


@pytest.mark.parametrize("name", cpu_primitives())
def test_primitives_have_the_signatures_of_the_cpu(name):
    here, there = parameters(getattr(cuda, name)), parameters(getattr(cpu, name))
    if not all(isinstance(p, tuple) for p in there):
        here = names_only(here)
    assert here == there


def updater_methods():
    # A whole epoch in one call is the CPU's alone.
    return sorted(
        name for name in vars(core.UpdaterFloat64) if not name.startswith("_") and name != "train"
    )


@pytest.mark.parametrize("method", updater_methods())
def test_updaters_have_the_methods_of_the_cpu(method):
    there = parameters(getattr(core.UpdaterFloat64, method))
    assert names_only(parameters(getattr(cuda.Updater, method))) == there


#: What native code alone reads, and working sets, which are made of native passes.
OF_NATIVE_CODE = {"native", "longest_row", "columns", "n_bytes"}


def test_matrices_have_the_attributes_of_the_cpu():
    host = cpu.Matrix(sp.csr_matrix(np.eye(3)))
    used = {name for name in dir(host) if not name.startswith("_")} - OF_NATIVE_CODE
    set_in_init = set(re.findall(r"self\.(\w+)", inspect.getsource(cuda.Matrix.__init__)))
    assert used <= set_in_init | set(vars(cuda.Matrix))


def test_a_batch_lets_go_of_its_data():
    # In a cycle of references, memory on the device would wait for Python's collector.
    touched = cuda.Touched(object())
    batch, uses = weakref.ref(touched), gc.isenabled()
    gc.disable()
    try:
        assert touched.native is touched
        del touched
        assert batch() is None
    finally:
        if uses:
            gc.enable()


def test_constants_of_the_cpu_exist():
    assert cuda.name == "cuda"
    assert cuda.LINEAR_BATCH_SIZE > cpu.LINEAR_BATCH_SIZE
    assert isinstance(cuda, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        cuda.nonsense  # noqa: B018


# Without CuPy.


@pytest.fixture
def without_cupy(monkeypatch):
    """Make ``import cupy`` fail, also where it is installed."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda_launch.cupy.cache_clear()
    yield
    cuda_launch.cupy.cache_clear()


def test_nothing_imports_cupy_before_it_is_needed():
    code = (
        "import sys, skoptim.linear_model, skoptim.neural_network, skoptim._devices.cuda;"
        "assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("without_cupy")
def test_missing_cupy_is_told_in_one_line():
    with pytest.raises(ImportError) as caught:
        cuda.require_device()
    message = str(caught.value)
    assert 'pip install "skoptim[cuda12]"' in message
    assert "\n" not in message


@pytest.mark.usefixtures("without_cupy")
def test_estimators_say_that_cupy_is_missing():
    X, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(ImportError, match=re.escape('pip install "skoptim[cuda12]"')):
        SGDClassifier(device="cuda").fit(X, y)
