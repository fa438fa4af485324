// Losses on raw scores: value and derivative for one score, and the softmax of one row.
//
// Classification targets are -1 and +1 (multinomial: a class index). `parameter` is the loss's own
// constant: epsilon of the insensitive and Huber losses, the level of the quantile loss.
#pragma once
#include "platform.hpp"

SKOPTIM_BEGIN

struct SquaredError {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) { return T(0.5) * (z - y) * (z - y); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) { return z - y; }
};

struct Huber {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T epsilon) {
    const T r = absolute(z - y);
    return r <= epsilon ? T(0.5) * r * r : epsilon * r - T(0.5) * epsilon * epsilon;
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T epsilon) { return clamp(z - y, -epsilon, epsilon); }
};

struct EpsilonInsensitive {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T epsilon) { return larger(absolute(z - y) - epsilon, T(0)); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T epsilon) {
    return absolute(z - y) <= epsilon ? T(0) : sign(z - y) + T(0) * z;
  }
};

struct SquaredEpsilonInsensitive {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T epsilon) {
    const T excess = larger(absolute(z - y) - epsilon, T(0));
    return excess * excess;
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T epsilon) {
    return T(2) * ((z - y) - clamp(z - y, -epsilon, epsilon));
  }
};

// Half the Poisson deviance, with the exponential link.
struct Poisson {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) {
    return math::exp(z) - y * z + (y > T(0) ? y * math::log(y) : T(0)) - y;
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) { return math::exp(z) - y; }
};

struct Quantile {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T level) {
    return z < y ? level * (y - z) : (T(1) - level) * (z - y);
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T level) {
    return z < y ? -level : (z > y ? T(1) - level : T(0) * z);
  }
};

struct Hinge {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) { return larger(T(1) - y * z, T(0)); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) { return y * z <= T(1) ? -y : T(0) * z; }
};

struct SquaredHinge {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) {
    const T slack = larger(T(1) - y * z, T(0));
    return slack * slack;
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) { return T(-2) * y * larger(T(1) - y * z, T(0)); }
};

struct LogLoss {
  // Both share exp(-|margin|), which cannot overflow.
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) {
    const T margin = y * z;
    return math::log1p_fraction(math::exp(-absolute(margin))) + larger(-margin, T(0));
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) {
    const T margin = y * z, e = math::exp(-absolute(margin));
    return -y * larger(e, T(margin < T(0))) / (T(1) + e);
  }
};

struct ModifiedHuber {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) {
    const T margin = y * z;
    const T slack = larger(T(1) - margin, T(0));
    return margin < T(-1) ? T(-4) * margin : slack * slack;
  }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) {
    const T margin = y * z;
    return margin < T(-1) ? T(-4) * y : T(-2) * y * larger(T(1) - margin, T(0));
  }
};

struct Perceptron {
  template <class T>
  SKOPTIM_HD static T value(T z, T y, T) { return larger(-y * z, T(0)); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T y, T) { return y * z <= T(0) ? -y : T(0) * z; }
};

#define SKOPTIM_LOSSES(X)                                     \
  X("squared_error", SquaredError)                            \
  X("huber", Huber)                                           \
  X("epsilon_insensitive", EpsilonInsensitive)                \
  X("squared_epsilon_insensitive", SquaredEpsilonInsensitive) \
  X("poisson", Poisson)                                       \
  X("quantile", Quantile)                                     \
  X("hinge", Hinge)                                           \
  X("squared_hinge", SquaredHinge)                            \
  X("log_loss", LogLoss)                                      \
  X("modified_huber", ModifiedHuber)                          \
  X("perceptron", Perceptron)

// Cross-entropy of softmax(z) against class `label`. Leaves softmax(z) - onehot(label) in
// `gradient`, which may be null.
template <class T>
SKOPTIM_HD T softmax_cross_entropy(const T* z, int64_t n_classes, int64_t label, T* gradient) {
  T top = z[0];
  for (int64_t k = 1; k < n_classes; ++k) top = larger(top, z[k]);
  T total = T(0);
  if (gradient) {
#pragma GCC ivdep
    for (int64_t k = 0; k < n_classes; ++k) gradient[k] = math::exp(z[k] - top);
    for (int64_t k = 0; k < n_classes; ++k) total += gradient[k];
    for (int64_t k = 0; k < n_classes; ++k)
      gradient[k] = gradient[k] / total - (k == label ? T(1) : T(0));
  } else {
    for (int64_t k = 0; k < n_classes; ++k) total += math::exp(z[k] - top);
  }
  return math::log(total) + top - z[label];
}

SKOPTIM_END
