"""Errors around a GPU, as far as they need none: forks, and what is passed through."""

import multiprocessing
import os

import pytest

from skoptim._devices import cuda_errors


def test_the_process_that_uses_cuda_is_not_refused(monkeypatch):
    monkeypatch.setattr(cuda_errors, "_process", None)
    cuda_errors.refuse_after_fork()
    cuda_errors.remember_process()
    cuda_errors.refuse_after_fork()


def refused(queue):
    try:
        cuda_errors.refuse_after_fork()
        queue.put("")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_a_fork_is_refused_once_cuda_was_used(used, monkeypatch):
    monkeypatch.setattr(cuda_errors, "_process", None)
    if used:
        cuda_errors.remember_process()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=refused, args=(queue,))
    process.start()
    process.join(30)
    assert not queue.empty()
    message = queue.get()
    assert ("loky" in message and "forked" in message) if used else message == ""


def test_the_error_of_a_fork_is_explained_whoever_used_cuda():
    with (
        pytest.raises(RuntimeError, match=r"was forked.*initialization error"),
        cuda_errors.fork_explained(),
    ):
        raise RuntimeError("cudaErrorInitializationError: initialization error")


@pytest.mark.parametrize("error", [MemoryError("of the host"), RuntimeError("OUT_OF_MEMORY")])
def test_errors_of_others_are_passed_through(error):
    for explained in (cuda_errors.out_of_memory_explained, cuda_errors.fork_explained):
        with pytest.raises(type(error)) as raised, explained():
            raise error
        assert raised.value is error
