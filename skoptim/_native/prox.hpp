// Proximal operators of the penalties, one coefficient (or one group) at a time.
#pragma once
#include "platform.hpp"

SKOPTIM_BEGIN

// argmin_u |u - w|^2 / 2 + threshold |u|; exactly +0.0 inside the threshold.
template <class T>
SKOPTIM_HD T soft_threshold(T w, T threshold) {
  const T rest = absolute(w) - threshold;
  return rest <= T(0) ? T(0) : math::copysign(rest, w);
}

// The prox of step * (l1 |u| + l2 u^2 / 2 + indicator of [lower, upper]). The tests keep an infinite step
// from making 0 * inf.
template <class T>
SKOPTIM_HD T prox_elastic_box(T w, T step, T l1, T l2, T lower, T upper) {
  const T threshold = l1 > T(0) ? step * l1 : T(0);
  const T ridge = l2 > T(0) ? T(1) + step * l2 : T(1);
  return clamp(soft_threshold(w, threshold) / ridge, lower, upper);
}

// The factor by which the prox of threshold * ||w||_2 scales a group of that squared norm.
template <class T>
SKOPTIM_HD T group_shrinkage(T squared_norm, T threshold) {
  const T norm = math::sqrt(squared_norm);
  return norm > threshold ? T(1) - threshold / norm : (norm <= threshold ? T(0) : norm);
}

SKOPTIM_END
