"""The learning-rate schedules: other people's numbers, the estimator protocol, the errors."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier

import skoptim.schedules as schedules
from skoptim.schedules import (
    Adaptive,
    Constant,
    Cosine,
    Exponential,
    InverseScaling,
    OneCycle,
    Optimal,
    Schedule,
    Step,
    Warmup,
    as_schedule,
)

FIXTURES = np.load(Path(__file__).parent / "fixtures" / "schedules.npz")
CONFIGS = json.loads(str(FIXTURES["configs"]))

SCHEDULES = [
    Constant(0.1),
    InverseScaling(0.5, power=0.3),
    Optimal(1e-3),
    Exponential(0.3, 0.97, decay_steps=4),
    Step(0.5, step_size=7, gamma=0.4),
    Cosine(0.2, total_steps=40, final=0.01),
    OneCycle(0.4, total_steps=50),
    OneCycle(0.4, total_steps=50, annealing="linear", rising_fraction=0.5),
    Warmup(Cosine(0.2, total_steps=40), warmup_steps=10),
    Adaptive(0.1, factor=2.0, patience=3),
]


def build(name, params):
    params = dict(params)
    if isinstance(params.get("schedule"), list):
        params["schedule"] = build(*params["schedule"])
    return getattr(schedules, name)(**params)


def test_every_public_schedule_is_in_the_table():
    public = {getattr(schedules, name) for name in schedules.__all__}
    classes = {cls for cls in public if isinstance(cls, type)} - {Schedule}
    assert classes == {type(schedule) for schedule in SCHEDULES}


@pytest.mark.parametrize("name", CONFIGS)
def test_rates_of_torch_and_keras(name):
    config = CONFIGS[name]
    expected = FIXTURES[f"{name}/rates"]
    rates = build(config["schedule"], config["params"])(np.arange(1, expected.size + 1))
    # torch computes each rate from the one before: the rounding of a whole run, which an exact
    # zero at the end does not shrink with the rate. Hence the floor, relative to the largest.
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-15 * expected.max())


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 0.02])
@pytest.mark.parametrize("loss", ["hinge", "log_loss"])
def test_optimal_is_that_of_scikit_learn(alpha, loss):
    # With X = 0 only the intercept learns; it moves by eta times the slope of the loss there.
    steps = 30
    model = SGDClassifier(loss=loss, alpha=alpha, learning_rate="optimal")
    intercept, rates = 0.0, []
    for _ in range(steps):
        y = -1 if intercept > 0 else 1  # always on the wrong side, so the hinge has slope 1
        model.partial_fit(np.zeros((1, 1)), [y], classes=[-1, 1])
        slope = 1.0 if loss == "hinge" else 1 / (1 + np.exp(y * intercept))
        rates.append((model.intercept_[0] - intercept) / (y * slope))
        intercept = model.intercept_[0]
    # The subtraction of two intercepts of about the size of the first rate costs digits.
    floor = 1e-14 * rates[0]
    np.testing.assert_allclose(Optimal(alpha)(np.arange(1, steps + 1)), rates, 1e-12, floor)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_inverse_scaling_is_that_of_scikit_learn(power):
    model = SGDClassifier(learning_rate="invscaling", eta0=0.7, power_t=power, alpha=0.1)
    intercept, rates = 0.0, []
    for _ in range(20):
        y = -1 if intercept > 0 else 1
        model.partial_fit(np.zeros((1, 1)), [y], classes=[-1, 1])
        rates.append(y * (model.intercept_[0] - intercept))
        intercept = model.intercept_[0]
    # As above: a rate read off as a difference of intercepts no larger than the first rate.
    expected = InverseScaling(0.7, power=power)(np.arange(1, 21))
    np.testing.assert_allclose(expected, rates, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestProtocol:
    def test_block_equals_one_by_one(self, schedule):
        steps = np.arange(1, 101)
        rates = schedule(steps)
        assert rates.dtype == np.float64
        assert rates.shape == steps.shape
        assert np.isfinite(rates).all()
        assert (rates >= 0).all()
        singles = [schedule(int(t)) for t in steps]
        assert all(type(rate) is float for rate in singles)
        # NumPy's vectorised cos and pow may differ from its scalar ones in the last digit; near
        # the end of a cosine that digit is one of the largest rate.
        np.testing.assert_allclose(rates, singles, rtol=1e-14, atol=1e-16)
        np.testing.assert_array_equal(schedule(steps[30:60].astype(np.int32)), rates[30:60])

    def test_far_beyond_the_end(self, schedule):
        rates = schedule(np.array([10**6, 10**9, 10**12]))
        assert np.isfinite(rates).all()
        assert (np.diff(rates) <= 0).all()

    def test_empty_block(self, schedule):
        assert schedule(np.arange(0)).shape == (0,)

    def test_clone_params_pickle_repr(self, schedule):
        twin = clone(schedule)
        assert twin is not schedule
        steps = np.arange(1, 60)
        for copy in (twin, pickle.loads(pickle.dumps(schedule)), eval(repr(schedule))):
            assert repr(copy.get_params()) == repr(schedule.get_params())
            np.testing.assert_array_equal(copy(steps), schedule(steps))

    def test_calling_keeps_no_state(self, schedule):
        before = dict(vars(schedule))
        schedule(np.arange(1, 10))
        schedule.update_scale(1.0, [1.0] * 10, 1e-4)
        assert vars(schedule) == before

    @pytest.mark.parametrize("steps", [0, -3, np.array([1, 2, 0])])
    def test_steps_are_counted_from_one(self, schedule, steps):
        with pytest.raises(ValueError, match="counted from 1"):
            schedule(steps)

    @pytest.mark.parametrize("steps", [1.5, np.array([1.0, 2.0]), True])
    def test_steps_are_integers(self, schedule, steps):
        with pytest.raises(TypeError, match="integers"):
            schedule(steps)


@pytest.mark.parametrize(
    ("schedule", "parameter"),
    [
        (Constant(-0.1), "learning_rate"),
        (Constant(np.nan), "learning_rate"),
        (Constant(np.inf), "learning_rate"),
        (Constant("fast"), "learning_rate"),
        (InverseScaling(0.0), "eta0"),
        (InverseScaling(0.1, power=-1), "power"),
        (Optimal(0.0), "alpha"),
        (Exponential(-1.0, 0.9), "initial"),
        (Exponential(1.0, 1.1), "decay"),
        (Exponential(1.0, 0.0), "decay"),
        (Exponential(1.0, 0.9, decay_steps=0), "decay_steps"),
        (Step(0.0, 5), "initial"),
        (Step(0.1, 0), "step_size"),
        (Step(0.1, 2.5), "step_size"),
        (Step(0.1, 5, gamma=-0.1), "gamma"),
        (Cosine(-0.1, 10), "initial"),
        (Cosine(0.1, 0), "total_steps"),
        (Cosine(0.1, 10, final=-1e-3), "final"),
        (OneCycle(0.0, 10), "maximum"),
        (OneCycle(0.1, 1), "total_steps"),
        (OneCycle(0.1, 10, rising_fraction=1.5), "rising_fraction"),
        (OneCycle(0.1, 10, annealing="cos"), "annealing"),
        (OneCycle(0.1, 10, initial_divisor=0.5), "initial_divisor"),
        (OneCycle(0.1, 10, final_divisor=0.0), "final_divisor"),
        (Warmup(0.1, -1), "warmup_steps"),
        (Warmup(-0.1, 5), "schedule"),
        (Warmup("cosine", 5), "schedule"),
        (Warmup(Cosine(0.1, -5), 5), "total_steps"),
        (Adaptive(0.0), "initial"),
        (Adaptive(0.1, factor=1.0), "factor"),
        (Adaptive(0.1, patience=0), "patience"),
        (Adaptive(0.1, minimum=-1.0), "minimum"),
    ],
)
def test_bad_parameter_is_named(schedule, parameter):
    with pytest.raises(ValueError, match=f"'{parameter}' parameter"):
        schedule.validate()
    with pytest.raises(ValueError, match=f"'{parameter}' parameter"):
        schedule(1)


def test_one_cycle_shape():
    rates = OneCycle(1.0, total_steps=200, rising_fraction=0.25)(np.arange(1, 301))
    peak = int(np.argmax(rates))
    assert peak == 49  # 0.25 * 200, from zero
    assert rates[peak] == 1.0
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:200]) < 0).all()
    # 1/25/1e4, added to a cosine term that rounds to the last digit of 1.
    np.testing.assert_allclose(rates[199:], 1 / 25 / 1e4, rtol=0, atol=1e-16)


@pytest.mark.parametrize("rising_fraction", [0.0, 0.01, 1.0])
def test_one_cycle_without_one_of_its_slopes(rising_fraction):
    rates = OneCycle(0.4, total_steps=10, rising_fraction=rising_fraction)(np.arange(1, 11))
    assert rates.max() == pytest.approx(0.4, rel=1e-15)
    assert np.isfinite(rates).all()
    assert (np.diff(rates) > 0).all() if rising_fraction == 1.0 else (np.diff(rates) < 0).all()


def test_warmup_of_nothing_and_of_a_function():
    steps = np.arange(1, 30)
    cosine = Cosine(0.2, total_steps=20)
    np.testing.assert_array_equal(Warmup(cosine, 0)(steps), cosine(steps))
    np.testing.assert_array_equal(Warmup(lambda t: 1.0 / t, 1)(np.arange(1, 4)), [0.5, 1.0, 0.5])


def test_nested_parameters_can_be_set():
    schedule = Warmup(Cosine(0.2, total_steps=20), warmup_steps=5)
    schedule.set_params(schedule__initial=0.7)
    assert schedule.schedule.initial == 0.7


def test_as_schedule():
    assert as_schedule(0.3)(5) == 0.3
    assert isinstance(as_schedule(np.float32(0.5)), Constant)
    assert as_schedule(1)(7) == 1.0
    cosine = Cosine(0.2, total_steps=20)
    assert as_schedule(cosine) is cosine
    assert as_schedule(np.sqrt) is np.sqrt
    with pytest.raises(ValueError, match="alpha must be positive"):
        as_schedule(0.0, name="alpha")
    with pytest.raises(TypeError, match=r"learning_rate .* class Cosine; write Cosine\(...\)"):
        as_schedule(Cosine)
    for value in ("cosine", None, True, [0.1]):
        with pytest.raises(TypeError, match="learning_rate must be a positive number"):
            as_schedule(value)


def replay(schedule, losses, tol=1e-4):
    """Return the scale after each epoch, as a training loop asks for it."""
    scale, scales = 1.0, []
    for epoch in range(1, len(losses) + 1):
        scale = schedule.update_scale(scale, losses[:epoch], tol)
        scales.append(scale)
    return scales


class TestAdaptive:
    def test_divides_after_patience_epochs_without_improvement(self):
        schedule = Adaptive(0.1, factor=4.0, patience=2)
        scales = replay(schedule, [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3])
        assert scales == [1, 1, 1, 1 / 4, 1 / 4, 1 / 16, 1 / 16, 1 / 16]

    def test_falling_loss_keeps_the_rate(self):
        assert replay(Adaptive(0.1, patience=1), list(np.linspace(1, 0.1, 50)))[-1] == 1.0

    def test_a_fall_within_tol_is_no_improvement(self):
        losses = [1.0, 1.0 - 1e-5, 1.0 - 2e-5, 1.0 - 3e-5]
        schedule = Adaptive(0.1, factor=2.0, patience=3)
        assert replay(schedule, losses, tol=1e-3)[-1] == 0.5
        assert replay(schedule, losses, tol=0.0)[-1] == 1.0
        assert replay(schedule, losses, tol=None)[-1] == 1.0

    def test_a_freak_low_loss_costs_one_division(self):
        # One lucky epoch, then a steady fall that stays above it for long: scikit-learn's rule
        # (the best loss ever) divides every `patience` epochs here, until the rate is gone.
        losses = [5.0, 4.9, 0.01, *np.linspace(4.8, 1.0, 60)]
        scales = replay(Adaptive(0.1, factor=5.0, patience=5), losses)
        assert scales[-1] == 1 / 5
        assert scales.count(1 / 5) == len(losses) - 7

    def test_many_freak_losses_do_not_empty_the_rate_while_the_loss_falls(self):
        losses = np.linspace(5.0, 1.0, 200)
        losses[[20, 90, 150]] = 0.0
        assert replay(Adaptive(0.1, factor=5.0, patience=5), list(losses))[-1] == 5.0**-3

    def test_stops_at_the_minimum(self):
        scales = replay(Adaptive(0.1, factor=10.0, patience=1, minimum=1e-3), [1.0] * 20)
        assert 0.1 * scales[-1] == pytest.approx(1e-3)
        assert scales[-1] == scales[5]

    def test_nan_is_no_improvement_and_no_best(self):
        schedule = Adaptive(0.1, factor=2.0, patience=2)
        assert replay(schedule, [1.0, np.nan, np.nan, 0.9, 0.8, 0.7]) == [1, 1, 0.5, 0.5, 0.5, 0.5]

    def test_is_a_function_of_its_arguments(self):
        schedule = Adaptive(0.1, factor=2.0, patience=2)
        losses = [1.0, 1.0, 1.0]
        assert schedule.update_scale(1.0, losses, 0.0) == 0.5
        assert schedule.update_scale(1.0, losses, 0.0) == 0.5
        assert schedule.update_scale(0.5, losses, 0.0) == 0.25
        assert losses == [1.0, 1.0, 1.0]
        assert schedule.update_scale(1.0, [], 0.0) == 1.0

    def test_inside_a_warmup(self):
        schedule = Warmup(Adaptive(0.1, factor=2.0, patience=1), warmup_steps=3)
        assert schedule.update_scale(1.0, [1.0, 1.0], 0.0) == 0.5
        assert Warmup(np.sqrt, warmup_steps=3).update_scale(1.0, [1.0, 1.0], 0.0) == 1.0

    def test_other_schedules_leave_the_scale_alone(self):
        assert Cosine(0.1, 10).update_scale(0.5, [1.0] * 50, 1e-4) == 0.5


def test_a_subclass_need_not_have_the_parameters_that_it_inherits_limits_for():
    class Halving(Exponential):
        decay = None  # no parameter any more

        def __init__(self, initial=0.1):
            self.initial = initial

        def _rates(self, t):
            return self.initial * 0.5**t

    assert Halving()(np.array([1, 2])).tolist() == [0.05, 0.025]
    with pytest.raises(ValueError, match=r"initial.*Halving"):
        Halving(-1.0)(1)
