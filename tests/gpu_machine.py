"""What the tests that need a GPU begin with."""

import pytest

from skoptim._devices import cuda


def need_device():
    """Skip the calling module, saying why, where nothing can run on a GPU."""
    try:
        cuda.require_device()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs a CUDA device: {error}", allow_module_level=True)
