// Counter-based random numbers: the same bits for the same (seed, stream, index) on every device
// and with any number of threads. Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers:
// as easy as 1, 2, 3".
#pragma once
#include "platform.hpp"

SKOPTIM_BEGIN

struct Philox {
  uint32_t word[4];
};

SKOPTIM_HD Philox philox(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32);
  uint32_t c2 = uint32_t(stream), c3 = uint32_t(stream >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Whether unit `index` survives a dropout that keeps a share threshold / 2^32 of the units.
SKOPTIM_HD bool survives(uint64_t seed, uint64_t stream, uint64_t index, uint32_t threshold) {
  return philox(seed, stream, index / 4).word[index % 4] < threshold;
}

// A shuffle orders the numbers 0..n-1, n < 2^32, by random words: this is the key of number `item`, which tells
// equal words apart. Epochs count down from the last stream, dropout counts up from the first.
SKOPTIM_HD uint64_t shuffle_key(uint32_t word, uint64_t item) { return uint64_t(word) << 32 | item; }
SKOPTIM_HD Philox shuffle_words(uint64_t seed, uint64_t epoch, uint64_t item) { return philox(seed, ~epoch, item / 4); }

SKOPTIM_END
