"""Optimizers: hyper-parameters only; the state is separate and belongs to the fitted model."""

from skoptim.optimizers._base import Optimizer, OptimizerState
from skoptim.optimizers.adadelta import Adadelta
from skoptim.optimizers.adagrad import Adagrad
from skoptim.optimizers.adam import Adam, Adamax, AdamW, Nadam
from skoptim.optimizers.ftrl import FTRL, NormalizedFTRL
from skoptim.optimizers.lbfgs import LBFGS
from skoptim.optimizers.lion import Lion
from skoptim.optimizers.proximal_gradient import ProximalGradient
from skoptim.optimizers.rmsprop import RMSprop
from skoptim.optimizers.sgd import SGD

__all__ = [
    "FTRL",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Nadam",
    "NormalizedFTRL",
    "Optimizer",
    "OptimizerState",
    "ProximalGradient",
    "RMSprop",
    "get_optimizer",
]

_BY_NAME: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls
    for cls in (
        SGD,
        Adagrad,
        RMSprop,
        Adadelta,
        Adam,
        AdamW,
        Adamax,
        Nadam,
        FTRL,
        LBFGS,
        Lion,
    )
} | {"normalized_ftrl": NormalizedFTRL, "proximal_gradient": ProximalGradient}


def get_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """Return an optimizer from its lower-case name or an instance.

    Parameters
    ----------
    optimizer : str or Optimizer
        A name, as ``"adam"`` or ``"proximal_gradient"``, stands for the default settings. An
        instance is returned as it is.

    Returns
    -------
    optimizer : Optimizer

    Raises
    ------
    ValueError
        If the name is unknown, or a class was given instead of an instance.

    Examples
    --------
    >>> from skoptim.optimizers import get_optimizer
    >>> get_optimizer("adam")
    Adam()
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        raise ValueError(
            f"optimizer must be an instance, got the class {optimizer.__name__}; "
            f"write optimizer={optimizer.__name__}()."
        )
    if isinstance(optimizer, str) and optimizer in _BY_NAME:
        return _BY_NAME[optimizer]()
    raise ValueError(
        f"optimizer={optimizer!r} is not known: use one of {sorted(_BY_NAME)}, or an instance of a "
        "class of skoptim.optimizers (your own may subclass Optimizer)."
    )
