"""Full-batch training under L1 of the columns alone that the penalty does not hold at zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skoptim._network import Dataset, Network
from skoptim.optimizers import OptimizerState
from skoptim.optimizers._full_batch import FullBatchOptimizer, Iteration, max_norm
from skoptim.penalties import PenaltyTerms

# Fewer entries are passed over in less time than it takes to choose among them.
_WORTH_CHOOSING = 2**18
# A copy pays for itself in about three iterations if it has no more than this share of the entries.
_LARGEST_SHARE = 0.5
_MOST_BYTES = 2**26
# A round ends that much nearer to the minimum than it began. (With 0.3, 0.1, 0.03 and one text,
# paths under L1 passed over all entries 155, 132 and 142 times; 404 times without rounds.)
_PROGRESS_OF_A_ROUND = 0.1


@dataclass
class _Part:
    """A problem over some columns; `places` are those of its parameters among all of them."""

    network: Network
    data: Dataset
    state: OptimizerState
    terms: PenaltyTerms
    columns: Any = None
    places: Any = None

    def value_and_grad(self, w: Any, out: Any) -> float:
        return self.network.full_gradient(self.data, w, out)


class WorkingSet:
    """Iterations of a full-batch optimizer, over the columns in play where that is faster.

    In play is a column with a coefficient that is not zero, or that would not stay so: one whose
    gradient is larger than the penalty holds. Under L1 these are few. So a linear model is trained
    in rounds: one begins with the gradient of all coefficients, which tells what is in play; then
    the optimizer has a problem of these columns alone, on a copy of them, until it is ten times as
    near to a minimum. Where they hold more than half of the entries, or 64 MB, the round is over
    all columns, without a copy. The end is the same: a minimum of the whole problem, as told by
    the gradient of all coefficients.

    Parameters
    ----------
    network : Network
        Its parameters are the starting point, and up to date after each iteration.
    optimizer : FullBatchOptimizer
    state : OptimizerState
        From the optimizer's `init`; changed in place.
    terms : PenaltyTerms
    data : Dataset

    References
    ----------
    .. [1] T. B. Johnson and C. Guestrin, "Blitz: a principled meta-algorithm for scaling sparse
       optimization", ICML 2015.
    .. [2] Q. Bertrand, Q. Klopfenstein, P.-A. Bannier, G. Gidel and M. Massias, "Beyond L1: faster
       and better sparse models with skglm", NeurIPS 2022, section 2.2.
    """

    def __init__(
        self,
        network: Network,
        optimizer: FullBatchOptimizer,
        state: OptimizerState,
        terms: PenaltyTerms,
        data: Dataset,
    ):
        self.optimizer = optimizer
        self._whole = self._part = _Part(network, data, state, terms)
        self._chooses = _choosing_pays(network, terms, data)
        if self._chooses:
            gradient = self._look()
            beyond = self._beyond(gradient)
            intercepts = gradient[network.n_coefficients :]
            self._begin_round(beyond, max(max_norm(beyond), max_norm(intercepts)))

    def iterate(self, enough: Callable[[], float]) -> Iteration:
        """Make one iteration; `enough` returns the optimality that is aimed at.

        The optimality reported is that of the whole problem at the end of a round, and that of the
        columns in play before.
        """
        part = self._part
        iteration = self.optimizer.iterate(
            part.network.parameters, part.value_and_grad, part.state, part.terms
        )
        if part is not self._whole:
            self._whole.network.parameters[part.places] = part.network.parameters
            self._whole.state.step = part.state.step
        if not self._chooses:
            return iteration
        if iteration.progressed:
            self._progressed = True
            if iteration.optimality > max(enough(), self._aim):
                return iteration
        return self._end_round(iteration, enough())

    def _end_round(self, iteration: Iteration, enough: float) -> Iteration:
        """Look at all coefficients, and begin another round unless this was the last."""
        beyond = outside = self._beyond(self._look())
        if self._part is not self._whole:
            outside = np.delete(beyond, self._part.columns)
            farthest = max_norm(outside)
            # After a round without any step, the next would not have one either.
            again = self._progressed and farthest > enough
            iteration = iteration._replace(
                optimality=max(iteration.optimality, farthest),
                progressed=iteration.progressed or again,
            )
        if iteration.progressed and iteration.optimality > enough:
            self._begin_round(beyond, iteration.optimality)
        return iteration

    def _look(self) -> Any:
        """Return the gradient of all coefficients, but for L2 where these are not zero."""
        whole = self._whole
        gradient = whole.state.slots["gradient"]
        if self._part is not whole or "value" not in whole.state.carries:
            whole.value_and_grad(whole.network.parameters, gradient)
        return gradient

    def _beyond(self, gradient: Any) -> Any:
        """Return by how much the gradient of each column is more than the penalty holds at zero."""
        terms, network = self._whole.terms, self._whole.network
        beyond = abs(gradient[: network.n_coefficients].reshape(network.shapes[0])) - terms.l1
        np.maximum(beyond, 0, out=beyond)
        if terms.group_l1:
            return np.maximum(np.linalg.norm(beyond, axis=1) - terms.group_l1, 0)
        return beyond.max(axis=1)

    def _begin_round(self, beyond: Any, optimality: float) -> None:
        """Choose what the next iterations are over."""
        self._aim, self._progressed = _PROGRESS_OF_A_ROUND * optimality, False
        whole, part = self._whole, self._part
        coefs = whole.network.views(whole.network.parameters).coefs[0]
        in_play = (beyond > 0) | coefs.any(axis=1)
        # A network has a column at least.
        columns = np.flatnonzero(in_play) if in_play.any() else np.zeros(1, dtype=np.intp)
        if part is not whole and len(part.columns) < 2 * len(columns):
            in_play[part.columns] = False
            if not in_play.any():
                return  # Nothing new, and not much less.
        X = whole.data.X
        few = X.columns(columns, min(_MOST_BYTES, _LARGEST_SHARE * X.n_bytes))
        if few is None and part is whole:
            return
        # What the optimizer remembers is about another problem.
        whole.state.slots = self._first_slots(whole.network.parameters)
        self._part = whole if few is None else self._restricted(few, columns)
        self.optimizer.refresh(whole.state)

    def _restricted(self, X: Any, columns: Any) -> _Part:
        """Return the problem over some columns, from the present parameters on."""
        whole = self._whole
        network, state = whole.network, whole.state
        width = network.layer_sizes[1]
        few = Network(
            [len(columns), width],
            None,
            network.loss,
            device=network.device,
            dtype=network.dtype,
            fit_intercept=network.fit_intercept,
        )
        of_columns = (columns[:, None] * width + np.arange(width)).ravel()
        of_intercepts = np.arange(network.n_coefficients, len(network.parameters))
        places = np.concatenate([of_columns, of_intercepts])
        few.parameters[:] = network.parameters[places]
        slots = self._first_slots(few.parameters, places)
        return _Part(
            few,
            replace(whole.data, X=X),
            OptimizerState(state.step, slots, state.carries),
            few.locate(whole.terms),
            columns,
            places,
        )

    def _first_slots(self, w: Any, places: Any = slice(None)) -> dict[str, Any]:
        """Return the slots to begin with, in the units that the whole problem was measured in."""
        slots, scale = self.optimizer.init(w).slots, self._whole.state.slots.get("scale")
        return slots if scale is None else {**slots, "scale": scale[places]}


def _choosing_pays(network: Network, terms: PenaltyTerms, data: Dataset) -> bool:
    """Whether a penalty may hold most columns of a large matrix in the host's memory at zero."""
    has_zeros = (terms.l1 > 0.0 or terms.group_l1 > 0.0) and not terms.is_constrained
    # Where the gradient jumps, all that an optimizer has learned is wanted.
    suits = network.n_layers == 1 and network.is_native and network.loss.is_smooth
    return suits and has_zeros and data.X.n_stored >= _WORTH_CHOOSING
