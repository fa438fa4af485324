"""Write the parity fixtures of the update rules and the schedules, from torch and Keras.

Run it by hand, in an environment that holds both packages (the test suite needs neither)::

    pip install torch keras
    python tests/make_fixtures.py

Every number in ``tests/fixtures/*.npz`` is another library's own output. A rule file holds

``gradients``
    The gradient sequence, (n_steps, n_parameters), the same for every configuration.
``configs``
    JSON: configuration name -> our optimizer's name, our constructor's arguments, and whether
    the start is ``w0`` or zeros.
``<name>/w`` and ``<name>/slot/<our slot name>``
    The parameters and each slot after every step, (n_steps, n_parameters).
``<name>/initial/<our slot name>``
    Given only where the library's own slot was set before the first step.

How settings are ported
-----------------------
torch
    ``weight_decay`` of every class but AdamW is coupled: our ``l2``. ``alpha`` of RMSprop is our
    ``rho``; ``betas`` are ``beta_1`` and ``beta_2``; ``eps`` is ``epsilon``.
Keras
    * SGD and RMSprop keep ``learning_rate`` inside the momentum buffer (SGD with a minus sign);
      the buffer is divided by it here, which gives ours while the rate is constant.
    * Adadelta and Lion: same formula, same settings. ``weight_decay`` is our decoupled one.
    * Nadam is ours with ``momentum_decay=1``.
    * Ftrl: ``learning_rate`` is ``alpha``, ``l2`` is twice ``l2_regularization_strength``, and
      ``linear`` starts at zero, where ours starts so that the weights are kept; so the runs
      begin at w = 0, or with ``linear`` set to the seed.
    * Adam, AdamW (epsilon is not bias-corrected), Adagrad, RMSprop (epsilon inside the root) and
      Adamax (epsilon added to the norm instead of to the gradient) have no port for an epsilon
      that counts. They are run with an epsilon of 1e-300, which every sum absorbs, so
      everything else of the formula is still compared.
    * ``clip_norm`` has no fixture: torch adds 1e-6 to the norm, and Keras' result has the
      precision of float32. ``clipvalue`` is our ``clip_value``.
"""

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

FOLDER = Path(__file__).parent / "fixtures"
N_STEPS = 28
NEGLIGIBLE = 1e-300


def make_problem():
    """Return the start and a gradient sequence from 1e-12 to 1e8 with exact zeros."""
    rng = np.random.default_rng(20240229)
    scales = np.array([1e-12, 1e-6, 1e-2, 1.0, 1e3, 1e8, 1.0, 1.0])
    gradients = rng.standard_normal((N_STEPS, scales.size)) * scales
    # Parameter 6 jumps between all the scales; parameter 7 is rare: silent at first, then seldom.
    gradients[:, 6] *= 10.0 ** rng.uniform(-12, 8, N_STEPS)
    gradients[:, 7] *= rng.random(N_STEPS) < 0.3
    gradients[:3, 7] = 0.0
    gradients[rng.random(gradients.shape) < 0.06] = 0.0
    gradients[:2, 3] = [0.75, -0.75]  # a moving average that comes close to zero
    w0 = rng.standard_normal(scales.size)
    w0[[0, 2]] = 0.0  # so that steps far below the size of a weight are seen at full precision
    return w0, gradients


W0, GRADIENTS = make_problem()


class Recorder:
    """Collects the runs of one library into the arrays of one file."""

    def __init__(self):
        self.configs = {}
        self.arrays = {"w0": W0, "gradients": GRADIENTS}

    def add(self, name, optimizer, params, w, slots, *, start="w0", initial=None):
        assert name not in self.configs, name
        self.configs[name] = {"optimizer": optimizer, "params": params, "start": start}
        self.arrays[f"{name}/w"] = np.array(w)
        for slot, values in slots.items():
            self.arrays[f"{name}/slot/{slot}"] = np.array(values)
        for slot, values in (initial or {}).items():
            self.arrays[f"{name}/initial/{slot}"] = np.array(values)
        for key, values in self.arrays.items():
            assert np.isfinite(values).all(), key

    def save(self, filename):
        np.savez_compressed(FOLDER / filename, configs=json.dumps(self.configs), **self.arrays)


def torch_run(cls, kwargs, slot_names):
    """Run one torch optimizer; return w and the slots (by torch's names) after every step."""
    w = torch.tensor(W0.copy(), requires_grad=True)
    optimizer = cls([w], **kwargs)
    trajectory, slots = [], {slot: [] for slot in slot_names}
    for g in GRADIENTS:
        w.grad = torch.tensor(g.copy())
        optimizer.step()
        trajectory.append(w.detach().numpy().copy())
        for slot in slot_names:
            slots[slot].append(optimizer.state[w][slot].detach().numpy().copy())
    return trajectory, slots


# torch class -> our name, {torch slot: our slot} that always exist, {torch slot: (condition, ours)}
TORCH_SLOTS = {
    "SGD": {},
    "Adagrad": {"sum": "accumulator"},
    "RMSprop": {"square_avg": "square_average"},
    "Adadelta": {"square_avg": "square_average", "acc_delta": "delta_average"},
    "Adam": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"},
    "AdamW": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"},
    "Adamax": {"exp_avg": "first_moment", "exp_inf": "infinity_norm"},
    "NAdam": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"},
}
TORCH_OPTIONAL_SLOTS = {
    "momentum": ("momentum_buffer", "momentum_buffer"),
    "centered": ("grad_avg", "gradient_average"),
    "amsgrad": ("max_exp_avg_sq", "max_second_moment"),
}
TORCH_NAMES = {
    "lr": "learning_rate",
    "eps": "epsilon",
    "alpha": "rho",
    "weight_decay": "l2",
}

TORCH_CONFIGS = [
    ("sgd", "SGD", {"lr": 0.03}),
    ("sgd_l2", "SGD", {"lr": 0.05, "weight_decay": 0.2}),
    ("sgd_momentum", "SGD", {"lr": 0.03, "momentum": 0.85}),
    ("sgd_dampening", "SGD", {"lr": 0.03, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    ("sgd_nesterov", "SGD", {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    ("adagrad", "Adagrad", {"lr": 0.2, "eps": 1e-7}),
    ("adagrad_initial", "Adagrad", {"lr": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-4}),
    ("adagrad_l2", "Adagrad", {"lr": 0.1, "eps": 1e-10, "weight_decay": 0.05}),
    ("rmsprop", "RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-6}),
    ("rmsprop_centered", "RMSprop", {"lr": 0.02, "alpha": 0.8, "eps": 1e-5, "centered": True}),
    ("rmsprop_momentum", "RMSprop", {"lr": 0.01, "momentum": 0.7, "weight_decay": 0.3}),
    (
        "rmsprop_both",
        "RMSprop",
        {"lr": 0.01, "alpha": 0.85, "momentum": 0.6, "centered": True, "eps": 1e-7},
    ),
    ("adadelta", "Adadelta", {"lr": 1.0, "rho": 0.9, "eps": 1e-6}),
    ("adadelta_l2", "Adadelta", {"lr": 0.5, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.1}),
    ("adam", "Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
    ("adam_l2", "Adam", {"lr": 0.02, "betas": (0.95, 0.9), "eps": 1e-8, "weight_decay": 0.1}),
    ("adam_amsgrad", "Adam", {"lr": 0.05, "betas": (0.9, 0.7), "amsgrad": True, "eps": 1e-7}),
    ("adamw", "AdamW", {"lr": 0.02, "betas": (0.85, 0.98), "weight_decay": 0.3}),
    (
        "adamw_amsgrad",
        "AdamW",
        {"lr": 0.02, "betas": (0.9, 0.8), "weight_decay": 0.01, "amsgrad": True},
    ),
    ("adamax", "Adamax", {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-5}),
    ("adamax_l2", "Adamax", {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.2}),
    ("nadam", "NAdam", {"lr": 0.01, "betas": (0.85, 0.95), "eps": 1e-6, "momentum_decay": 0.03}),
    ("nadam_l2", "NAdam", {"lr": 0.02, "betas": (0.9, 0.999), "weight_decay": 0.1}),
]


def torch_rules(recorder):
    for name, cls_name, kwargs in TORCH_CONFIGS:
        mapping = dict(TORCH_SLOTS[cls_name])
        for option, (theirs, ours) in TORCH_OPTIONAL_SLOTS.items():
            if kwargs.get(option):
                mapping[theirs] = ours
        cls = getattr(torch.optim, cls_name)
        w, slots = torch_run(cls, kwargs, list(mapping))

        effective = cls([torch.zeros(1, requires_grad=True)], **kwargs).defaults
        params = {}
        for key in set(kwargs) | ({"eps", "alpha", "rho", "betas"} & set(effective)):
            if key == "betas":
                params["beta_1"], params["beta_2"] = effective["betas"]
            elif key == "weight_decay" and cls_name == "AdamW":
                params["weight_decay"] = effective[key]
            else:
                params[TORCH_NAMES.get(key, key)] = effective[key]
        ours = {"NAdam": "Nadam"}.get(cls_name, cls_name)
        recorder.add(name, ours, params, w, {mapping[s]: v for s, v in slots.items()})


def keras_run(optimizer, attributes, w0, initial=None):
    """Run one Keras optimizer; return w and the slots held in `attributes` after every step."""
    w = keras.Variable(w0.copy(), dtype="float64")
    optimizer.build([w])
    for attribute, value in (initial or {}).items():
        getattr(optimizer, attribute)[0].assign(value)
    trajectory, slots = [], {attribute: [] for attribute in attributes}
    for g in GRADIENTS:
        optimizer.apply([torch.tensor(g.copy())], [w])
        trajectory.append(keras.ops.convert_to_numpy(w).copy())
        for attribute in attributes:
            value = getattr(optimizer, attribute)[0]
            assert value.dtype == "float64", attribute
            slots[attribute].append(keras.ops.convert_to_numpy(value).copy())
    return trajectory, slots


KERAS_SLOTS = {
    "SGD": {},
    "Adagrad": {"_accumulators": "accumulator"},
    "RMSprop": {"_velocities": "square_average"},
    "Adadelta": {
        "_accumulated_grads": "square_average",
        "_accumulated_delta_vars": "delta_average",
    },
    "Adam": {"_momentums": "first_moment", "_velocities": "second_moment"},
    "AdamW": {"_momentums": "first_moment", "_velocities": "second_moment"},
    "Adamax": {"_m": "first_moment", "_u": "infinity_norm"},
    "Nadam": {"_momentums": "first_moment", "_velocities": "second_moment"},
    "Lion": {"_momentums": "first_moment"},
}

KERAS_CONFIGS = [
    ("sgd_momentum", "SGD", {"learning_rate": 0.03, "momentum": 0.85}),
    (
        "sgd_nesterov",
        "SGD",
        {"learning_rate": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    ),
    ("sgd_clip_value", "SGD", {"learning_rate": 0.05, "momentum": 0.5, "clipvalue": 0.4}),
    (
        "adagrad",
        "Adagrad",
        {"learning_rate": 0.2, "initial_accumulator_value": 0.2, "epsilon": NEGLIGIBLE},
    ),
    (
        "rmsprop",
        "RMSprop",
        {"learning_rate": 0.02, "rho": 0.9, "momentum": 0.5, "epsilon": NEGLIGIBLE},
    ),
    ("adadelta", "Adadelta", {"learning_rate": 0.7, "rho": 0.9, "epsilon": 1e-5}),
    (
        "adadelta_decay",
        "Adadelta",
        {"learning_rate": 1.0, "rho": 0.95, "epsilon": 1e-6, "weight_decay": 0.05},
    ),
    (
        "adam_amsgrad",
        "Adam",
        {
            "learning_rate": 0.02,
            "beta_1": 0.8,
            "beta_2": 0.9,
            "epsilon": NEGLIGIBLE,
            "amsgrad": True,
        },
    ),
    (
        "adamw",
        "AdamW",
        {
            "learning_rate": 0.02,
            "beta_1": 0.85,
            "beta_2": 0.98,
            "epsilon": NEGLIGIBLE,
            "weight_decay": 0.3,
        },
    ),
    (
        "adamax",
        "Adamax",
        {"learning_rate": 0.03, "beta_1": 0.8, "beta_2": 0.95, "epsilon": NEGLIGIBLE},
    ),
    (
        "nadam",
        "Nadam",
        {"learning_rate": 0.01, "beta_1": 0.85, "beta_2": 0.95, "epsilon": 1e-6},
    ),
    (
        "nadam_decay",
        "Nadam",
        {
            "learning_rate": 0.02,
            "beta_1": 0.9,
            "beta_2": 0.999,
            "epsilon": 1e-4,
            "weight_decay": 0.1,
        },
    ),
    ("lion", "Lion", {"learning_rate": 0.01, "beta_1": 0.8, "beta_2": 0.95}),
    (
        "lion_decay",
        "Lion",
        {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.99, "weight_decay": 0.3},
    ),
]
KERAS_NAMES = {"clipvalue": "clip_value"}


def keras_rules(recorder):
    for name, cls_name, kwargs in KERAS_CONFIGS:
        mapping = dict(KERAS_SLOTS[cls_name])
        momentum = kwargs.get("momentum", 0.0)
        if momentum:
            mapping["momentums" if cls_name == "SGD" else "_momentums"] = "momentum_buffer"
        if kwargs.get("amsgrad"):
            mapping["_velocity_hats"] = "max_second_moment"
        optimizer = getattr(keras.optimizers, cls_name)(**kwargs)
        w, slots = keras_run(optimizer, list(mapping), W0)
        ours = {mapping[attribute]: np.array(values) for attribute, values in slots.items()}
        if momentum:
            rate = -kwargs["learning_rate"] if cls_name == "SGD" else kwargs["learning_rate"]
            ours["momentum_buffer"] = ours["momentum_buffer"] / rate

        params = {KERAS_NAMES.get(key, key): value for key, value in kwargs.items()}
        if cls_name == "Nadam":
            params["momentum_decay"] = 1.0
        recorder.add(name, cls_name, params, w, ours)


FTRL_CONFIGS = [
    # name, our parameters, where the run starts
    ("ftrl", {"alpha": 0.3, "beta": 1.5}, "zeros"),
    ("ftrl_l1", {"alpha": 0.2, "beta": 0.5, "l1": 0.8}, "zeros"),
    ("ftrl_l1_strong", {"alpha": 0.2, "beta": 1.0, "l1": 1e4, "l2": 0.1}, "zeros"),
    ("ftrl_l2", {"alpha": 0.5, "beta": 0.0, "l2": 0.6, "initial_accumulator_value": 0.1}, "zeros"),
    (
        "ftrl_power",
        {"alpha": 0.1, "beta": 1.0, "l1": 0.3, "l2": 0.2, "learning_rate_power": -0.7},
        "zeros",
    ),
    (
        "ftrl_power_low",
        {"alpha": 0.4, "beta": 0.2, "learning_rate_power": -0.25, "l1": 0.05},
        "zeros",
    ),
    (
        "ftrl_seeded",
        {"alpha": 0.3, "beta": 1.0, "l1": 0.2, "l2": 0.4, "initial_accumulator_value": 0.3},
        "w0",
    ),
]


def keras_ftrl(recorder):
    for name, params, start in FTRL_CONFIGS:
        full = {
            "l1": 0.0,
            "l2": 0.0,
            "learning_rate_power": -0.5,
            "initial_accumulator_value": 0.0,
        } | params
        optimizer = keras.optimizers.Ftrl(
            learning_rate=full["alpha"],
            beta=full["beta"],
            l1_regularization_strength=full["l1"],
            l2_regularization_strength=full["l2"] / 2,
            learning_rate_power=full["learning_rate_power"],
            initial_accumulator_value=full["initial_accumulator_value"],
        )
        w0, initial, recorded = np.zeros_like(W0), {}, {}
        if start == "w0":
            w0 = W0
            root = full["initial_accumulator_value"] ** -full["learning_rate_power"]
            seed = -w0 * ((full["beta"] + root) / full["alpha"] + full["l2"])
            seed -= np.sign(w0) * full["l1"]
            initial, recorded = {"_linears": seed}, {"z": seed}
        w, slots = keras_run(optimizer, ["_linears", "_accumulators"], w0, initial)
        ours = {"z": slots["_linears"], "n": slots["_accumulators"]}
        recorder.add(name, "FTRL", params, w, ours, start=start, initial=recorded)


def torch_rates(make, n_steps, rate):
    """Return the learning rate that torch uses at each of the first `n_steps` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates, dtype=np.float64)


def schedules(recorder):
    """Record learning rates; `params` are those of our schedule, steps start at 1 (theirs at 0)."""
    torch_schedules = torch.optim.lr_scheduler
    exponential = {"initial": 0.3, "decay": 0.97}
    step = {"initial": 0.5, "step_size": 7, "gamma": 0.4}
    cosine = {"initial": 0.2, "total_steps": 40, "final": 0.01}
    add = recorder.add_schedule
    add(
        "exponential",
        "Exponential",
        exponential,
        torch_rates(lambda o: torch_schedules.ExponentialLR(o, 0.97), 60, 0.3),
    )
    add(
        "step",
        "Step",
        step,
        torch_rates(lambda o: torch_schedules.StepLR(o, 7, 0.4), 60, 0.5),
    )
    # torch's cosine turns up again after T_max; ours stays, so the runs end there.
    add(
        "cosine",
        "Cosine",
        cosine,
        torch_rates(lambda o: torch_schedules.CosineAnnealingLR(o, 40, 0.01), 41, 0.2),
    )
    add(
        "cosine_to_zero",
        "Cosine",
        {"initial": 1.5, "total_steps": 33},
        torch_rates(lambda o: torch_schedules.CosineAnnealingLR(o, 33), 34, 1.5),
    )
    for name, theirs, ours in [
        ("one_cycle", {"max_lr": 0.4, "total_steps": 50}, {"maximum": 0.4, "total_steps": 50}),
        (
            "one_cycle_linear",
            {
                "max_lr": 2.0,
                "total_steps": 37,
                "pct_start": 0.45,
                "div_factor": 10.0,
                "final_div_factor": 100.0,
                "anneal_strategy": "linear",
            },
            {
                "maximum": 2.0,
                "total_steps": 37,
                "rising_fraction": 0.45,
                "initial_divisor": 10.0,
                "final_divisor": 100.0,
                "annealing": "linear",
            },
        ),
    ]:
        rates = torch_rates(
            lambda o, theirs=theirs: torch_schedules.OneCycleLR(o, cycle_momentum=False, **theirs),
            theirs["total_steps"],
            1.0,
        )
        add(name, "OneCycle", ours, rates)

    def warm_up(optimizer):
        # Linear from 1/(n+1) of the rate, so that step n+1 is the schedule's own first.
        ramp = torch_schedules.LinearLR(optimizer, start_factor=1 / 11, total_iters=10)
        then = torch_schedules.ExponentialLR(optimizer, 0.9)
        return torch_schedules.SequentialLR(optimizer, [ramp, then], milestones=[10])

    add(
        "warmup_exponential",
        "Warmup",
        {"schedule": ["Exponential", {"initial": 0.3, "decay": 0.9}], "warmup_steps": 10},
        torch_rates(warm_up, 50, 0.3),
    )

    numbers = np.arange(60, dtype=np.float64)
    decay = keras.optimizers.schedules.ExponentialDecay(0.4, 12, 0.5)
    add(
        "keras_exponential",
        "Exponential",
        {"initial": 0.4, "decay": 0.5, "decay_steps": 12},
        np.array([float(decay(t)) for t in numbers]),
    )
    decay = keras.optimizers.schedules.CosineDecay(0.4, 35, alpha=0.25)
    add(
        "keras_cosine",
        "Cosine",
        {"initial": 0.4, "total_steps": 35, "final": 0.1},
        np.array([float(decay(t)) for t in numbers]),
    )


class ScheduleRecorder:
    """Collects learning rates, one array per configuration, for steps 1, 2, …"""

    def __init__(self):
        self.configs, self.arrays = {}, {}

    def add_schedule(self, name, schedule, params, rates):
        self.configs[name] = {"schedule": schedule, "params": params}
        self.arrays[f"{name}/rates"] = rates

    def save(self, filename):
        np.savez_compressed(FOLDER / filename, configs=json.dumps(self.configs), **self.arrays)


def main():
    keras.backend.set_floatx("float64")
    torch.set_default_dtype(torch.float64)
    FOLDER.mkdir(exist_ok=True)

    recorder = Recorder()
    torch_rules(recorder)
    recorder.save("torch_rules.npz")

    recorder = Recorder()
    keras_rules(recorder)
    keras_ftrl(recorder)
    recorder.save("keras_rules.npz")

    recorder = ScheduleRecorder()
    schedules(recorder)
    recorder.save("schedules.npz")

    for path in sorted(FOLDER.glob("*.npz")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
