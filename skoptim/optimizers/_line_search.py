"""A line search over a function of the step length, safe against NaN and against rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9


class Point(NamedTuple):
    """One trial of a line search: a step length, with the objective and its slope there."""

    step: float
    value: float
    slope: float


def strong_wolfe(
    phi: Callable[[float], tuple[float, float]],
    value: float,
    slope: float,
    first_step: float,
    *,
    noise: float = 0.0,
    max_evaluations: int = 20,
) -> float:
    r"""Find a step length that satisfies the strong Wolfe conditions.

    .. math:: \phi(t) \le \phi(0) + c_1 t \phi'(0), \qquad |\phi'(t)| \le c_2 |\phi'(0)|,

    with :math:`c_1 = 10^{-4}` and :math:`c_2 = 0.9`.

    Parameters
    ----------
    phi : callable
        ``phi(t) -> (value, slope)``. Where either is NaN or infinite, the step is too long.
    value, slope : float
        ``phi(0)``; the slope must be negative.
    first_step : float
        The first step length to try.
    noise : float, default=0.0
        Values that differ by no more than this count as equal; see `decreases_enough`.
    max_evaluations : int, default=20
        How often `phi` may be called.

    Returns
    -------
    step : float
        The step length found. When the evaluations run out: the best one that decreases `phi`
        enough, or 0.0 when there is none.

    Notes
    -----
    The two phases of the reference, bracketing and zooming, are one loop here. `low` is the best
    point so far; once there is a `high`, the two enclose a step that satisfies the conditions.

    References
    ----------
    .. [1] J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, 2006,
       algorithms 3.5 and 3.6, equation 3.59.
    .. [2] J. J. Moré and D. J. Thuente, "Line search algorithms with guaranteed sufficient
       decrease", ACM Transactions on Mathematical Software 20, 1994, section 4.
    """
    origin = behind = low = Point(0.0, value, slope)
    high = None
    width = math.inf
    step = first_step
    for _ in range(max_evaluations):
        point = Point(step, *phi(step))
        if not decreases_enough(origin, point, noise) or point.value > low.value + noise:
            high = point
        elif abs(point.slope) <= CURVATURE * abs(slope):
            return point.step
        else:
            ahead = 1.0 if high is None else high.step - low.step
            behind, low = low, point
            if low.slope * ahead >= 0.0:
                high = behind
        if high is None:
            step = _extrapolate(behind, low)
        else:
            last_width, width = width, abs(high.step - low.step)
            step = _interpolate(low, high, noise, bisect=width > 0.5 * last_width)
    return low.step


def decreases_enough(origin: Point, point: Point, noise: float) -> bool:
    """Tell whether `point` lies sufficiently below `origin`, even where values are only noise.

    Where the two values differ by rounding errors alone, the slopes decide: for a quadratic,
    ``slope <= (2 c_1 - 1) slope_0`` says the same as ``value <= value_0 + c_1 t slope_0``
    (W. W. Hager and H. Zhang, SIAM Journal on Optimization 16, 2005, section 4). Slopes stay
    accurate long after the values have become equal, so that the gradient still goes to zero.
    """
    if not (math.isfinite(point.value) and math.isfinite(point.slope)):
        return False
    change = point.value - origin.value
    if abs(change) <= noise:
        return point.slope <= (2.0 * SUFFICIENT_DECREASE - 1.0) * origin.slope
    return change <= SUFFICIENT_DECREASE * point.step * origin.slope


def _extrapolate(behind: Point, low: Point) -> float:
    """Return a step beyond `low`, by 1 to 9 times its distance from the point before."""
    width = low.step - behind.step
    step = _cubic_minimiser(behind, low)
    farthest = low.step + 9.0 * width
    return min(max(step, low.step + width), farthest) if step > low.step else farthest


def _interpolate(low: Point, high: Point, noise: float, bisect: bool) -> float:
    """Return a step between `low` and `high`, at least a tenth of the way from either."""
    width = high.step - low.step
    if not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return low.step + 0.2 * width
    step = math.nan
    if not bisect and abs(high.value - low.value) > noise:
        step = _cubic_minimiser(low, high)
    elif not bisect and high.slope != low.slope:
        step = low.step - low.slope * width / (high.slope - low.slope)
    fraction = (step - low.step) / width if math.isfinite(step) else 0.5
    return low.step + min(max(fraction, 0.1), 0.9) * width


def _cubic_minimiser(a: Point, b: Point) -> float:
    """Return the minimiser of the cubic through two points with their slopes, or NaN."""
    width = b.step - a.step
    d1 = a.slope + b.slope + 3.0 * (a.value - b.value) / width
    discriminant = d1 * d1 - a.slope * b.slope
    if not discriminant >= 0.0:
        return math.nan
    d2 = math.copysign(math.sqrt(discriminant), width)
    denominator = b.slope - a.slope + 2.0 * d2
    return b.step - width * (b.slope + d2 - d1) / denominator if denominator else math.nan
