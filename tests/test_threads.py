"""Helpers that share a step by hand: the same bits with any number, in forks and in threads."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skoptim._devices import cpu, cpu_threads
from skoptim.optimizers import SGD, Adam

SIZES = (2**16 - 1, 2**16, 2**20 + 7)


def stepped(size, seed=0, optimizer=None, n_steps=4):
    """Return parameters and state after some steps."""
    rng = np.random.default_rng(seed)
    optimizer, w = optimizer or Adam(), rng.standard_normal(size)
    state = optimizer.init(w)
    for _ in range(n_steps):
        optimizer.step(w, rng.standard_normal(size), state)
    return [w, *state.slots.values()]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", [Adam(), SGD(0.1, momentum=0.9, l2=0.01)])
@pytest.mark.parametrize("size", SIZES)
def test_steps_have_the_same_bits_with_any_number_of_threads(size, optimizer, monkeypatch):
    with threadpool_limits(1):
        expected = stepped(size, optimizer=optimizer)
    # More than there are processors, then fewer again.
    for n_threads in (2, 5, 3):
        monkeypatch.setattr(cpu_threads, "limit", lambda n=n_threads: n)
        assert_same(stepped(size, optimizer=optimizer), expected)


def test_python_threads_step_at_once(monkeypatch):
    monkeypatch.setattr(cpu_threads, "limit", lambda: 3)
    expected = [stepped(SIZES[-1], seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: stepped(SIZES[-1], seed), range(4)))
    for actual, wanted in zip(found, expected, strict=True):
        assert_same(actual, wanted)


def test_both_sides_ask_for_threads_from_the_same_size_on():
    source = resources.files("skoptim._native").joinpath("cpu_module.cpp").read_text()
    assert f"worth_a_thread = 1 << {cpu._WORTH_A_THREAD.bit_length() - 1}," in source


def put_steps(queue):
    queue.put([float(array.sum()) for array in stepped(SIZES[-1])])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_helpers_of_its_own(monkeypatch):
    monkeypatch.setattr(cpu_threads, "limit", lambda: 3)
    expected = [float(array.sum()) for array in stepped(SIZES[-1])]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=put_steps, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        process.kill()
        process.join()
