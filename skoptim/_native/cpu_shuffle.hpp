// The order of the rows in an epoch.
#pragma once
#include <vector>

#include "random.hpp"

SKOPTIM_BEGIN

// Writes a random order of 0..n-1: the numbers sorted by their keys, a byte of the random word after the other.
inline void shuffle(uint64_t seed, uint64_t epoch, int64_t n, int64_t* out) {
  constexpr int n_bytes = 4, n_values = 256;
  std::vector<uint64_t> keys(n), sorted(n);
  std::vector<int64_t> places(n_bytes * n_values);
  const auto place = [&](uint64_t key, int byte) -> int64_t& {
    return places[byte * n_values + (key >> (32 + 8 * byte)) % n_values];
  };
  for (int64_t i = 0; i < n; i += 4) {
    const Philox words = shuffle_words(seed, epoch, i);
    for (int j = 0; j < 4 && i + j < n; ++j) {
      keys[i + j] = shuffle_key(words.word[j], i + j);
      for (int byte = 0; byte < n_bytes; ++byte) ++place(keys[i + j], byte);
    }
  }
  for (int byte = 0; byte < n_bytes; ++byte) {
    int64_t first = 0;
    for (int value = 0; value < n_values; ++value) {
      const int64_t count = places[byte * n_values + value];
      places[byte * n_values + value] = first;
      first += count;
    }
    for (const uint64_t key : keys) sorted[place(key, byte)++] = key;
    keys.swap(sorted);
  }
  for (int64_t i = 0; i < n; ++i) out[i] = int64_t(uint32_t(keys[i]));
}

SKOPTIM_END
