"""The order of rows in an epoch: what it is made of, and that every order is as likely."""

from itertools import permutations

import numpy as np
import pytest

from skoptim import SGDRegressor
from skoptim._devices import cpu


def philox(seed, stream, index):
    """Return the four words of Philox4x32-10 (Salmon et al. 2011) for an array of counters."""
    index = np.asarray(index, dtype=np.uint64)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    stream = np.full_like(index, stream)
    c = [index & mask, index >> shift, stream & mask, stream >> shift]
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(q >> shift) ^ c[1] ^ k[0], q & mask, (p >> shift) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, axis=-1)


# The known answers of the authors' library Random123 (philox4x32 10): counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    c, k = ([int(word, 16) for word in text.split()] for text in (counter, key))
    found = philox(k[1] << 32 | k[0], c[3] << 32 | c[2], c[1] << 32 | c[0])
    assert [f"{int(word):08x}" for word in found] == words.split()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 255, 10_007])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**31 - 5, 3), (2**40 + 7, 2**33)])
def test_rows_are_sorted_by_random_words(n, seed, epoch):
    words = philox(seed, 2**64 - 1 - epoch, np.arange(-(-n // 4))).reshape(-1)[:n]
    order = cpu.shuffled(n, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(order, np.argsort(words, kind="stable"))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_is_as_likely(n):
    n_drawn, orders = 60_000, {order: i for i, order in enumerate(permutations(range(n)))}
    drawn = [orders[tuple(cpu.shuffled(n, 1, epoch))] for epoch in range(n_drawn)]
    counts, expected = np.bincount(drawn, minlength=len(orders)), n_drawn / len(orders)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # The seed is fixed; five standard deviations of the statistic above its mean.
    freedom = len(orders) - 1
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_every_epoch_has_an_order_of_its_own():
    X, y = np.eye(50), np.arange(50.0)
    orders = {tuple(cpu.shuffled(50, 0, epoch)) for epoch in range(20)}
    assert len(orders) == 20
    fits = [
        SGDRegressor(random_state=seed, max_iter=3, tol=None).fit(X, y).coef_ for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])
