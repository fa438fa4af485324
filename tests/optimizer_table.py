"""The table that drives the tests of optimizers: every public one, in each of its variants."""

from skoptim import optimizers
from skoptim.optimizers import (
    FTRL,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Nadam,
    NormalizedFTRL,
    ProximalGradient,
    RMSprop,
)
from skoptim.schedules import Cosine, InverseScaling, Warmup

# One update per gradient, each weight for itself.
ELEMENTWISE = {
    "sgd": SGD(0.03),
    "sgd-momentum": SGD(0.03, momentum=0.85),
    "sgd-dampening": SGD(0.05, momentum=0.9, dampening=0.4, l2=0.1),
    "sgd-nesterov": SGD(0.02, momentum=0.8, nesterov=True, weight_decay=0.2),
    "sgd-cosine": SGD(Cosine(0.1, total_steps=20, final=0.01), momentum=0.5, clip_value=0.7),
    "sgd-clip_norm": SGD(0.1, clip_norm=2.0, l2=0.05),
    "adagrad": Adagrad(0.2, epsilon=1e-7),
    "adagrad-initial": Adagrad(0.1, initial_accumulator_value=0.3, l2=0.05),
    "adagrad-inverse_scaling": Adagrad(InverseScaling(0.3, power=0.25), weight_decay=0.1),
    "rmsprop": RMSprop(0.02, rho=0.9, epsilon=1e-6),
    "rmsprop-centered": RMSprop(0.02, rho=0.8, epsilon=1e-5, centered=True),
    "rmsprop-momentum": RMSprop(0.01, momentum=0.7, l2=0.3),
    "rmsprop-both": RMSprop(0.01, rho=0.85, momentum=0.6, centered=True, weight_decay=0.1),
    "adadelta": Adadelta(0.7, rho=0.9, epsilon=1e-5, l2=0.1),
    "adam": Adam(0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-6),
    "adam-amsgrad": Adam(0.05, beta_2=0.9, amsgrad=True, l2=0.1),
    "adam-warmup": Adam(Warmup(0.02, warmup_steps=5), clip_value=1.5, weight_decay=0.05),
    "adamw": AdamW(0.02, beta_1=0.85, weight_decay=0.3),
    "adamw-amsgrad": AdamW(0.02, beta_2=0.8, amsgrad=True),
    "adamax": Adamax(0.03, beta_1=0.8, beta_2=0.95, epsilon=1e-5, l2=0.2),
    "nadam": Nadam(0.01, beta_1=0.85, beta_2=0.95, epsilon=1e-6, momentum_decay=0.03),
    "nadam-l2": Nadam(l2=0.1, weight_decay=0.2),
    "ftrl": FTRL(0.3, beta=1.5),
    "ftrl-l1": FTRL(0.2, beta=0.5, l1=0.8, l2=0.1, initial_accumulator_value=0.2),
    "ftrl-power": FTRL(0.1, l1=0.3, l2=0.2, learning_rate_power=-0.7),
    "ftrl-clip": FTRL(0.1, beta=0.2, l1=0.1, clip_value=0.6, clip_norm=5.0),
    "normalized_ftrl": NormalizedFTRL(0.4, beta=0.3),
    "normalized_ftrl-l1": NormalizedFTRL(0.5, l1=0.5, l2=0.1, initial_accumulator_value=0.1),
    "lion": Lion(0.01, beta_1=0.8, beta_2=0.95),
    "lion-decay": Lion(0.02, weight_decay=0.3, l2=0.05),
    "proximal_gradient": ProximalGradient(0.05, l2=0.4),
}

# One outer iteration per pass over the data, through `value_and_grad`.
FULL_BATCH = {
    "lbfgs": LBFGS(),
    "lbfgs-short": LBFGS(history_size=3, max_line_search=10),
    "fista": ProximalGradient(1.0, full_batch=True),
    "ista": ProximalGradient(1.0, full_batch=True, acceleration=False),
}

OPTIMIZERS = ELEMENTWISE | FULL_BATCH

# Rules for which a zero gradient changes nothing, so that a sparse gradient may be taken as it is.
SPARSE_GRADIENTS = {
    "sgd": SGD(0.03),
    "sgd-clip": SGD(0.1, clip_norm=2.0, clip_value=0.5),
    "adagrad": Adagrad(0.2, epsilon=1e-7, initial_accumulator_value=0.1),
    "ftrl": FTRL(0.3, beta=1.5, l1=0.4, l2=0.1),
    "ftrl-power": FTRL(0.1, l1=0.3, learning_rate_power=-0.7),
}


def public_optimizer_classes():
    """Return every class of ``skoptim.optimizers.__all__`` that is an optimizer to be used."""
    public = [getattr(optimizers, name) for name in optimizers.__all__]
    base = optimizers.Optimizer
    return {c for c in public if isinstance(c, type) and issubclass(c, base) and c is not base}
