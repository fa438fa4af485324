// What differs between the C++ compiler and NVRTC: function qualifiers, the math library, and the
// namespace that keeps the copies compiled for each instruction set apart.
#pragma once

#ifdef __CUDACC_RTC__
#define SKOPTIM_HD __device__ __forceinline__
#define SKOPTIM_ARCH device
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;
#define SKOPTIM_INFINITY (__longlong_as_double(0x7ff0000000000000LL))
namespace skoptim {
namespace math {
SKOPTIM_HD float sqrt(float x) { return ::sqrtf(x); }
SKOPTIM_HD double sqrt(double x) { return ::sqrt(x); }
SKOPTIM_HD float fabs(float x) { return ::fabsf(x); }
SKOPTIM_HD double fabs(double x) { return ::fabs(x); }
SKOPTIM_HD float copysign(float x, float y) { return ::copysignf(x, y); }
SKOPTIM_HD double copysign(double x, double y) { return ::copysign(x, y); }
SKOPTIM_HD float pow(float x, float y) { return ::powf(x, y); }
SKOPTIM_HD double pow(double x, double y) { return ::pow(x, y); }
SKOPTIM_HD float exp(float x) { return ::expf(x); }
SKOPTIM_HD double exp(double x) { return ::exp(x); }
SKOPTIM_HD float log(float x) { return ::logf(x); }
SKOPTIM_HD double log(double x) { return ::log(x); }
SKOPTIM_HD float log1p(float x) { return ::log1pf(x); }
SKOPTIM_HD double log1p(double x) { return ::log1p(x); }
SKOPTIM_HD float log1p_fraction(float x) { return ::log1pf(x); }
SKOPTIM_HD double log1p_fraction(double x) { return ::log1p(x); }
SKOPTIM_HD float expm1(float x) { return ::expm1f(x); }
SKOPTIM_HD double expm1(double x) { return ::expm1(x); }
SKOPTIM_HD float tanh(float x) { return ::tanhf(x); }
SKOPTIM_HD double tanh(double x) { return ::tanh(x); }
SKOPTIM_HD float erf(float x) { return ::erff(x); }
SKOPTIM_HD double erf(double x) { return ::erf(x); }
}  // namespace math
}  // namespace skoptim
#else
#include <cmath>
#include <cstdint>
#include <limits>
// Forced, because a loop around a call does not vectorise.
#define SKOPTIM_HD [[gnu::always_inline]] inline
// The same, behind the parameters of a lambda.
#define SKOPTIM_INLINE __attribute__((always_inline))
#ifndef SKOPTIM_ARCH
#define SKOPTIM_ARCH baseline
#endif
#define SKOPTIM_INFINITY (std::numeric_limits<double>::infinity())
#endif

// Code compiled several times, once per instruction set, must not share symbols: the linker would
// keep one copy of each inline function, and a machine without AVX-512 could meet the AVX-512 one.
#define SKOPTIM_BEGIN namespace skoptim { namespace SKOPTIM_ARCH {
#define SKOPTIM_END } }

#ifndef __CUDACC_RTC__
#include "elementary.hpp"
SKOPTIM_BEGIN
namespace math {
using std::copysign;
using std::erf;
using std::fabs;
using std::log;
using std::log1p;
using std::pow;
using std::sqrt;
using std::tanh;
}  // namespace math
SKOPTIM_END
#endif

SKOPTIM_BEGIN

// Comparisons are written so that NaN passes through: a NaN must be seen, never clipped away.
template <class T>
SKOPTIM_HD T absolute(T x) { return math::fabs(x); }

template <class T>
SKOPTIM_HD T clamp(T x, T lower, T upper) { return x < lower ? lower : (x > upper ? upper : x); }

template <class T>
SKOPTIM_HD T larger(T a, T b) { return a < b ? b : a; }

template <class T>
SKOPTIM_HD T sign(T x) { return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x); }

SKOPTIM_END
