// Elementary functions for the CPU that compilers can vectorise: no branches, no calls, the same
// result on every instruction set. NaN passes through.
//
// Argument reduction and series are the textbook ones (Muller, "Elementary functions", 3rd edition,
// 2016, chapters 3 and 11); the errors, measured against the C library, are below two units in the
// last place.
#pragma once
#include "platform.hpp"

SKOPTIM_BEGIN
namespace math {

constexpr int half_of(int n) { return n <= 2 ? 1 : 2 * half_of((n + 1) / 2); }
constexpr int log_of(int n) { return n == 1 ? 0 : 1 + log_of(n / 2); }

// The polynomial of n coefficients by Estrin's scheme, whose halves are independent of each other:
// power[i] = x^(2^i).
template <int n, class T>
SKOPTIM_HD T polynomial(const T* coefficient, const T* power) {
  if constexpr (n == 1) {
    return coefficient[0];
  } else {
    constexpr int half = half_of(n);
    return polynomial<half>(coefficient, power) +
           power[log_of(half)] * polynomial<n - half>(coefficient + half, power);
  }
}
template <class T, int n>
SKOPTIM_HD T polynomial(const T (&coefficient)[n], T x) {
  const T x2 = x * x, x4 = x2 * x2, power[] = {x, x2, x4, x4 * x4};
  return polynomial<n>(coefficient, power);
}

template <class T>
struct Binary;
template <>
struct Binary<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double low = -708.0, high = 709.4, round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
};
template <>
struct Binary<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float low = -87.0f, high = 88.3f, round = 0x1.8p23f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};

// Taylor coefficients: of (exp(r) - 1 - r) / r^2, and of (artanh(s) / s - 1) / s^2 in s^2.
template <class T>
struct Series;
template <>
struct Series<double> {
  static constexpr double exp[] = {1.0 / 2,         1.0 / 6,         1.0 / 24,     1.0 / 120,
                                     1.0 / 720,       1.0 / 5040,      1.0 / 40320,  1.0 / 362880,
                                     1.0 / 3628800,   1.0 / 39916800,  1.0 / 479001600,
                                     1.0 / 6227020800};
  static constexpr double log[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17,
                                   1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33};
};
template <>
struct Series<float> {
  static constexpr float exp[] = {1.0f / 2,   1.0f / 6,   1.0f / 24,
                                   1.0f / 120, 1.0f / 720, 1.0f / 5040};
  static constexpr float log[] = {1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9, 1.0f / 11, 1.0f / 13, 1.0f / 15};
};

// 0 below -708 (float: -87) and infinity above 709.4 (88.3), a little before the C library's.
template <class T>
SKOPTIM_HD T exp(T x) {
  using B = Binary<T>;
  const T above = B::low > x ? B::low : x, bounded = B::high < above ? B::high : above;
  // Adding 1.5 * 2^mantissa rounds to an integer, which the low bits of the sum then hold.
  const T shifted = bounded * T(1.44269504088896340736) + B::round;
  const T n = shifted - B::round;
  const T r = (bounded - n * B::ln2_high) - n * B::ln2_low;
  const T sum = T(1) + (r + r * r * polynomial(Series<T>::exp, r));
  using Bits = typename B::Bits;
  const Bits low_bits = __builtin_bit_cast(Bits, shifted) - __builtin_bit_cast(Bits, B::round);
  const T scale = __builtin_bit_cast(T, Bits((low_bits + B::bias) << B::mantissa));
  // The scale is chosen, and not the result: it is at hand earlier.
  return sum * (x < B::low ? T(0) : (x > B::high ? std::numeric_limits<T>::infinity() : scale));
}

// exp(x) - 1.
template <class T>
SKOPTIM_HD T expm1(T x) {
  const T near = x + x * x * polynomial(Series<T>::exp, x);
  return std::fabs(x) < T(0.34657359027997265471) ? near : exp(x) - T(1);
}

// log(1 + x) for x in [0, 1].
template <class T>
SKOPTIM_HD T log1p_fraction(T x) {
  const T s = x / (T(2) + x), square = s * s;
  // x - x s + ...: the first term exact, so that small x keep their digits.
  return x - s * (x - T(2) * square * polynomial(Series<T>::log, square));
}

// The same for x below `Small::below`, by fewer terms and without a quotient: (x - log(1 + x)) / x^2 in x.
template <class T>
struct Small;
template <>
struct Small<double> {
  static constexpr double below = 0x1p-10, log[] = {1.0 / 2, -1.0 / 3, 1.0 / 4, -1.0 / 5, 1.0 / 6};
};
template <>
struct Small<float> {
  static constexpr float below = 0x1p-6f, log[] = {1.0f / 2, -1.0f / 3, 1.0f / 4};
};
template <class T>
SKOPTIM_HD T log1p_small(T x) {
  return x - x * x * polynomial(Small<T>::log, x);
}

}  // namespace math
SKOPTIM_END
