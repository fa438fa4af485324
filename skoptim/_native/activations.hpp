// Activations: value at the input z, derivative from the input z and the output a.
#pragma once
#include "platform.hpp"

SKOPTIM_BEGIN

struct Identity {
  template <class T>
  SKOPTIM_HD static T value(T z) { return z; }
  template <class T>
  SKOPTIM_HD static T derivative(T, T) { return T(1); }
};

struct Logistic {
  template <class T>
  SKOPTIM_HD static T value(T z) { return T(1) / (T(1) + math::exp(-z)); }
  template <class T>
  SKOPTIM_HD static T derivative(T, T a) { return a * (T(1) - a); }
};

struct Tanh {
  template <class T>
  SKOPTIM_HD static T value(T z) { return math::tanh(z); }
  template <class T>
  SKOPTIM_HD static T derivative(T, T a) { return T(1) - a * a; }
};

struct Relu {
  template <class T>
  SKOPTIM_HD static T value(T z) { return z < T(0) ? T(0) : z; }
  template <class T>
  SKOPTIM_HD static T derivative(T, T a) { return a > T(0) ? T(1) : T(0); }
};

struct LeakyRelu {
  template <class T>
  SKOPTIM_HD static T value(T z) { return z < T(0) ? T(0.01) * z : z; }
  template <class T>
  SKOPTIM_HD static T derivative(T, T a) { return a > T(0) ? T(1) : T(0.01); }
};

struct Elu {
  template <class T>
  SKOPTIM_HD static T value(T z) { return z < T(0) ? math::expm1(z) : z; }
  template <class T>
  SKOPTIM_HD static T derivative(T, T a) { return a < T(0) ? a + T(1) : T(1); }
};

// z * Phi(z), Phi the normal distribution function: the exact form, not the tanh approximation.
struct Gelu {
  template <class T>
  SKOPTIM_HD static T phi(T z) { return T(0.5) * (T(1) + math::erf(z * T(0.70710678118654752440))); }
  template <class T>
  SKOPTIM_HD static T value(T z) { return z * phi(z); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T) {
    return phi(z) + z * T(0.39894228040143267794) * math::exp(T(-0.5) * z * z);
  }
};

struct Silu {
  template <class T>
  SKOPTIM_HD static T value(T z) { return z * Logistic::value(z); }
  template <class T>
  SKOPTIM_HD static T derivative(T z, T) {
    const T s = Logistic::value(z);
    return s * (T(1) + z * (T(1) - s));
  }
};

// name, type, whether the derivative needs z (else the output is enough).
#define SKOPTIM_ACTIVATIONS(X)        \
  X("identity", Identity, false)      \
  X("logistic", Logistic, false)      \
  X("tanh", Tanh, false)              \
  X("relu", Relu, false)              \
  X("leaky_relu", LeakyRelu, false)   \
  X("elu", Elu, false)                \
  X("gelu", Gelu, true)               \
  X("silu", Silu, true)

SKOPTIM_END
