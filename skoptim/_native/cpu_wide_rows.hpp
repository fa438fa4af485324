// A row of many outputs: what a column holds for all of them fills vectors where it lies.
#pragma once
#include <cstdint>

#include "cpu_owing.hpp"
#include "cpu_units.hpp"
#include "cpu_vectors.hpp"

SKOPTIM_BEGIN

// Outputs by parts of n. The last part ends with the last output: it may share some with the one before.
template <int n>
class Parts {
 public:
  explicit Parts(int64_t width) : filled_(width / n), shares_(width % n != 0), last_(width - n) {}
  // Of an array that holds the parts one after the other.
  int64_t padded() const { return (filled_ + shares_) * n; }

  // Calls finish(first output, place in a padded array, load(first output, place)) for each part. What the last one
  // shares is loaded before it is finished elsewhere.
  template <class Load, class Finish>
  [[gnu::always_inline]] inline void each(Load load, Finish finish) const {
    const int64_t place = filled_ * n;
    if (!shares_) return each_filled(load, finish);
    const auto last = load(last_, place);
    each_filled(load, finish);
    finish(last_, place, last);
  }

 private:
  template <class Load, class Finish>
  [[gnu::always_inline]] inline void each_filled(Load load, Finish finish) const {
    for (int64_t p = 0; p < filled_; ++p) finish(p * n, p * n, load(p * n, p * n));
  }

  const int64_t filled_;
  const bool shares_;
  const int64_t last_;
};

// How columns that are not `recorded` are trained, n outputs at a time.
template <class Rule, class T, Owing owing, bool has_units, int n>
struct WideColumns {
  static_assert(!(has_units && has_marks(owing)), "both would lie behind the slots");
  using V = typename VectorOf<T, n * sizeof(T)>::type;
  static constexpr int n_runs = stores_weights(owing) + Rule::n_slots;

  // Of one part: what is given (sums or weights), and the runs of the record.
  struct Loaded {
    V given, runs[n_runs];
  };
  SKOPTIM_HD static Loaded load_part(const T* given, const T* record, int64_t width, int64_t first) {
    Loaded part;
    part.given = load<V>(given);
    for (int j = 0; j < n_runs; ++j) part.runs[j] = load<V>(record + j * width + first);
    return part;
  }

  // Writes the weights of a column to w, and adds x times them to `sums`, which are padded.
  SKOPTIM_HD static void weigh(const Parts<n>& parts, const T* record, int64_t width, T x, Scalars<Rule, T>& k,
                               double threshold, T* w, T* sums) {
    const T owed = prepare(record, width, k, threshold);
    parts.each(
        [=](int64_t first, int64_t place) SKOPTIM_INLINE { return load_part(sums + place, record, width, first); },
        [=](int64_t first, int64_t place, const Loaded& part) SKOPTIM_INLINE {
          const V weight = weights_of(part, k, owed);
          // (Those that are scaled alone are what the record holds.)
          if (owing != Owing::scaled) store(weight, w + first);
          store(part.given + x * weight, sums + place);
        });
  }

  // Writes the weights of a column to w; nothing is given.
  SKOPTIM_HD static void weights(const Parts<n>& parts, const T* record, int64_t width, Scalars<Rule, T>& k,
                                 double threshold, T* w) {
    const T owed = prepare(record, width, k, threshold);
    parts.each([=](int64_t first, int64_t) SKOPTIM_INLINE { return load_part(record, record, width, first); },
               [=](int64_t first, int64_t, const Loaded& part) SKOPTIM_INLINE {
                 store(weights_of(part, k, owed), w + first);
               });
  }

  // A step of a column with gradient factor * d.
  SKOPTIM_HD static void step(const Parts<n>& parts, T* record, int64_t width, T factor, Scalars<Rule, T>& k,
                              double mark, bool is_worker, const T* w, const T* d) {
    set_unit(record, width, k);
    parts.each(
        [=](int64_t first, int64_t) SKOPTIM_INLINE {
          return load_part((owing == Owing::scaled ? record : w) + first, record, width, first);
        },
        [=](int64_t first, int64_t, const Loaded& part) SKOPTIM_INLINE {
          T runs[n_runs][n], weight[n], g[n];
          for (int j = 0; j < n_runs; ++j) store(part.runs[j], runs[j]);
          store(part.given, weight);
          store(factor * load<V>(d + first), g);
          each_lane<n>([&](int i) SKOPTIM_INLINE {
            if constexpr (owing == Owing::derived) {
              T s[] = {runs[0][i], runs[1][i]};
              Rule::advance(weight[i], g[i], s, k.common, k.own);
              runs[0][i] = s[0], runs[1][i] = s[1];
            } else {
              constexpr Extras extras = has_marks(owing) ? Extras::lasso : Extras::none;
              T none[1] = {};
              update_with<Rule, extras>(weight[i], g[i], none, k.common, k.own);
              runs[0][i] = weight[i];
            }
          });
          for (int j = 0; j < n_runs; ++j) store(load<V>(runs[j]), record + j * width + first);
        });
    if constexpr (has_marks(owing)) set_mark(record + n_runs * width, mark, is_worker);
  }

 private:
  SKOPTIM_HD static void set_unit(const T* record, int64_t width, Scalars<Rule, T>& k) {
    if constexpr (owing == Owing::derived) k.own[Rule::unit] = has_units ? unit_at(record + n_runs * width) : T(1);
  }

  // Sets the unit of a column in k, and returns what its weights owe.
  SKOPTIM_HD static T prepare(const T* record, int64_t width, Scalars<Rule, T>& k, double threshold) {
    set_unit(record, width, k);
    return has_marks(owing) ? owed_amount<T>(threshold, mark_at(record + n_runs * width)) : T(0);
  }

  SKOPTIM_HD static V weights_of(const Loaded& part, const Scalars<Rule, T>& k, T owed) {
    T runs[n_runs][n], weight[n];
    for (int j = 0; j < n_runs; ++j) store(part.runs[j], runs[j]);
    each_lane<n>([&](int i) SKOPTIM_INLINE {
      if constexpr (owing == Owing::derived) {
        const T s[] = {runs[0][i], runs[1][i]};
        weight[i] = Rule::weight(T(0), s, k.common, k.own);
      } else {
        weight[i] = has_marks(owing) ? soft_threshold(runs[0][i], owed) : runs[0][i];
      }
    });
    return load<V>(weight);
  }
};

SKOPTIM_END
