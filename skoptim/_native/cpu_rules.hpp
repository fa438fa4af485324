// CPU drivers of the rules: loops of rules.hpp over flat parameters and over touched columns.
#pragma once
#include "kernels.hpp"
#include "owed.hpp"

SKOPTIM_BEGIN

// A rule without slots still needs an array of length one.
template <class Rule>
constexpr int slot_storage = Rule::n_slots > 0 ? Rule::n_slots : 1;

template <class Rule, class T>
struct RuleDriver {
  static constexpr int n_slots = Rule::n_slots;

  // Loads one parameter with its state, and stores it again when done.
  struct Cell {
    const Parameters<T>& p;
    int64_t i;
    T w, s[slot_storage<Rule>];
    Cell(const Parameters<T>& p_, int64_t i_) : p(p_), i(i_), w(p_.w[i_]), s{} {
      for (int j = 0; j < n_slots; ++j) s[j] = p.slots[j][i];
    }
    void store() const {
      p.w[i] = w;
      for (int j = 0; j < n_slots; ++j) p.slots[j][i] = s[j];
    }
  };

  static void apply(const Parameters<T>& p, const T* g, int64_t begin, int64_t end, const T* row,
                    bool penalised, int64_t group_width) {
    Common<T> c = load_common(row);
    if (!penalised) c = unpenalised(c);
    T k[Rule::n_scalars + 1];
    for (int j = 0; j < Rule::n_scalars; ++j) k[j] = row[n_common + j];
    T* const w = p.w + begin;
    T* const s0 = n_slots > 0 ? p.slots[0] + begin : nullptr;
    T* const s1 = n_slots > 1 ? p.slots[1] + begin : nullptr;
    T* const s2 = n_slots > 2 ? p.slots[2] + begin : nullptr;
    const int64_t n = end - begin;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      T wi = w[i], s[3] = {};
      if constexpr (n_slots > 0) s[0] = s0[i];
      if constexpr (n_slots > 1) s[1] = s1[i];
      if constexpr (n_slots > 2) s[2] = s2[i];
      update<Rule>(wi, g[i], s, c, k);
      w[i] = wi;
      if constexpr (n_slots > 0) s0[i] = s[0];
      if constexpr (n_slots > 1) s1[i] = s[1];
      if constexpr (n_slots > 2) s2[i] = s[2];
    }
    if (c.group_l1 > T(0) && group_width > 0)
      for (int64_t i = 0; i < n; i += group_width) shrink_group(w + i, group_width, row);
    if (p.average && c.average != T(0)) {
      double* const average = p.average + begin;
      for (int64_t i = 0; i < n; ++i) average[i] += double(c.average) * w[i];
    }
  }

  static void shrink_group(T* w, int64_t width, const T* row) {
    if constexpr (Rule::uniform) {
      const Common<T> c = load_common(row);
      T ignored = T(0), s[slot_storage<Rule>] = {};
      const T step_size = Rule::step(ignored, T(0), s, c, row + n_common);
      T squared_norm = T(0);
      for (int64_t i = 0; i < width; ++i) squared_norm += w[i] * w[i];
      const T factor = group_shrinkage(squared_norm, step_size * c.group_l1);
      for (int64_t i = 0; i < width; ++i) w[i] *= factor;
    }
  }

  static void apply_columns(const Parameters<T>& p, const int64_t* columns, int64_t n,
                            int64_t width, const T* g, const T* row) {
    const Common<T> c = load_common(row);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t begin = columns[j] * width;
      for (int64_t i = 0; i < width; ++i) {
        Cell cell(p, begin + i);
        update<Rule>(cell.w, g[j * width + i], cell.s, c, row + n_common);
        cell.store();
      }
      if (c.group_l1 > T(0)) shrink_group(p.w + begin, width, row);
      if (p.average)
        for (int64_t i = begin; i < begin + width; ++i) p.average[i] += double(c.average) * p.w[i];
    }
  }

  // The coefficients of a column under a group penalty move together: replay them step by step.
  static void pay_group(const Parameters<T>& p, int64_t begin, int64_t width,
                        const Steps<T>& steps, int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const T* row = steps.rows + t * steps.width;
      const Common<T> c = load_common(row);
      bool at_rest = true;
      for (int64_t i = begin; i < begin + width; ++i) {
        Cell cell(p, i);
        update<Rule>(cell.w, T(0), cell.s, c, row + n_common);
        at_rest = at_rest && cell.w == T(0) && p.w[i] == T(0);
        cell.store();
      }
      if (at_rest) {
        for (int64_t i = begin; i < begin + width; ++i) {
          Cell cell(p, i);
          Rule::coast(cell.s, row + n_common, T(to - t - 1));
          cell.store();
        }
        return;
      }
      shrink_group(p.w + begin, width, row);
      if (p.average)
        for (int64_t i = begin; i < begin + width; ++i) p.average[i] += double(c.average) * p.w[i];
    }
  }

  static void pay_columns(const Parameters<T>& p, const int64_t* columns, int64_t n, int64_t width,
                          const Block<T>& b, int32_t* paid, int64_t to) {
    const Steps<T> steps{b.rows,     b.width,        b.decay,       b.threshold,
                         b.averaged, b.highest_rate, b.closed_idle, b.averaging};
    const bool grouped = b.n_steps > 0 && load_common(b.rows).group_l1 > T(0);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t column = columns ? columns[j] : j;
      const int64_t from = paid[column], begin = column * width;
      paid[column] = int32_t(to);
      if (from >= to) continue;
      if (grouped) {
        pay_group(p, begin, width, steps, from, to);
        continue;
      }
      for (int64_t i = begin; i < begin + width; ++i) {
        Cell cell(p, i);
        double average = p.average ? p.average[i] : 0.0;
        pay<Rule>(cell.w, cell.s, &average, steps, from, to);
        cell.store();
        if (p.average) p.average[i] = average;
      }
    }
  }
};

#define SKOPTIM_RULE_ENTRY(NAME, ...)                                                            \
  RuleKernels<T>{                                                                                \
      RuleInfo{NAME, #__VA_ARGS__, __VA_ARGS__::n_slots, __VA_ARGS__::n_scalars,                 \
               n_common + __VA_ARGS__::n_scalars, __VA_ARGS__::uniform, __VA_ARGS__::slots, __VA_ARGS__::scalars},                  \
      RuleDriver<__VA_ARGS__, T>::apply, RuleDriver<__VA_ARGS__, T>::apply_columns,              \
      RuleDriver<__VA_ARGS__, T>::pay_columns, running_sums<__VA_ARGS__, T>,             \
      steps_to_replay<__VA_ARGS__, T>},

template <class T>
struct RuleList {
  static constexpr RuleKernels<T> entries[] = {SKOPTIM_RULES(SKOPTIM_RULE_ENTRY)};
  static constexpr int size = sizeof(entries) / sizeof(entries[0]);
};

SKOPTIM_END
