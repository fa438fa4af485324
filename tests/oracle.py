"""The update rules in plain NumPy: what the compiled ones must equal.

Each rule is one function ``(w, g, slots, t, *, hyper-parameters) -> (w, slots, h)``: the weights
and slots after step `t` (from 1) and `h`, the diagonal metric in which an L1 penalty is applied, as
a step size per weight. Nothing is changed in place. `step` wraps a rule in what all of them share:
clipping, coupled L2, decoupled weight decay, the L1 soft threshold and the bounds.

The rules themselves are held to torch and Keras through the fixtures, in ``test_rules.py``.
"""

import numpy as np
import scipy.sparse as sp


def power(base, exponent):
    """Return `base ** exponent`; by itself so that a test can put a rounding error in its place."""
    return base**exponent


def sgd(w, g, slots, t, *, learning_rate, momentum=0.0, nesterov=False, dampening=0.0):
    """`b = momentum b + (1 - dampening) g` (`b = g` at the first step), `w -= learning_rate b`."""
    if momentum == 0:
        return w - learning_rate * g, {}, np.full_like(w, learning_rate)
    buffer = g if t == 1 else momentum * slots["momentum_buffer"] + (1 - dampening) * g
    direction = g + momentum * buffer if nesterov else buffer
    # What a constant gradient settles at: b = (1 - dampening) g / (1 - momentum). A soft
    # threshold at this rate has the fixed point of the penalised objective.
    h = np.full_like(w, learning_rate * (1 - dampening) / (1 - momentum))
    return w - learning_rate * direction, {"momentum_buffer": buffer}, h


def proximal_gradient(w, g, slots, t, *, learning_rate):
    """`w -= learning_rate g`; L1 and L2 follow as one proximal step (see `step`)."""
    return w - learning_rate * g, {}, np.full_like(w, learning_rate)


def adagrad(w, g, slots, t, *, learning_rate, epsilon=1e-10):
    """`G += g²`, `w -= learning_rate g / (√G + epsilon)`."""
    accumulator = slots["accumulator"] + g**2
    h = learning_rate / (np.sqrt(accumulator) + epsilon)
    return w - h * g, {"accumulator": accumulator}, h


def rmsprop(w, g, slots, t, *, learning_rate, rho=0.99, epsilon=1e-8, momentum=0.0, centered=False):
    """`v = rho v + (1 - rho) g²`, the step `g / (√v + epsilon)`, or with `v - (mean of g)²`."""
    new = {"square_average": rho * slots["square_average"] + (1 - rho) * g**2}
    variance = new["square_average"]
    if centered:
        new["gradient_average"] = rho * slots["gradient_average"] + (1 - rho) * g
        variance = np.maximum(variance - new["gradient_average"] ** 2, 0.0)
    denominator = np.sqrt(variance) + epsilon
    if momentum == 0:
        return w - learning_rate * g / denominator, new, learning_rate / denominator
    new["momentum_buffer"] = momentum * slots["momentum_buffer"] + g / denominator
    h = learning_rate / denominator / (1 - momentum)
    return w - learning_rate * new["momentum_buffer"], new, h


def adadelta(w, g, slots, t, *, learning_rate, rho=0.95, epsilon=1e-6):
    """`w -= learning_rate RMS[Δ of the steps before] / RMS[g] · g`, both roots with epsilon."""
    square_average = rho * slots["square_average"] + (1 - rho) * g**2
    ratio = np.sqrt(slots["delta_average"] + epsilon) / np.sqrt(square_average + epsilon)
    delta = ratio * g
    delta_average = rho * slots["delta_average"] + (1 - rho) * delta**2
    new = {"square_average": square_average, "delta_average": delta_average}
    return w - learning_rate * delta, new, learning_rate * ratio


def adam(w, g, slots, t, *, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8, amsgrad=False):
    """`w -= learning_rate m̂ / (√v̂ + epsilon)`, both moments corrected for their zero start."""
    m = beta_1 * slots["first_moment"] + (1 - beta_1) * g
    v = beta_2 * slots["second_moment"] + (1 - beta_2) * g**2
    new = {"first_moment": m, "second_moment": v}
    if amsgrad:
        v = new["max_second_moment"] = np.maximum(slots["max_second_moment"], v)
    denominator = np.sqrt(v) / np.sqrt(1 - power(beta_2, t)) + epsilon
    h = learning_rate / (1 - power(beta_1, t)) / denominator
    return w - h * m, new, h


def adamax(w, g, slots, t, *, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """`u = max(beta_2 u, |g| + epsilon)`, `w -= learning_rate m̂ / u`."""
    m = beta_1 * slots["first_moment"] + (1 - beta_1) * g
    u = np.maximum(beta_2 * slots["infinity_norm"], np.abs(g) + epsilon)
    h = learning_rate / (1 - power(beta_1, t)) / u
    return w - h * m, {"first_moment": m, "infinity_norm": u}, h


def nadam(
    w,
    g,
    slots,
    t,
    *,
    learning_rate,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    momentum_decay=4e-3,
):
    """`m̂ = mu_{t+1} m / (1 - mu_1…mu_{t+1}) + (1 - mu_t) g / (1 - mu_1…mu_t)` in Adam's step."""

    def mu(s):
        return beta_1 * (1 - 0.5 * power(0.96, s * momentum_decay))

    product = np.prod([mu(s) for s in range(1, t + 1)])
    m = beta_1 * slots["first_moment"] + (1 - beta_1) * g
    v = beta_2 * slots["second_moment"] + (1 - beta_2) * g**2
    look_ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
    h = learning_rate / (np.sqrt(v / (1 - power(beta_2, t))) + epsilon)
    return w - h * look_ahead, {"first_moment": m, "second_moment": v}, h


def ftrl(w, g, slots, t, *, learning_rate, beta=1.0, l1=0.0, l2=0.0, learning_rate_power=-0.5):
    """McMahan et al. 2013, Algorithm 1: w in closed form; `learning_rate` is the paper's alpha.

    In place of the paper's n the state is ``root = n^-power``.
    """
    old_root = slots["root"]
    n = power(old_root, -1 / learning_rate_power) + g**2
    root = np.where(g == 0, old_root, power(n, -learning_rate_power))
    z = slots["z"] + g - (root - old_root) / learning_rate * w
    denominator = (beta + root) / learning_rate + l2
    nothing_learned = denominator == 0
    safe = np.where(nothing_learned, 1.0, denominator)
    solution = np.where(np.abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / safe)
    return np.where(nothing_learned, w, solution), {"z": z, "root": root}, 1 / safe


def ftrl_seed(w, root, *, learning_rate, beta=1.0, l1=0.0, l2=0.0, learning_rate_power=-0.5):
    """The z for which FTRL's closed form gives `w` itself."""
    return -w * ((beta + root) / learning_rate + l2) - np.sign(w) * l1


def lion(w, g, slots, t, *, learning_rate, beta_1=0.9, beta_2=0.99):
    """`w -= learning_rate sign(c)`, `c = beta_1 m + (1 - beta_1) g`; `h = learning_rate / |c|`."""
    c = beta_1 * slots["first_moment"] + (1 - beta_1) * g
    m = beta_2 * slots["first_moment"] + (1 - beta_2) * g
    with np.errstate(divide="ignore"):
        h = learning_rate / np.abs(c)
    return w - learning_rate * np.sign(c), {"first_moment": m}, h


# Rules whose step is the rate times a normalised gradient.
NORMALISED = ("Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Lion")


RULES = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
    "Adamax": adamax,
    "Nadam": nadam,
    "FTRL": ftrl,
    "NormalizedFTRL": ftrl,  # Driven by hand it knows no units.
    "Lion": lion,
    "ProximalGradient": proximal_gradient,
}


def slot_names(name, params):
    """Return the names of the slots that rule `name` keeps with these hyper-parameters."""
    moments = ["first_moment", "second_moment"]
    names = {
        "SGD": [],
        "Adagrad": ["accumulator"],
        "RMSprop": ["square_average"],
        "Adadelta": ["square_average", "delta_average"],
        "Adam": moments,
        "AdamW": moments,
        "Adamax": ["first_moment", "infinity_norm"],
        "Nadam": moments,
        "FTRL": ["z", "root"],
        "NormalizedFTRL": ["z", "root"],
        "Lion": ["first_moment"],
        "ProximalGradient": [],
    }[name]
    optional = {
        "centered": "gradient_average",
        "amsgrad": "max_second_moment",
        "momentum": "momentum_buffer",
    }
    return names + [slot for option, slot in optional.items() if params.get(option)]


def init_slots(name, w, params):
    """Return the slots before the first step: zeros, but for initial values and FTRL's seed."""
    slots = {slot: np.zeros_like(w) for slot in slot_names(name, params)}
    initial = params.get("initial_accumulator_value", 0.0)
    if name == "Adagrad":
        slots["accumulator"] += initial
    if RULES[name] is ftrl:
        slots["root"] += initial ** -params.get("learning_rate_power", -0.5)
        keys = ("beta", "l1", "l2", "learning_rate_power")
        hyper = {key: params[key] for key in keys if key in params}
        rate = params.get("alpha", 0.1)
        slots["z"] = ftrl_seed(w, slots["root"], learning_rate=rate, **hyper)
    return slots


def soft_threshold(w, threshold):
    """Return w moved towards zero by `threshold`, exactly zero within it."""
    return np.where(np.abs(w) <= threshold, 0.0, w - np.sign(w) * threshold)


def step(name, w, g, slots, t, params, *, l1=0.0, l2=0.0, lower=-np.inf, upper=np.inf):
    """One whole step of rule `name`: what every rule shares, around the rule.

    Parameters
    ----------
    name : str
        Name of the optimizer class.
    w, g : ndarray
        Weights and gradient of the loss.
    slots : dict of str -> ndarray
        Slots before the step.
    t : int
        Step number, from 1.
    params : dict
        The optimizer's hyper-parameters; ``learning_rate`` (FTRL: ``alpha``) is a float or a
        function of the step number.
    l1, l2, lower, upper : float
        The penalty of the objective: strengths and bounds. For FTRL they are the totals at this
        step (its regulariser grows with t).

    Returns
    -------
    w, slots : ndarray, dict
        After the step.
    """
    params = dict(params)
    params.pop("initial_accumulator_value", None)
    clip_norm, clip_value = params.pop("clip_norm", None), params.pop("clip_value", None)
    weight_decay = params.pop("weight_decay", 0.01 if name == "AdamW" else 0.0)
    rate = params.pop("alpha" if RULES[name] is ftrl else "learning_rate")
    rate = float(rate(t)) if callable(rate) else rate
    if RULES[name] is ftrl:
        params["l1"] = params.get("l1", 0.0) + l1
        params["l2"] = params.get("l2", 0.0) + l2
        coupled_l2 = 0.0
    else:
        coupled_l2 = params.pop("l2", 0.0)

    # Clipping acts on the gradient of the loss alone, by norm first, then entry by entry.
    if clip_norm is not None:
        norm = np.sqrt(np.sum(g**2))
        g = g * (clip_norm / norm) if norm > clip_norm else g
    if clip_value is not None:
        g = np.clip(g, -clip_value, clip_value)
    g = g + coupled_l2 * w
    w = w * (1 - rate * weight_decay)

    before = w
    w, slots, h = RULES[name](w, g, slots, t, learning_rate=rate, **params)

    if RULES[name] is not ftrl and (l1 > 0 or l2 > 0):
        pull = l1 + l2 * np.abs(w)
        if name in NORMALISED:
            # Where gradients were tiny, rate / denominator is huge: a penalty moves a weight by at
            # most twice the rate, or twice what the gradient moved it by, which overcomes it.
            with np.errstate(divide="ignore", invalid="ignore"):
                most = 2 * np.maximum(rate, np.abs(w - before)) / pull
                h = np.where(most < h, most, h)
        w = soft_threshold(w, l1 * h) if l1 > 0 else w
        w = w / (1 + l2 * h) if l2 > 0 else w
    return np.clip(w, lower, upper), slots


def run(name, w, gradients, params, *, slots=None, **penalty):
    """Run one step per row of `gradients`; return w and each slot after every step."""
    slots = init_slots(name, w, params) if slots is None else slots
    trajectory, history = [], {slot: [] for slot in slots}
    for t, g in enumerate(gradients, start=1):
        w, slots = step(name, w, g, slots, t, params, **penalty)
        trajectory.append(w)
        for slot, value in slots.items():
            history[slot].append(value)
    return np.array(trajectory), {slot: np.array(values) for slot, values in history.items()}


def touched_alone(device, columns, n_columns, dtype):
    """Return a sorted batch with one entry, 1, in each of some columns: z and delta are theirs."""
    n = len(columns)
    X = sp.csr_matrix((np.ones(n, dtype), columns, np.arange(n + 1)), shape=(n, n_columns))
    touched = device.Touched(device.Matrix(X))
    touched.sort(None, 0, n)
    return touched
