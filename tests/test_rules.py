"""The update rules: parity with torch and Keras, compiled rules against the NumPy oracle, traps.

Every comparison covers the weights and every slot.
"""

import json
import pickle
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import oracle
import pytest
import scipy.sparse as sp
from optimizer_table import (
    ELEMENTWISE,
    OPTIMIZERS,
    SPARSE_GRADIENTS,
    public_optimizer_classes,
)
from sklearn.base import clone

import skoptim.optimizers as optimizers
from skoptim._devices import cpu
from skoptim._native import core
from skoptim.optimizers import (
    FTRL,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Nadam,
    ProximalGradient,
    RMSprop,
)
from skoptim.optimizers._base import bind_updater
from skoptim.penalties import PenaltyTerms
from skoptim.schedules import Cosine, Step, as_schedule

FOLDER = Path(__file__).parent / "fixtures"
SOURCES = {library: np.load(FOLDER / f"{library}_rules.npz") for library in ("torch", "keras")}
CONFIGS = {
    f"{library}-{name}": (library, name, config)
    for library, source in SOURCES.items()
    for name, config in json.loads(str(source["configs"])).items()
}
INSTRUCTION_SETS = core.available_isas()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Run the test once with each instruction set of this machine."""
    before = core.current_isa()
    core.use_isa(request.param)
    assert core.current_isa() == request.param
    yield request.param
    core.use_isa(before)


def parametrize(table):
    return pytest.mark.parametrize("optimizer", table.values(), ids=table.keys())


def make_gradients(shape, seed=0):
    """Return gradients from 1e-12 to 1e8, a tenth of them exactly zero."""
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal(shape) * 10.0 ** rng.uniform(-12, 8, shape)
    return np.where(rng.random(shape) < 0.1, 0.0, gradients)


def run(optimizer, w, gradients, state=None):
    """Take one step per gradient, in place; return the state and the history of w and the slots."""
    state = optimizer.init(w) if state is None else state
    history = {key: [] for key in ("w", *state.slots)}
    for g in gradients:
        optimizer.step(w, g, state)
        for key, value in {"w": w, **state.slots}.items():
            history[key].append(np.array(value))
    return state, {key: np.array(values) for key, values in history.items()}


def assert_same_state(state, other):
    """Assert that two optimizer states are equal to the last bit."""
    assert state.step == other.step
    assert state.carries == other.carries
    assert state.slots.keys() == other.slots.keys()
    for name, slot in state.slots.items():
        np.testing.assert_array_equal(slot, other.slots[name], err_msg=name)


# --- Every optimizer is here ----------------------------------------------------------------------


def test_every_public_optimizer_is_in_the_table():
    assert {type(optimizer) for optimizer in OPTIMIZERS.values()} == public_optimizer_classes()


def test_every_elementwise_optimizer_has_an_oracle_and_a_fixture():
    names = {type(optimizer).__name__ for optimizer in ELEMENTWISE.values()}
    assert names == set(oracle.RULES)
    recorded = {config["optimizer"] for _, _, config in CONFIGS.values()}
    # A proximal step without a penalty is plain SGD, and FTRL without units of the data plain FTRL;
    # neither library has the ones with.
    assert recorded == names - {"ProximalGradient", "NormalizedFTRL"}


def test_every_instruction_set_of_the_build_is_listed():
    assert INSTRUCTION_SETS[0] == "baseline"
    assert len(set(INSTRUCTION_SETS)) == len(INSTRUCTION_SETS)
    with pytest.raises(ValueError, match="available_isas"):
        core.use_isa("abacus")


# --- Parity with torch and Keras ------------------------------------------------------------------


def load(case):
    """Return the start, the gradients, the expected history and the seeded slots of one run."""
    library, name, config = CONFIGS[case]
    source = SOURCES[library]
    w0 = source["w0"] if config["start"] == "w0" else np.zeros_like(source["w0"])
    expected, initial = {"w": source[f"{name}/w"]}, {}
    for key in source.files:
        if key.startswith(f"{name}/slot/"):
            expected[key.rsplit("/", 1)[1]] = source[key]
        if key.startswith(f"{name}/initial/"):
            initial[key.rsplit("/", 1)[1]] = source[key]
    if config["optimizer"] == "FTRL":
        # Keras keeps the sum of squares itself.
        power = config["params"].get("learning_rate_power", -0.5)
        expected["root"] = expected.pop("n") ** -power
    return w0, source["gradients"], expected, initial


def assert_history(actual, expected):
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        # The floor is for one slot alone: Keras' Adamax adds its epsilon of 1e-300 elsewhere, so
        # that before the first gradient its norm is 0, and ours (as torch's) is 1e-300.
        np.testing.assert_allclose(actual[key], values, rtol=1e-12, atol=1e-299, err_msg=key)
        assert actual[key].dtype == np.float64
    np.testing.assert_array_equal(actual["w"] == 0, expected["w"] == 0)


@pytest.mark.parametrize("library", SOURCES)
def test_fixtures_reach_from_tiny_to_huge(library):
    gradients = SOURCES[library]["gradients"]
    sizes = np.abs(gradients[gradients != 0])
    assert len(gradients) >= 25
    assert sizes.min() < 1e-12
    assert sizes.max() > 1e8
    assert np.mean(gradients == 0) > 0.1


@pytest.mark.parametrize("case", CONFIGS)
def test_oracle_equals_torch_and_keras(case):
    w0, gradients, expected, initial = load(case)
    config = CONFIGS[case][2]
    slots = oracle.init_slots(config["optimizer"], w0, config["params"])
    for name, values in initial.items():
        np.testing.assert_allclose(slots[name], values, rtol=1e-15, err_msg=name)
    w, history = oracle.run(config["optimizer"], w0, gradients, config["params"])
    assert_history({"w": w, **history}, expected)


@pytest.mark.parametrize("case", CONFIGS)
def test_compiled_rule_equals_torch_and_keras(case, isa):
    w0, gradients, expected, _ = load(case)
    config = CONFIGS[case][2]
    optimizer = getattr(optimizers, config["optimizer"])(**config["params"])
    state, history = run(optimizer, w0.copy(), gradients)
    assert state.step == len(gradients)
    assert_history(history, expected)


# --- The compiled rules against the oracle --------------------------------------------------------


def oracle_params(optimizer):
    params = optimizer.get_params(deep=False)
    return {k: v for k, v in params.items() if k not in ("full_batch", "acceleration")}


def oracle_run(optimizer, w, gradients, perturb=lambda key, value: value, **penalty):
    """Run the oracle; return the history of w and of every slot."""
    name, params = type(optimizer).__name__, oracle_params(optimizer)
    slots = oracle.init_slots(name, w, params)
    history = {key: [] for key in ("w", *slots)}
    for t, g in enumerate(gradients, start=1):
        w, g = perturb("w", w), perturb("g", g)
        slots = {key: perturb(key, slot) for key, slot in slots.items()}
        now = {k: v(t) if callable(v) else v for k, v in penalty.items()}
        w, slots = oracle.step(name, w, g, slots, t, params, **now)
        for key, value in {"w": w, **slots}.items():
            history[key].append(value)
    return {key: np.array(values) for key, values in history.items()}


def oracle_with_condition(optimizer, w, gradients, **penalty):
    """Run the oracle; return its history and how far a relative error of 1 would throw it.

    The condition of each value is measured: w, g, every slot and every power (1 - 0.999**t loses
    ten bits of it) are off by a small relative amount, of random sign, in every step of some runs.
    A correctly rounded evaluation of the same
    formula, in whatever order and with or without fused multiply-adds, differs by a few machine
    epsilons times that condition; a plain relative bound would not hold where terms cancel. The
    terms of the last step, which bring their own roundings, are bounded by the values before and
    after it.
    """
    history = oracle_run(optimizer, w, gradients, **penalty)
    start = {"w": w, **oracle.init_slots(type(optimizer).__name__, w, oracle_params(optimizer))}
    condition = {}
    for key, values in history.items():
        before = np.concatenate([start[key][None], values[:-1]])
        condition[key] = np.abs(values) + np.abs(before)
    size = 1e-10
    for seed in range(8):
        rng = np.random.default_rng(seed)
        signs = {}

        def perturb(key, value, rng=rng, signs=signs):
            # The same sign in every step: the rounding of a constant is always the same.
            if key not in signs:
                signs[key] = rng.choice([-1.0, 1.0], size=np.shape(value))
            return value * (1.0 + size * signs[key])

        def inexact_power(base, exponent, rng=rng):
            value = base**exponent
            return value * (1.0 + size * rng.choice([-1.0, 1.0], size=np.shape(value)))

        with mock.patch.object(oracle, "power", inexact_power):
            perturbed = oracle_run(optimizer, w, gradients, perturb, **penalty)
        for key, values in perturbed.items():
            moved = np.abs(values - history[key]) / size
            condition[key] = np.maximum(condition[key], moved)
    return history, condition


def assert_within(actual, expected, condition, ulps, dtype):
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        assert actual[key].dtype == dtype, key
        # Kernels flush numbers below the smallest normal one to zero; FTRL's root is of squares.
        tiny = np.finfo(dtype).tiny
        bound = ulps * np.finfo(dtype).eps * condition[key] + tiny
        if key == "root":
            bound += (len(values) * tiny) ** 0.5
        excess = np.abs(actual[key] - values) > bound
        assert not excess.any(), (
            f"{key}: {excess.sum()} of {excess.size} values off by up to "
            f"{np.max(np.abs(actual[key] - values)[excess] / (bound[excess] / ulps)):.3g} ulps"
        )


N_STEPS = 3
BASE_SIZE = 1009


@cache
def small_case(name, size):
    """Return the start, the gradients, and the oracle's history and condition."""
    rng = np.random.default_rng(size)
    w, gradients = rng.standard_normal(size), make_gradients((N_STEPS, size), seed=size + 1)
    w[::5] = 0.0
    return w, gradients, *oracle_with_condition(ELEMENTWISE[name], w, gradients)


@cache
def large_case(name, size):
    """Return the same for one block of parameters that is repeated until there are `size`."""
    optimizer = clone(ELEMENTWISE[name])
    rng = np.random.default_rng(1)
    w, gradients = rng.standard_normal(BASE_SIZE), make_gradients((N_STEPS, BASE_SIZE), seed=2)
    oracle_gradients = gradients
    if optimizer.clip_norm is not None:
        # The norm is that of all the blocks.
        norms = np.array([np.linalg.norm(np.resize(g, size)) for g in gradients])
        factor = np.minimum(1.0, optimizer.clip_norm / norms)
        oracle_gradients = gradients * factor[:, None]
        optimizer.set_params(clip_norm=None)
    return w, gradients, *oracle_with_condition(optimizer, w, oracle_gradients)


LAYOUTS = {
    "contiguous": lambda size: (np.zeros(size), slice(None)),
    "slice": lambda size: (np.zeros(size + 5), slice(3, size + 3)),
    "strided": lambda size: (np.zeros(3 * size), slice(None, None, 3)),
    "reversed": lambda size: (np.zeros(size), slice(None, None, -1)),
}


def lay_out(values, layout):
    """Return a copy of `values` as a view of a larger buffer, and the buffer."""
    buffer, where = LAYOUTS[layout](values.size)
    buffer[:] = -7.0
    view = buffer[where]
    view[:] = values
    return view, buffer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_compiled_rule_equals_oracle(name, size, layout, isa):
    start, gradients, expected, condition = small_case(name, size)
    w, buffer = lay_out(start, layout)
    _, history = run(ELEMENTWISE[name], w, [lay_out(g, layout)[0] for g in gradients])
    assert_within(history, expected, condition, 8, np.float64)
    np.testing.assert_array_equal(w, history["w"][-1])
    assert np.sum(buffer == -7.0) == buffer.size - size  # nothing beside the view is written


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_compiled_rule_equals_oracle_on_many_parameters(name, layout, isa):
    size = 1_000_003
    block, gradients, expected, condition = large_case(name, size)
    w, _ = lay_out(np.resize(block, size), layout)
    state = ELEMENTWISE[name].init(w)
    for g in gradients:
        ELEMENTWISE[name].step(w, lay_out(np.resize(g, size), layout)[0], state)
    last = {key: np.resize(values[-1], size) for key, values in expected.items()}
    bound = {key: np.resize(values[-1], size) for key, values in condition.items()}
    # A norm is a plain sum of a million squares; its rounding grows with the root of their number.
    ulps = 8 if ELEMENTWISE[name].clip_norm is None else 1000
    assert_within({"w": w, **state.slots}, last, bound, ulps, np.float64)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float32_follows_the_float64_formula(name, isa):
    optimizer = ELEMENTWISE[name]
    source = SOURCES["torch"]
    w, gradients = source["w0"].astype(np.float32), source["gradients"].astype(np.float32)
    expected, condition = oracle_with_condition(
        optimizer, w.astype(np.float64), gradients.astype(np.float64)
    )
    _, history = run(optimizer, w.copy(), gradients)
    # A step has about ten roundings, hyper-parameters included. (8 ulps, as in float64: the
    # condition already counts one rounding of every operand in each of the 28 steps.)
    assert_within(history, expected, condition, 8, np.float32)


@parametrize(ELEMENTWISE)
def test_two_dimensional_parameters_are_stepped_entry_by_entry(optimizer):
    rng = np.random.default_rng(0)
    flat, gradients = rng.standard_normal(12), make_gradients((N_STEPS, 12))
    _, expected = run(optimizer, flat, gradients)
    for order in "CF":
        w = np.array(np.random.default_rng(0).standard_normal(12).reshape(3, 4), order=order)
        state, history = run(optimizer, w, [g.reshape(3, 4) for g in gradients])
        assert all(slot.shape == (3, 4) for slot in state.slots.values())
        for key, values in expected.items():
            # Equal but for the vector lane in which an entry lands.
            actual = history[key].reshape(N_STEPS, 12)
            np.testing.assert_allclose(actual, values, rtol=1e-12, atol=1e-15, err_msg=key)


@parametrize(ELEMENTWISE)
def test_integers_and_half_precision_are_refused(optimizer):
    for dtype in (np.int64, np.float16):
        with pytest.raises((TypeError, ValueError), match="float32"):
            optimizer.init(np.zeros(3, dtype=dtype))


# --- Penalties: the prox in each rule's own metric ------------------------------------------------

PENALTIES = {
    "l1": PenaltyTerms(l1=0.3),
    "l2": PenaltyTerms(l2=0.7),
    "elastic_net": PenaltyTerms(l1=0.05, l2=0.2),
    "non_negative": PenaltyTerms(lower=0.0),
    "l1_in_a_box": PenaltyTerms(l1=0.1, lower=-0.4, upper=0.5),
}
SIZE, N_PENALISED = 37, 29  # the last eight are intercepts


def penalised_case(name, terms, n_steps=6):
    """Return start, gradients, and the oracle's history and condition, intercepts apart."""
    optimizer = clone(ELEMENTWISE[name])
    rng = np.random.default_rng(5)
    w, gradients = 0.3 * rng.standard_normal(SIZE), rng.standard_normal((n_steps, SIZE))
    w[::3] *= 1e-3  # within reach of a threshold
    gradients *= 10.0 ** rng.uniform(-4, 2, SIZE)
    gradients[rng.random(gradients.shape) < 0.3] = 0.0
    if isinstance(optimizer, FTRL):
        # An intercept that starts elsewhere than at 0 has a seed of its own; see below.
        w[N_PENALISED:] = 0.0
    optimizer.set_params(clip_norm=None)  # by norm, the training loop clips before the rule
    strengths = {"l1": terms.l1, "l2": terms.l2, "lower": terms.lower, "upper": terms.upper}
    if isinstance(optimizer, FTRL):
        strengths |= {"l1": lambda t: t * terms.l1, "l2": lambda t: t * terms.l2}
    coefficients = oracle_with_condition(
        optimizer, w[:N_PENALISED], gradients[:, :N_PENALISED], **strengths
    )
    free = clone(optimizer).set_params(
        **{k: 0.0 for k in ("l1", "l2", "weight_decay") if k in optimizer.get_params()}
    )
    intercepts = oracle_with_condition(free, w[N_PENALISED:], gradients[:, N_PENALISED:])
    history, condition = (
        {key: np.concatenate([a[key], b[key]], axis=1) for key in a}
        for a, b in zip(coefficients, intercepts, strict=True)
    )
    return optimizer, w, gradients, history, condition


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_penalised_step_equals_oracle(name, penalty, isa):
    terms = replace(PENALTIES[penalty], n_penalised=N_PENALISED)
    optimizer, w, gradients, expected, condition = penalised_case(name, terms)
    state = optimizer.init(w)
    # Scalars are prepared for a block of steps at once, as the training loop does it.
    rows = optimizer.prepare(state, len(gradients), terms).rows()
    updater = bind_updater(optimizer, cpu, w, state.slots, None, rows, n_penalised=N_PENALISED)
    history = {key: [] for key in expected}
    for t, g in enumerate(gradients):
        updater.apply(g, t)
        for key, value in {"w": w, **state.slots}.items():
            history[key].append(value.copy())
    history = {key: np.array(values) for key, values in history.items()}
    # Twice the bound of the rules alone: the bound of the metric takes the difference of a weight
    # before and after the rule, whose rounding the condition does not see.
    assert_within(history, expected, condition, 16, np.float64)
    # Exact zeros, and bounds that hold to the last bit.
    np.testing.assert_array_equal(history["w"] == 0, expected["w"] == 0)
    if terms.l1:
        assert (history["w"][:, :N_PENALISED] == 0).any()
    assert (history["w"][:, :N_PENALISED] >= terms.lower).all()
    assert (history["w"][:, :N_PENALISED] <= terms.upper).all()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_more_l1_means_more_zeros(name, isa):
    # Trap 5: an L1 term inside Adam's gradient would be normalised away.
    optimizer = clone(ELEMENTWISE[name]).set_params(clip_norm=None)
    rng = np.random.default_rng(6)
    target, curvature = rng.standard_normal(40), 10.0 ** rng.uniform(-1, 1, 40)
    zeros = []
    for strength in (0.0, 0.3, 3.0, 1000.0):
        w = target.copy()
        state = optimizer.init(w)
        terms = PenaltyTerms(l1=strength)
        # A step moves a weight by at most twice the rate, 0.002 for one of these.
        for _ in range(400 if strength < 1000 else 3000):
            scalars = optimizer.prepare(state, 1, terms)
            rows = scalars.rows()
            updater = bind_updater(optimizer, cpu, w, state.slots, None, rows, n_penalised=40)
            updater.apply(curvature * (w - target), 0)
            optimizer.advance(state, scalars, terms)
        zeros.append(int(np.sum(w == 0)))
    assert zeros == sorted(zeros)
    assert zeros[-1] == 40


# --- Traps ----------------------------------------------------------------------------------------


def test_ftrl_by_hand():
    # McMahan et al. (2013), Algorithm 1, with alpha = 1/2, beta = lambda_1 = lambda_2 = 1, on two
    # coordinates whose running sums of squares have rational roots. Each step is
    #   sigma = (√n' - √n) / alpha,  z += g - sigma w,
    #   w = 0 if |z| <= 1 else -(z - sign z) / ((1 + √n') · 2 + 1).
    steps = [
        # first coordinate, g = 3, 4, -12          second coordinate, g = 3/5, 4/5, -12/5
        # √n: 0 -> 3, sigma 6, z = 3               √n: 0 -> 3/5, sigma 6/5, z = 3/5
        # w = -2 / 9                               |z| <= 1: w = 0
        (3, 9, 3, "-2/9", "3/5", "9/25", "3/5", 0),
        # √n: 3 -> 5, sigma 4                      √n: 3/5 -> 1, sigma 4/5
        # z = 3 + 4 + 8/9 = 71/9                   z = 3/5 + 4/5 = 7/5
        # w = -(62/9) / 13                         w = -(2/5) / 5
        (4, 25, "71/9", "-62/117", "4/5", 1, "7/5", "-2/25"),
        # √n: 5 -> 13, sigma 16                    √n: 1 -> 13/5, sigma 16/5
        # z = 71/9 - 12 + 992/117 = 511/117        z = 7/5 - 12/5 + 32/125 = -93/125
        # w = -(394/117) / 29                      |z| <= 1: back to exactly 0
        (-12, 169, "511/117", "-394/3393", "-12/5", "169/25", "-93/125", 0),
    ]
    optimizer = FTRL(alpha=0.5, beta=1.0, l1=1.0, l2=1.0)
    w = np.zeros(2)
    state = optimizer.init(w)
    for row in steps:
        g_1, n_1, z_1, w_1, g_2, n_2, z_2, w_2 = (float(Fraction(value)) for value in row)
        optimizer.step(w, np.array([g_1, g_2]), state)
        # A handful of roundings of numbers that decimals cannot hold.
        np.testing.assert_allclose(state.slots["root"] ** 2, [n_1, n_2], rtol=1e-14)
        np.testing.assert_allclose(state.slots["z"], [z_1, z_2], rtol=1e-14)
        np.testing.assert_allclose(w, [w_1, w_2], rtol=1e-14)
    assert w[1] == 0.0


@pytest.mark.parametrize("power", [-0.5, -0.8])
@pytest.mark.parametrize("n0", [0.0, 0.4])
def test_ftrl_keeps_the_initial_weights(power, n0):
    # Trap 1: z is seeded with -w0 ((beta + n0^-power) / alpha + l2) - sign(w0) l1.
    optimizer = FTRL(
        alpha=0.2,
        beta=0.7,
        l1=0.3,
        l2=0.5,
        learning_rate_power=power,
        initial_accumulator_value=n0,
    )
    w0 = np.array([0.5, -1e-8, 0.0, -3.0, 1e6])
    w = w0.copy()
    state = optimizer.init(w)
    seed = -w0 * ((0.7 + n0**-power) / 0.2 + 0.5) - np.sign(w0) * 0.3
    np.testing.assert_allclose(state.slots["z"], seed, rtol=1e-15)
    optimizer.step(w, np.zeros(5), state)
    # Adding and taking away l1 = 0.3 costs a weight of 1e-8 seven digits and more.
    np.testing.assert_allclose(w, w0, rtol=1e-14, atol=1e-16)
    assert w[2] == 0.0
    # A small gradient moves the weights a little, not back to the origin.
    optimizer.step(w, np.full(5, 1e-3), state)
    np.testing.assert_allclose(w[[0, 3]], w0[[0, 3]], atol=1e-2)


@pytest.mark.parametrize("power", [-0.5, -0.3])
def test_ftrl_of_nothing_learned_is_not_nan(power, isa):
    # Trap 2: n = beta = l2 = 0 and a zero gradient is 0/0; the weight stands.
    optimizer = FTRL(alpha=0.1, beta=0.0, learning_rate_power=power)
    w = np.array([0.5, -2.0, 0.0, 1.0])
    state = optimizer.init(w)
    optimizer.step(w, np.array([0.0, 0.0, 0.0, 2.0]), state)
    np.testing.assert_array_equal(w[:3], [0.5, -2.0, 0.0])
    assert np.isfinite(w).all()
    assert all(np.isfinite(slot).all() for slot in state.slots.values())


def test_ftrl_power_is_in_sigma_and_in_the_denominator(isa):
    # Trap 3. With power -1: sigma = g²/alpha, denominator = (beta + n)/alpha.
    optimizer = FTRL(alpha=0.5, beta=1.0, learning_rate_power=-1.0)
    w = np.zeros(1)
    state = optimizer.init(w)
    optimizer.step(w, np.array([2.0]), state)  # n = 4, z = 2, w = -2 / (5 · 2)
    np.testing.assert_allclose(w, -0.2, rtol=1e-15)
    optimizer.step(w, np.array([1.0]), state)  # n = 5, z = 2 + 1 + 2 · 0.2, w = -z / (6 · 2)
    np.testing.assert_allclose(state.slots["z"], 3.4, rtol=1e-15)
    np.testing.assert_allclose(w, -3.4 / 12, rtol=1e-15)


def test_ftrl_zeros_are_exact_at_the_threshold(isa):
    # Trap 3: |z| <= l1 gives exactly 0, equality included; z = g here, as w = 0.
    optimizer = FTRL(alpha=0.1, l1=1.5)
    w = np.zeros(5)
    state = optimizer.init(w)
    optimizer.step(w, np.array([1.5, -1.5, 1.4, np.nextafter(1.5, 2), -2.0]), state)
    np.testing.assert_array_equal(w[:3], 0.0)
    assert w[3] < 0 < w[4]


def test_ftrl_l1_makes_old_weights_zero_again(isa):
    # (river keeps the old weight.)
    optimizer = FTRL(alpha=0.5, l1=1.0)
    w = np.zeros(1)
    state = optimizer.init(w)
    optimizer.step(w, np.array([2.0]), state)
    assert w[0] != 0
    for _ in range(50):
        optimizer.step(w, np.array([-0.2]), state)
        if w[0] == 0:
            break
    assert w[0] == 0.0


def test_rmsprop_averages_squares_and_survives_a_constant_gradient(isa):
    # The variance v - (mean of g)² of a constant gradient rounds to below zero sooner or later.
    optimizer = RMSprop(1e-3, rho=0.5, epsilon=1e-3, centered=True)
    for dtype in (np.float64, np.float32):
        w = np.zeros(64, dtype=dtype)
        g = np.linspace(0.1, 3.0, 64, dtype=dtype)
        state = optimizer.init(w)
        for _ in range(200):
            optimizer.step(w, g, state)
        assert np.isfinite(w).all()
        np.testing.assert_allclose(state.slots["square_average"], g**2, rtol=1e-5)


def test_nadam_look_ahead_divides_by_the_product_up_to_the_next_step():
    # The first step by hand: m = (1 - beta_1) g, v̂ = g².
    optimizer = Nadam(0.1, beta_1=0.9, beta_2=0.99, epsilon=1e-3, momentum_decay=1.0)
    w, g = np.zeros(1), 2.0
    optimizer.step(w, np.array([g]), optimizer.init(w))
    mu_1, mu_2 = 0.9 * (1 - 0.5 * 0.96), 0.9 * (1 - 0.5 * 0.96**2)
    m_hat = mu_2 * 0.1 * g / (1 - mu_1 * mu_2) + (1 - mu_1) * g / (1 - mu_1)
    np.testing.assert_allclose(w, -0.1 * m_hat / (2.0 + 1e-3), rtol=1e-14)


def test_adadelta_uses_the_deltas_of_the_steps_before():
    optimizer = Adadelta(1.0, rho=0.9, epsilon=1e-2)
    w, g = np.zeros(1), 3.0
    state = optimizer.init(w)
    optimizer.step(w, np.array([g]), state)
    delta = np.sqrt(1e-2) / np.sqrt(0.1 * g**2 + 1e-2) * g
    np.testing.assert_allclose(w, -delta, rtol=1e-15)
    np.testing.assert_allclose(state.slots["delta_average"], 0.1 * delta**2, rtol=1e-14)


def test_lion_with_nothing_to_follow_stands_still(isa):
    w = np.array([1.0, -1.0])
    Lion(0.1).step(w, np.zeros(2), Lion(0.1).init(w))
    np.testing.assert_array_equal(w, [1.0, -1.0])


@pytest.mark.parametrize(
    "optimizer",
    [cls(epsilon=1e-50) for cls in (Adagrad, RMSprop, Adadelta, Adam, AdamW, Adamax, Nadam)],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_epsilon_that_underflows_is_refused(optimizer):
    # Trap 8: 1e-50 is 0 in float32.
    optimizer.init(np.zeros(2))
    with pytest.raises(ValueError, match=r"epsilon.*float32"):
        optimizer.init(np.zeros(2, dtype=np.float32))


def test_clipping_acts_on_the_loss_gradient_before_coupled_l2(isa):
    w = np.array([10.0, -10.0])
    optimizer = SGD(1.0, l2=0.5, clip_value=1.0)
    optimizer.step(w, np.array([100.0, 0.0]), optimizer.init(w))
    np.testing.assert_array_equal(w, [10.0 - (1.0 + 5.0), -10.0 + 5.0])

    w = np.array([10.0, -10.0])
    optimizer = SGD(1.0, l2=0.5, clip_norm=1.0)
    optimizer.step(w, np.array([30.0, 40.0]), optimizer.init(w))
    np.testing.assert_allclose(w, [10.0 - (0.6 + 5.0), -10.0 - (0.8 - 5.0)], rtol=1e-15)


def test_clip_norm_is_that_of_all_parameters_together():
    w = [np.zeros(2), np.zeros((1, 2))]
    optimizer = SGD(1.0, clip_norm=1.0)
    state = optimizer.init(w)
    optimizer.step(w, [np.array([1.0, 1.0]), np.array([[1.0, 1.0]])], state)
    np.testing.assert_allclose(np.concatenate([w[0], w[1][0]]), -0.5, rtol=1e-15)
    # A gradient within the norm is left as it is, to the last bit.
    w, g = np.zeros(3), np.array([0.3, -0.1, 0.7])
    optimizer.step(w, g, optimizer.init(w))
    np.testing.assert_array_equal(w, -g)


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    w = np.array([2.0, -4.0])
    optimizer = SGD(0.5, weight_decay=0.1)
    optimizer.step(w, np.zeros(2), optimizer.init(w))
    np.testing.assert_allclose(w, [1.9, -3.8], rtol=1e-15)


@parametrize(ELEMENTWISE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_seen(optimizer, dtype, isa):
    # A NaN gradient must reach its weight and stay there, never be clipped or thresholded away.
    w = np.ones(19, dtype=dtype)
    g = np.full(19, 0.5, dtype=dtype)
    g[[2, 17]] = np.nan
    state = optimizer.init(w)
    optimizer.step(w, g, state)
    optimizer.step(w, np.full(19, 0.5, dtype=dtype), state)
    assert np.isnan(w[[2, 17]]).all()
    if optimizer.clip_norm is None:
        assert np.isfinite(np.delete(w, [2, 17])).all()


# --- State ----------------------------------------------------------------------------------------


@parametrize(ELEMENTWISE)
class TestState:
    def test_starts_at_step_zero_with_slots_like_w(self, optimizer):
        for dtype in (np.float32, np.float64):
            w = np.ones((2, 3), dtype=dtype)
            state = optimizer.init(w)
            assert state.step == 0
            names = oracle.slot_names(type(optimizer).__name__, optimizer.get_params(deep=False))
            assert sorted(state.slots) == sorted(names)
            for slot in state.slots.values():
                assert slot.shape == w.shape
                assert slot.dtype == dtype
            optimizer.step(w, np.ones((2, 3), dtype=dtype), state)
            assert state.step == 1
            assert w.dtype == dtype
            assert all(slot.dtype == dtype for slot in state.slots.values())

    def test_one_optimizer_serves_two_models(self, optimizer):
        before = repr(optimizer.get_params())
        gradients = make_gradients((6, 5))
        first, second = np.ones(5), np.linspace(-1, 1, 5)
        state_1, state_2 = optimizer.init(first), optimizer.init(second)
        for t in range(3):  # interleaved, the second one further on
            optimizer.step(first, gradients[t], state_1)
            optimizer.step(second, gradients[2 * t], state_2)
            optimizer.step(second, gradients[2 * t + 1], state_2)
        alone = np.ones(5)
        state, _ = run(clone(optimizer), alone, gradients[:3])
        np.testing.assert_array_equal(first, alone)
        assert_same_state(state_1, state)
        alone = np.linspace(-1, 1, 5)
        state, _ = run(clone(optimizer), alone, gradients)
        np.testing.assert_array_equal(second, alone)
        assert_same_state(state_2, state)
        assert repr(optimizer.get_params()) == before

    def test_init_and_step_leave_the_callers_arrays_alone(self, optimizer):
        w, g = np.ones(5), make_gradients(5)
        w_before, g_before = w.copy(), g.copy()
        state = optimizer.init(w)
        np.testing.assert_array_equal(w, w_before)
        g.setflags(write=False)
        optimizer.step(w, g, state)
        np.testing.assert_array_equal(g, g_before)
        assert not any(np.shares_memory(slot, w) for slot in state.slots.values())
        assert not any(np.shares_memory(slot, g) for slot in state.slots.values())

    def test_clone_params_and_repr(self, optimizer):
        twin = clone(optimizer)
        assert type(twin) is type(optimizer)
        assert repr(twin) == repr(optimizer)
        assert repr(twin.get_params()) == repr(optimizer.get_params())
        rebuilt = type(optimizer)(**optimizer.get_params(deep=False))
        w_1, w_2 = np.ones(4), np.ones(4)
        run(rebuilt, w_1, make_gradients((3, 4)))
        run(optimizer, w_2, make_gradients((3, 4)))
        np.testing.assert_array_equal(w_1, w_2)
        assert not hasattr(optimizer, "dtype")
        assert set(vars(optimizer)) == set(optimizer.get_params(deep=False))

    def test_pickle_in_the_middle_changes_nothing(self, optimizer):
        gradients = make_gradients((12, 7))
        w = np.linspace(-1, 1, 7)
        state, _ = run(optimizer, w, gradients)
        resumed = np.linspace(-1, 1, 7)
        middle, _ = run(optimizer, resumed, gradients[:5])
        again, resumed, middle = pickle.loads(pickle.dumps((optimizer, resumed, middle)))
        run(again, resumed, gradients[5:], middle)
        np.testing.assert_array_equal(resumed, w)
        assert_same_state(middle, state)

    def test_list_of_arrays_equals_separate_runs(self, optimizer):
        if optimizer.clip_norm is not None:
            optimizer = clone(optimizer).set_params(clip_norm=None)  # couples the arrays
        shapes = [(3, 4), (4,), (1,), (0,)]
        rng = np.random.default_rng(0)
        starts = [rng.standard_normal(shape) for shape in shapes]
        gradients = [make_gradients((5, *shape), seed) for seed, shape in enumerate(shapes)]
        together = [start.copy() for start in starts]
        state = optimizer.init(together)
        for t in range(5):
            optimizer.step(together, [g[t] for g in gradients], state)
        assert state.step == 5
        for i, start in enumerate(starts):
            alone = start.copy()
            single, _ = run(optimizer, alone, gradients[i])
            np.testing.assert_array_equal(together[i], alone)
            for name, slot in single.slots.items():
                np.testing.assert_array_equal(state.slots[name][i], slot, err_msg=name)

    def test_wrong_gradients_are_named(self, optimizer):
        w = np.ones((2, 3))
        state = optimizer.init(w)
        for g in (np.ones((3, 2)), np.ones(6), np.ones((2, 3, 1))):
            with pytest.raises(ValueError, match=r"grad.*shape"):
                optimizer.step(w, g, state)
        np.testing.assert_array_equal(w, np.ones((2, 3)))
        assert state.step == 0

    def test_read_only_weights_are_refused(self, optimizer):
        w = np.ones(3)
        state = optimizer.init(w)
        w.setflags(write=False)
        with pytest.raises((TypeError, ValueError), match=r"writ|read-only"):
            optimizer.step(w, np.ones(3), state)


# --- Sparse gradients -----------------------------------------------------------------------------


def sparse_gradients(n_steps=6, shape=(30, 3)):
    rng = np.random.default_rng(3)
    dense = rng.standard_normal((n_steps, *shape)) * 10.0 ** rng.uniform(-3, 3, (n_steps, *shape))
    dense[rng.random((n_steps, shape[0])) < 0.8] = 0.0
    dense[0, 5, 1] = 0.0
    return dense


@pytest.mark.parametrize("form", [sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@parametrize(SPARSE_GRADIENTS)
def test_sparse_gradients_equal_dense_ones(optimizer, dtype, form):
    dense = sparse_gradients().astype(dtype)
    start = np.random.default_rng(4).standard_normal(dense.shape[1:]).astype(dtype)
    w_dense, w_sparse = start.copy(), start.copy()
    state_dense, state_sparse = optimizer.init(w_dense), optimizer.init(w_sparse)
    for g in dense:
        optimizer.step(w_dense, g, state_dense)
        optimizer.step(w_sparse, form(g), state_sparse)
    eps = np.finfo(dtype).eps
    assert state_sparse.step == len(dense)
    # The same operations on the same numbers; another loop may contract them into fused
    # multiply-adds. FTRL recomputes w from z even for a zero gradient, which the sparse path
    # leaves out: a rounding of z per step.
    for key, value in {"w": w_dense, **state_dense.slots}.items():
        other = {"w": w_sparse, **state_sparse.slots}[key]
        np.testing.assert_allclose(
            other, value, rtol=32 * eps, atol=8 * eps * np.abs(value).max(), err_msg=key
        )


def test_duplicate_entries_of_a_sparse_gradient_are_summed():
    rows, columns, values = [1, 1, 4, 1], [0, 0, 2, 1], [1.0, 2.0, 5.0, -1.0]
    g = sp.coo_array((values, (rows, columns)), shape=(6, 3))
    w_dense, w_sparse = np.ones((6, 3)), np.ones((6, 3))
    optimizer = Adagrad(0.1)
    optimizer.step(w_dense, g.toarray(), optimizer.init(w_dense))
    optimizer.step(w_sparse, g, optimizer.init(w_sparse))
    np.testing.assert_allclose(w_sparse, w_dense, rtol=1e-15)


def test_duplicate_entries_are_summed_before_the_norm_is_taken():
    g = sp.coo_array(([3.0, 4.0, -7.0, 2.0], ([0, 0, 1, 1], [0, 0, 0, 0])), shape=(2, 1))
    w = np.zeros((2, 1))
    optimizer = SGD(1.0, clip_norm=1.0)
    optimizer.step(w, g, optimizer.init(w))
    np.testing.assert_allclose(w[:, 0], np.array([-7.0, 5.0]) / np.hypot(7.0, 5.0), rtol=1e-15)


@parametrize(
    {
        name: optimizer
        for name, optimizer in ELEMENTWISE.items()
        if not isinstance(optimizer, FTRL)
        and name not in ("sgd", "adagrad", "proximal_gradient")
        and not (isinstance(optimizer, Adagrad) and not (optimizer.l2 or optimizer.weight_decay))
    }
    | {"proximal_gradient": ProximalGradient(0.05, l2=0.4), "sgd-l2": SGD(0.1, l2=0.1)}
)
def test_sparse_gradients_are_refused_where_a_zero_moves_something(optimizer):
    w = np.ones((30, 3))
    state = optimizer.init(w)
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step(w, sp.csr_array(sparse_gradients()[0]), state)
    np.testing.assert_array_equal(w, 1.0)


def test_sparse_gradient_of_the_wrong_shape():
    w = np.ones((30, 3))
    optimizer = SGD(0.1)
    with pytest.raises(ValueError, match=r"grad.*shape"):
        optimizer.step(w, sp.csr_array(np.ones((3, 30))), optimizer.init(w))


# --- Bad hyper-parameters -------------------------------------------------------------------------

TAILED = [SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW, Adamax, Nadam, Lion, ProximalGradient]
BAD = [
    *[(cls(learning_rate=rate), "learning_rate") for cls in TAILED for rate in (-0.1, 0.0)],
    *[(cls(learning_rate=np.nan), "learning_rate") for cls in TAILED],
    *[(cls(learning_rate="fast"), "learning_rate") for cls in TAILED],
    *[(cls(l2=-0.1), "l2") for cls in TAILED],
    *[(cls(clip_norm=0.0), "clip_norm") for cls in TAILED],
    *[(cls(clip_value=-1.0), "clip_value") for cls in TAILED],
    *[(cls(weight_decay=-0.1), "weight_decay") for cls in TAILED if cls is not ProximalGradient],
    *[(cls(epsilon=0.0), "epsilon") for cls in (Adagrad, RMSprop, Adadelta, Adam, Adamax, Nadam)],
    *[(cls(epsilon=-1e-8), "epsilon") for cls in (Adagrad, RMSprop, AdamW)],
    *[(cls(beta_1=1.0), "beta_1") for cls in (Adam, AdamW, Adamax, Nadam, Lion)],
    *[(cls(beta_2=1.0), "beta_2") for cls in (Adam, AdamW, Adamax, Nadam, Lion)],
    *[(cls(beta_1=-0.1), "beta_1") for cls in (Adam, AdamW, Adamax, Nadam, Lion)],
    *[(cls(rho=1.0), "rho") for cls in (RMSprop, Adadelta)],
    *[(cls(rho=-0.5), "rho") for cls in (RMSprop, Adadelta)],
    (SGD(momentum=1.0), "momentum"),
    (SGD(momentum=-0.1), "momentum"),
    (SGD(momentum=0.9, dampening=1.0), "dampening"),
    (SGD(nesterov=True), "nesterov"),
    (SGD(momentum=0.9, dampening=0.1, nesterov=True), "nesterov"),
    (RMSprop(momentum=1.0), "momentum"),
    (Adagrad(initial_accumulator_value=-1.0), "initial_accumulator_value"),
    (Nadam(momentum_decay=-1.0), "momentum_decay"),
    (FTRL(alpha=0.0), "alpha"),
    (FTRL(alpha=-1.0), "alpha"),
    (FTRL(beta=-1.0), "beta"),
    (FTRL(l1=-1.0), "l1"),
    (FTRL(l2=-1.0), "l2"),
    (FTRL(learning_rate_power=0.5), "learning_rate_power"),
    (FTRL(initial_accumulator_value=-0.1), "initial_accumulator_value"),
    (SGD(Cosine(0.1, total_steps=0)), "total_steps"),
]


@pytest.mark.parametrize(("optimizer", "parameter"), BAD, ids=lambda value: repr(value))
def test_bad_hyper_parameter_is_named(optimizer, parameter):
    w = np.zeros(2)
    with pytest.raises((TypeError, ValueError), match=rf"\b{parameter}\b"):
        optimizer.step(w, np.ones(2), optimizer.init(w))
    np.testing.assert_array_equal(w, 0.0)


def test_a_schedule_is_read_at_the_step_number():
    # Steps are counted from 1: two steps at 0.5, two at 0.05, …
    optimizer = SGD(Step(0.5, step_size=2, gamma=0.1))
    w = np.zeros(1)
    _, history = run(optimizer, w, np.ones((5, 1)))
    expected = -np.cumsum([0.5, 0.5, 0.05, 0.05, 0.005])
    np.testing.assert_allclose(history["w"][:, 0], expected, rtol=1e-14)


@parametrize({k: v for k, v in ELEMENTWISE.items() if not isinstance(v, FTRL)})
def test_an_adaptive_division_scales_every_use_of_the_rate(optimizer):
    # (FTRL's alpha also shapes its state, so that a change of it is no mere scale.)
    rate = as_schedule(optimizer.learning_rate)
    slower = clone(optimizer).set_params(learning_rate=lambda steps: 0.25 * rate(steps))
    w, w_slower = np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)
    gradients = make_gradients((4, 9))
    state = optimizer.init(w)
    state.carries["learning_rate_scale"] = 0.25  # a power of two: exact
    run(optimizer, w, gradients, state)
    run(slower, w_slower, gradients)
    np.testing.assert_array_equal(w, w_slower)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_gradient_of_another_dtype_is_converted(dtype, clip_norm):
    optimizer = SGD(1.0, momentum=0.5, clip_norm=clip_norm)
    w, w_converted = np.zeros(2), np.zeros(2)
    optimizer.step(w, np.array([3, 4], dtype=dtype), optimizer.init(w))
    optimizer.step(w_converted, np.array([3.0, 4.0]), optimizer.init(w_converted))
    np.testing.assert_array_equal(w, w_converted)


def test_any_callable_is_a_schedule():
    w = np.zeros(1)
    _, history = run(SGD(lambda steps: 1.0 / steps), w, np.ones((3, 1)))
    np.testing.assert_allclose(history["w"][:, 0], [-1, -1.5, -1.5 - 1 / 3], rtol=1e-15)
