"""The compiled core (rules, losses, sparse kernels), and the sources of the CUDA drivers."""

try:
    from skoptim._native import _core as core
except ImportError as error:
    raise ImportError(
        "skoptim's compiled core is missing. If Python is importing the source tree (it is the "
        "current folder, say), install the tree itself with `pip install -e .`, or run Python from "
        "another folder to use an installed copy."
    ) from error

__all__ = ["core"]
