// CUDA drivers of the rules: the loops of cpu_rules.hpp over rules.hpp and owed.hpp, spread over
// threads. Compiled without contraction to fused multiply-adds, so that they round as on the CPU.
#include "../owed.hpp"
#include "../rules.hpp"
#include "grid.cuh"
#include "sparse.cuh"

SKOPTIM_BEGIN

template <class T>
struct Parameters {
  T* w;
  T* slots[3];
  double* average;  // sum of the averaged weights; null when nothing is averaged
  const T* unit;    // (n_columns,) of the first layer's columns; null for none
  SKOPTIM_HD T unit_of(int64_t column) const { return unit ? unit[column] : T(1); }
};

// One parameter with its state in registers.
template <class Rule, class T>
struct Cell {
  int64_t i;
  T w, s[Rule::n_slots + 1];
  SKOPTIM_HD Cell(const Parameters<T>& p, int64_t i_) : s{} { load(p, i_); }
  SKOPTIM_HD void load(const Parameters<T>& p, int64_t i_) {
    i = i_;
    w = p.w[i];
    for (int j = 0; j < Rule::n_slots; ++j) s[j] = p.slots[j][i];
  }
  SKOPTIM_HD void store(const Parameters<T>& p) const {
    p.w[i] = w;
    for (int j = 0; j < Rule::n_slots; ++j) p.slots[j][i] = s[j];
  }
};

// Whether this thread is the first to move a column's place in the ledger up to `to`, and from where.
SKOPTIM_HD bool claims(int32_t* paid, int64_t column, int32_t to, int32_t* from = nullptr) {
  if (*(volatile int32_t*)(paid + column) >= to) return false;
  const int32_t before = atomicExch(paid + column, to);
  if (from) *from = before;
  return before < to;
}

// One step with what there is besides the rule known beforehand; to the last bit what `update` does.
template <class Rule, class T>
SKOPTIM_HD void update_as(Extras kind, T& w, T g, T* s, const Common<T>& c, const T* k) {
  if (kind == Extras::none)
    update_with<Rule, Extras::none>(w, g, s, c, k);
  else if (kind == Extras::ridge)
    update_with<Rule, Extras::ridge>(w, g, s, c, k);
  else
    update_with<Rule, Extras::any>(w, g, s, c, k);
}

// Only rules with one step size for all coefficients meet a group penalty.
template <class Rule, class T>
SKOPTIM_HD void shrink_group(T* w, int64_t width, const Scalars<Rule, T>& k) {
  T ignored = T(0), s[Rule::n_slots + 1] = {};
  const T step_size = Rule::step(ignored, T(0), s, k.common, k.own);
  T squared_norm = T(0);
  for (int64_t i = 0; i < width; ++i) squared_norm += w[i] * w[i];
  const T factor = group_shrinkage(squared_norm, step_size * k.common.group_l1);
  for (int64_t i = 0; i < width; ++i) w[i] *= factor;
}

// One step of the parameters begin..end with the gradient g of that range. The first n_penalised
// parameters are coefficients, the rest intercepts. The gradient is multiplied by *gradient_scale
// (null: 1), which norm clipping leaves on the device. Units are those of the columns that the first
// n_columns * width parameters belong to.
template <class Rule, class T>
__global__ void apply(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit,
                      const T* g, const T* gradient_scale, const T* rows, int64_t row_width, int64_t step,
                      int64_t step_per_step, const int64_t* counter, int64_t begin, int64_t end,
                      int64_t n_penalised, int64_t n_columns, int64_t width) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit};
  const Scalars<Rule, T> k(rows + moved(step, step_per_step, counter) * row_width);
  const Common<T> intercept = unpenalised(k.common);
  const Extras extras_of_coefs = extras(k.common), extras_of_intercepts = extras(intercept);
  const T scale = gradient_scale ? *gradient_scale : T(1);
  int64_t i = begin + grid_begin();
  if (i >= end) return;
  // What comes next is read before this is written, so that reading and reckoning overlap.
  Cell<Rule, T> following(p, i);
  T following_g = g[i - begin];
  for (; i < end; i += grid_stride()) {
    Cell<Rule, T> cell = following;
    const T own_g = following_g;
    if (i + grid_stride() < end) {
      following.load(p, i + grid_stride());
      following_g = g[i + grid_stride() - begin];
    }
    const bool in_columns = unit && i < n_columns * width, penalised = i < n_penalised;
    const Scalars<Rule, T> own = k.with_unit(in_columns ? unit[Place(i, width).row] : T(1));
    update_as<Rule>(penalised ? extras_of_coefs : extras_of_intercepts, cell.w, scale * own_g, cell.s,
                    penalised ? k.common : intercept, own.own);
    cell.store(p);
    if (average && k.common.average != T(0)) average[i] += double(k.common.average) * cell.w;
  }
}

// The group penalty of a step, after `apply` to the same coefficients.
template <class UniformRule, class T>
__global__ void shrink_groups(T* w, double* average, const T* rows, int64_t row_width, int64_t step,
                              int64_t step_per_step, const int64_t* counter, int64_t n_groups,
                              int64_t width) {
  const Scalars<UniformRule, T> k(rows + moved(step, step_per_step, counter) * row_width);
  for (int64_t j = grid_begin(); j < n_groups; j += grid_stride()) {
    shrink_group(w + j * width, width, k);
    if (average)
      for (int64_t i = j * width; i < (j + 1) * width; ++i) average[i] += double(k.common.average) * w[i];
  }
}

// After the coefficients of a column took their step: the group penalty, the average.
template <class Rule, class T>
SKOPTIM_HD void finish_column(const Parameters<T>& p, const Tile& tile, int64_t begin, int64_t width,
                              const Scalars<Rule, T>& k) {
  if constexpr (Rule::uniform)
    if (k.common.group_l1 > T(0)) {
      tile.sync();
      if (tile.lane == 0) shrink_group(p.w + begin, width, k);
      tile.sync();
    }
  if (p.average)
    for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size)
      p.average[i] += double(k.common.average) * p.w[i];
}

// One step of the columns of a batch (runs of `width` coefficients); their gradients are sums of
// `segment_sums`, see sparse.cuh.
template <class Rule, class T>
__global__ void apply_columns(T* w, T* slot_0, T* slot_1, T* slot_2, double* average,
                              const T* unit, const int32_t* columns, const int32_t* column_segments,
                              const int32_t* batch_columns, const int32_t* batch_segments, int64_t batch,
                              int64_t batch_per_step, int64_t width, const T* sums, const T* gradient_scale,
                              const T* rows, int64_t row_width, int32_t* paid, int64_t step,
                              int64_t step_per_step, const int64_t* counter, int32_t tile_size) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit};
  const T scale = gradient_scale ? *gradient_scale : T(1);
  const int64_t now = moved(step, step_per_step, counter);
  const BatchColumns own(column_segments, batch_columns, batch_segments, moved(batch, batch_per_step, counter));
  const Scalars<Rule, T> common(rows + now * row_width);
  const Extras kind = extras(common.common);
  const Tile tile(tile_size);
  for (int64_t j = own.begin + tile.begin; j < own.end; j += tile.stride) {
    const int64_t column = columns[j], begin = column * width;
    const Scalars<Rule, T> k = common.with_unit(p.unit_of(column));
    for (int64_t i = tile.lane; i < width; i += tile.size) {
      Cell<Rule, T> cell(p, begin + i);
      update_as<Rule>(kind, cell.w, scale * own.gradient(sums, j, width, i), cell.s, k.common, k.own);
      cell.store(p);
    }
    finish_column<Rule>(p, tile, begin, width, k);
    if (tile.lane == 0) paid[column] = int32_t(now + 1);
  }
}

// The same without a list: threads go through the entries of the batch, and the first at a column takes its step,
// with the gradient of `scatter`, of which nothing is left.
template <class Rule, class T>
__global__ void apply_entries(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit,
                              const int32_t* indices, const int64_t* indptr, const int64_t* samples, int64_t first,
                              int64_t first_per_step, int64_t n, int64_t width, int64_t* sums, const T* bounds,
                              int32_t n_bounds, const T* largest, const T* gradient_scale, const T* rows,
                              int64_t row_width, int32_t* paid, int64_t step, int64_t step_per_step,
                              const int64_t* counter) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit};
  const T scale = gradient_scale ? *gradient_scale : T(1);
  const int32_t now = int32_t(moved(step, step_per_step, counter));
  const Batch batch(samples, moved(first, first_per_step, counter));
  const FixedPoint<T> fixed{bounds, n_bounds, double(n) * double(*largest)};
  const Scalars<Rule, T> common(rows + now * row_width);
  const Extras kind = extras(common.common);
  const Tile alone(1);
  __shared__ ColumnSet met;
  EachEntry entries(batch, indptr, n);
  for (; entries.begins(); entries.next()) {
    met.clear();
    for (entries.first(); entries.has(); entries.advance()) {
      const int64_t column = indices[entries.at()], begin = column * width;
      if (!met.may_be_new(column) || !claims(paid, column, now + 1)) continue;
      const Scalars<Rule, T> k = common.with_unit(p.unit_of(column));
      for (int64_t i = begin; i < begin + width; ++i) {
        Cell<Rule, T> cell(p, i);
        update_as<Rule>(kind, cell.w, scale * fixed.value(sums[i], column), cell.s, k.common, k.own);
        cell.store(p);
        sums[i] = 0;
      }
      finish_column<Rule>(p, alone, begin, width, k);
    }
  }
}

// The coefficients of a column under a group penalty move together: replay them step by step.
template <class Rule, class T>
SKOPTIM_HD void pay_group(const Parameters<T>& p, const Tile& tile, int64_t begin, int64_t width,
                          const Steps<T>& steps, int64_t from, int64_t to) {
  for (int64_t t = from; t < to; ++t) {
    const Scalars<Rule, T> k(steps.rows + t * steps.width);
    bool at_rest = true;
    for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size) {
      Cell<Rule, T> cell(p, i);
      update<Rule>(cell.w, T(0), cell.s, k.common, k.own);
      at_rest = at_rest && cell.w == T(0) && p.w[i] == T(0);
      cell.store(p);
    }
    const bool lasts = double(k.common.learning_rate) >= 0.5 * steps.highest_rate[t];
    if (lasts && tile.all(at_rest)) {
      for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size) {
        Cell<Rule, T> cell(p, i);
        Rule::coast(cell.s, k.own, T(to - t - 1));
        cell.store(p);
      }
      return;
    }
    tile.sync();
    if (tile.lane == 0) shrink_group(p.w + begin, width, k);
    tile.sync();
    if (p.average)
      for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size)
        p.average[i] += double(k.common.average) * p.w[i];
  }
}

// Pays a column the idle steps from..to.
template <class Rule, class T>
SKOPTIM_HD void pay_column(const Parameters<T>& p, const Tile& tile, int64_t column, int64_t width,
                           const Steps<T>& steps, bool grouped, int64_t from, int64_t to) {
  const int64_t begin = column * width;
  if constexpr (Rule::uniform)
    if (grouped) {
      pay_group<Rule>(p, tile, begin, width, steps, from, to);
      return;
    }
  for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size) {
    Cell<Rule, T> cell(p, i);
    double sum = p.average ? p.average[i] : 0.0;
    pay<Rule>(cell.w, cell.s, &sum, p.unit_of(column), steps, from, to);
    cell.store(p);
    if (p.average) p.average[i] = sum;
  }
}

// Pays the columns of a batch (all n_columns when null) the idle steps paid[column]..to.
template <class Rule, class T>
__global__ void pay_columns(T* w, T* slot_0, T* slot_1, T* slot_2, double* average,
                            const T* unit, const int32_t* columns, const int32_t* batch_columns,
                            int64_t batch, int64_t batch_per_step, int64_t n_columns, int64_t width,
                            const T* rows, int64_t row_width, const double* decay, const double* threshold,
                            const double* averaged, const double* highest_rate, const int32_t* closed_idle,
                            int32_t* paid, int64_t to, int64_t to_per_step, const int64_t* counter,
                            int32_t tile_size) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit};
  const Steps<T> steps{rows,     row_width,         decay,             threshold,
                       averaged, highest_rate,      *closed_idle != 0, average != nullptr};
  const bool grouped = load_common(rows).group_l1 > T(0);
  const int32_t now = int32_t(moved(to, to_per_step, counter));
  const int64_t own = moved(batch, batch_per_step, counter);
  const int64_t first = columns ? batch_columns[own] : 0, end = columns ? batch_columns[own + 1] : n_columns;
  const Tile tile(tile_size);
  for (int64_t j = first + tile.begin; j < end; j += tile.stride) {
    const int64_t column = columns ? columns[j] : j;
    // Only the first lane touches the ledger, so that no lane can see it changed already.
    int32_t from = 0;
    if (tile.lane == 0) {
      from = paid[column];
      paid[column] = now;
    }
    from = tile.broadcast(from);
    if (from < now) pay_column<Rule>(p, tile, column, width, steps, grouped, from, now);
  }
}

// The same without a list: threads go through the entries of the batch, and the first at a column pays it.
template <class Rule, class T>
__global__ void pay_entries(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit,
                            const int32_t* indices, const int64_t* indptr, const int64_t* samples, int64_t first,
                            int64_t first_per_step, int64_t n, int64_t width, const T* rows, int64_t row_width,
                            const double* decay, const double* threshold, const double* averaged,
                            const double* highest_rate, const int32_t* closed_idle, int32_t* paid, int64_t to,
                            int64_t to_per_step, const int64_t* counter) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit};
  const Steps<T> steps{rows,     row_width,         decay,             threshold,
                       averaged, highest_rate,      *closed_idle != 0, average != nullptr};
  const bool grouped = load_common(rows).group_l1 > T(0);
  const int32_t now = int32_t(moved(to, to_per_step, counter));
  const Batch batch(samples, moved(first, first_per_step, counter));
  const Tile alone(1);
  __shared__ ColumnSet met;
  EachEntry entries(batch, indptr, n);
  for (; entries.begins(); entries.next()) {
    met.clear();
    for (entries.first(); entries.has(); entries.advance()) {
      const int32_t column = indices[entries.at()];
      int32_t from;
      if (met.may_be_new(column) && claims(paid, column, now, &from))
        pay_column<Rule>(p, alone, column, width, steps, grouped, from, now);
    }
  }
}

// Sums up a block of steps for `pay_columns`; one thread, once per block of steps.
template <class Rule, class T>
__global__ void start_ledger(const T* rows, int64_t n_steps, int64_t row_width, int32_t averaging,
                             double* decay, double* threshold, double* averaged,
                             double* highest_rate, int32_t* closed_idle) {
  if (grid_begin() == 0)
    *closed_idle = running_sums<Rule>(rows, 0, n_steps, row_width, averaging != 0, decay, threshold,
                                      averaged, highest_rate);
}

SKOPTIM_END
