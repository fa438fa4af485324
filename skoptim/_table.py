"""A linear model while it is trained on CSR data: weights and optimizer state column by column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from skoptim._devices import cpu_training
from skoptim._network import Dataset, Network
from skoptim.optimizers import Optimizer, OptimizerState
from skoptim.optimizers._base import Scalars
from skoptim.penalties import PenaltyTerms


class LinearTable:
    """Takes a linear model's parameters and state over, in the layout that sparse training wants.

    While it lives, `network` has no parameters and `state` no arrays; `release` gives them back.

    Parameters
    ----------
    network : Network
        Without a hidden layer.
    optimizer : Optimizer
        With a compiled rule.
    state : OptimizerState
        Its slots, and if there are any the averaged sums and the units of the columns.
    terms : PenaltyTerms
    batch_size : int
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        state: OptimizerState,
        terms: PenaltyTerms,
        batch_size: int,
    ):
        assert optimizer.rule is not None
        self.network, self.state = network, state
        self.rule, self.slot_names = optimizer.rule, optimizer.slot_names
        n_columns, width = network.layer_sizes
        average, unit = state.slots.get("average_sum"), state.slots.get("unit")
        self.is_averaging, self.has_units = average is not None, unit is not None
        #: The settings and the largest share of stored entries for which a table is known to pay.
        self.pays_for: tuple | None = None
        self.pays_up_to = 0.0
        self._native = cpu_training.make_table(
            self.rule,
            n_columns,
            width,
            network.dtype,
            has_units=self.has_units,
            averaging=self.is_averaging,
        )
        slots = [state.slots[name] for name in self.slot_names]
        last_row = optimizer.last_row(state, terms, batch_size).astype(network.dtype)
        self._native.load(network.parameters, slots, average, unit, last_row)
        for name in (*self.slot_names, "average_sum", "unit"):
            state.slots.pop(name, None)
        del network.parameters

    def suits(self, optimizer: Optimizer, averaging: bool) -> bool:
        """Whether training may go on in this table."""
        rule = optimizer.rule
        return (rule, optimizer.has_units, averaging) == (
            self.rule,
            self.has_units,
            self.is_averaging,
        )

    def settle(self) -> None:
        """Pay all debts, with the scalars under which they were made."""
        self._native.settle()

    def train(
        self, task: Any, order: Any, scalars: Scalars, batch_size: int, n_workers: int
    ) -> float:
        """Take a block of steps; return the sum of the losses.

        Parameters
        ----------
        task : Task of the device
        order : ndarray of int64
            The samples, in the order in which to visit them.
        scalars : Scalars
            Of all the steps.
        batch_size : int
        n_workers : int
            Threads that train at once, asynchronously if there are several.
        """
        native = cpu_training.native_scalars(scalars, self.network.dtype)
        return self._native.train(task, order, native, batch_size, n_workers)

    def observe(self, data: Dataset) -> float:
        """Measure the units of the columns; return the mean squared norm in these units."""
        return self._native.observe(data.X.native, data.rows, 0, data.n_samples)

    def penalty(self, terms: PenaltyTerms) -> tuple[float, bool]:
        """Return the penalty, and whether all parameters are finite."""
        absolute, squares, norms, finite = self._native.penalty_sums()
        return terms.l1 * absolute + 0.5 * terms.l2 * squares + terms.group_l1 * norms, finite

    @property
    def is_finite(self) -> bool:
        """Whether the parameters changed so far were finite."""
        return self._native.finite

    def write_weights(self) -> None:
        """Pay all debts, and copy the weights, and averaged sums, to network and state."""
        average = self._make("average_sum", np.float64) if self.is_averaging else None
        self._native.store(self.network.parameters, [], average, None, last=False)

    def release(self, *, with_parameters: bool = True) -> None:
        """Pay all debts, and give network and state their arrays back; the table is empty then."""
        parameters = self.network.parameters if with_parameters else None
        slots = [self._make(name, self.network.dtype) for name in self.slot_names]
        average = self._make("average_sum", np.float64) if self.is_averaging else None
        unit = None
        if self.has_units:
            unit = self.state.slots["unit"] = np.empty(
                self.network.layer_sizes[0], self.network.dtype
            )
        self._native.store(parameters, slots, average, unit, last=True)

    @contextmanager
    def lent_to(self, network: Network) -> Iterator[None]:
        """Let another network of this shape train here; bring all back, should that fail."""
        owner, step, carries = self.network, self.state.step, dict(self.state.carries)
        self.network = network
        self._native.keep()
        try:
            yield
        except BaseException:
            self._native.undo()
            self.network = owner
            self.state.step, self.state.carries = step, carries
            raise
        self._native.forget()

    def _make(self, name: str, dtype: Any) -> np.ndarray:
        size = self.network.n_coefficients + self.network.layer_sizes[1]
        return self.state.slots.setdefault(name, np.empty(size, dtype))
