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
  int64_t w_stride = 1, slot_stride = 1;  // from a weight, or an entry of the state, to the next one
  SKOPTIM_HD T& weight(int64_t i) const { return w[i * w_stride]; }
  SKOPTIM_HD T& slot(int j, int64_t i) const { return slots[j][i * slot_stride]; }
  SKOPTIM_HD T unit_of(int64_t column) const { return unit ? unit[column] : T(1); }
};

// One parameter with its state in registers.
template <class Rule, class T>
struct Cell {
  int64_t i;
  T w, s[Rule::n_slots + 1];
  SKOPTIM_HD Cell() : s{} {}
  SKOPTIM_HD Cell(const Parameters<T>& p, int64_t i_) : s{} { load(p, i_); }
  SKOPTIM_HD void load(const Parameters<T>& p, int64_t i_) {
    load_state(p, i_);
    w = p.weight(i);
  }
  SKOPTIM_HD void load_state(const Parameters<T>& p, int64_t i_) {
    i = i_;
    // A record begins with the state.
    const bool in_records = p.slot_stride > 1;
    if (in_records && Rule::n_slots > 1 && Rule::n_slots <= Pack<T>::size) {
      const Pack<T> state = *(const Pack<T>*)&p.slot(0, i);
      for (int j = 0; j < Rule::n_slots; ++j) s[j] = state.values[j];
      return;
    }
    for (int j = 0; j < Rule::n_slots; ++j) s[j] = p.slot(j, i);
  }
  SKOPTIM_HD void store(const Parameters<T>& p) const {
    p.weight(i) = w;
    store_state(p);
  }
  SKOPTIM_HD void store_state(const Parameters<T>& p) const {
    for (int j = 0; j < Rule::n_slots; ++j) p.slot(j, i) = s[j];
  }
};

// One step with what there is besides the rule known beforehand; to the last bit what `update` does.
template <class Rule, class T>
SKOPTIM_HD void update_as(Extras kind, T& w, T g, T* s, const Common<T>& c, const T* k) {
  switch (kind) {
    case Extras::none: return update_with<Rule, Extras::none>(w, g, s, c, k);
    case Extras::ridge: return update_with<Rule, Extras::ridge>(w, g, s, c, k);
    case Extras::lasso: return update_with<Rule, Extras::lasso>(w, g, s, c, k);
    default: return update_with<Rule, Extras::any>(w, g, s, c, k);
  }
}

// Only rules with one step size for all coefficients meet a group penalty.
template <class Rule, class T>
SKOPTIM_HD void shrink_group(const Parameters<T>& p, int64_t begin, int64_t width, const Scalars<Rule, T>& k) {
  T ignored = T(0), s[Rule::n_slots + 1] = {};
  const T step_size = Rule::step(ignored, T(0), s, k.common, k.own);
  T squared_norm = T(0);
  for (int64_t i = begin; i < begin + width; ++i) squared_norm += p.weight(i) * p.weight(i);
  const T factor = group_shrinkage(squared_norm, step_size * k.common.group_l1);
  for (int64_t i = begin; i < begin + width; ++i) p.weight(i) *= factor;
}

// Neighbouring parameters with their state and their gradient in registers, as many as a pack has.
template <class Rule, class T>
struct Cells {
  static constexpr int size = Pack<T>::size;
  Pack<T> w, g, s[Rule::n_slots + 1];
  // The pack that begins with parameter i; g is the gradient from `begin` on.
  SKOPTIM_HD void load(const Parameters<T>& p, const T* gradient, int64_t begin, int64_t i) {
    w = *(const Pack<T>*)(p.w + i);
    g = *(const Pack<T>*)(gradient + i - begin);
    for (int j = 0; j < Rule::n_slots; ++j) s[j] = *(const Pack<T>*)(p.slots[j] + i);
  }
  SKOPTIM_HD void store(const Parameters<T>& p, int64_t i) const {
    *(Pack<T>*)(p.w + i) = w;
    for (int j = 0; j < Rule::n_slots; ++j) *(Pack<T>*)(p.slots[j] + i) = s[j];
  }
};

// A step of one of the parameters that `apply` takes.
template <class Rule, class T>
struct FlatStep {
  const Parameters<T>& p;
  const Scalars<Rule, T>& k;
  Common<T> intercept;
  Extras extras_of_coefs, extras_of_intercepts;
  T scale;
  int64_t n_penalised, n_in_columns, width;
  SKOPTIM_HD FlatStep(const Parameters<T>& p_, const Scalars<Rule, T>& k_, const T* gradient_scale,
                      int64_t n_penalised_, int64_t n_columns, int64_t width_)
      : p(p_), k(k_), intercept(unpenalised(k_.common)), extras_of_coefs(extras(k_.common)),
        extras_of_intercepts(extras(intercept)), scale(gradient_scale ? *gradient_scale : T(1)),
        n_penalised(n_penalised_), n_in_columns(p_.unit ? n_columns * width_ : 0), width(width_) {}
  SKOPTIM_HD void operator()(int64_t i, T& w, T g, T* s) const {
    const bool penalised = i < n_penalised;
    const Scalars<Rule, T> own = k.with_unit(i < n_in_columns ? p.unit[Place(i, width).row] : T(1));
    // A copy, number by number: the choice of one of two structures would keep both in memory.
    const Common<T> common = penalised ? Common<T>(k.common) : Common<T>(intercept);
    update_as<Rule>(penalised ? extras_of_coefs : extras_of_intercepts, w, scale * g, s, common, own.own);
    if (p.average && k.common.average != T(0)) p.average[i] += double(k.common.average) * w;
  }
};

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
  constexpr int size = Cells<Rule, T>::size;
  bool packed = is_aligned(w + begin) && is_aligned(g);
  for (int j = 0; j < Rule::n_slots; ++j) packed = packed && is_aligned(p.slots[j] + begin);
  const int64_t n_packs = packed ? (end - begin) / size : 0;
  int64_t pack = grid_begin();
  Cells<Rule, T> cells;
  // Read before the scalars, which are found in two steps.
  if (pack < n_packs) cells.load(p, g, begin, begin + pack * size);

  const Scalars<Rule, T> k(rows + moved(step, step_per_step, counter) * row_width);
  const FlatStep<Rule, T> step_of(p, k, gradient_scale, n_penalised, n_columns, width);
  for (; pack < n_packs; pack += grid_stride()) {
    const int64_t first = begin + pack * size;
    if (pack >= grid_stride()) cells.load(p, g, begin, first);
#pragma unroll
    for (int e = 0; e < size; ++e) {
      T s[Rule::n_slots + 1];
      for (int j = 0; j < Rule::n_slots; ++j) s[j] = cells.s[j].values[e];
      step_of(first + e, cells.w.values[e], cells.g.values[e], s);
      for (int j = 0; j < Rule::n_slots; ++j) cells.s[j].values[e] = s[j];
    }
    cells.store(p, first);
  }
  for (int64_t i = begin + n_packs * size + grid_begin(); i < end; i += grid_stride()) {
    Cell<Rule, T> cell(p, i);
    step_of(i, cell.w, g[i - begin], cell.s);
    cell.store(p);
  }
}

// The group penalty of a step, after `apply` to the same coefficients.
template <class UniformRule, class T>
__global__ void shrink_groups(T* w, double* average, const T* rows, int64_t row_width, int64_t step,
                              int64_t step_per_step, const int64_t* counter, int64_t n_groups,
                              int64_t width) {
  const Parameters<T> p{w, {}, average, nullptr};
  const Scalars<UniformRule, T> k(rows + moved(step, step_per_step, counter) * row_width);
  for (int64_t j = grid_begin(); j < n_groups; j += grid_stride()) {
    shrink_group(p, j * width, width, k);
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
      if (tile.lane == 0) shrink_group(p, begin, width, k);
      tile.sync();
    }
  if (p.average)
    for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size)
      p.average[i] += double(k.common.average) * p.weight(i);
}

// One step of a column (a run of `width` coefficients); gradient(i) is that of its i-th coefficient.
template <class Rule, class T, class Gradient>
SKOPTIM_HD void step_column(const Parameters<T>& p, const Tile& tile, int64_t column, int64_t width,
                            const Scalars<Rule, T>& common, Extras kind, const Gradient& gradient) {
  const int64_t begin = column * width;
  const Scalars<Rule, T> k = common.with_unit(p.unit_of(column));
  for (int64_t i = tile.lane; i < width; i += tile.size) {
    Cell<Rule, T> cell(p, begin + i);
    update_as<Rule>(kind, cell.w, gradient(i), cell.s, k.common, k.own);
    cell.store(p);
  }
  finish_column<Rule>(p, tile, begin, width, k);
}

// One step of the columns of a batch; their gradients are sums of `segment_sums`, see sparse.cuh.
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
    step_column(p, tile, columns[j], width, common, kind,
                [&](int64_t i) { return scale * own.gradient(sums, j, width, i); });
    if (paid && tile.lane == 0) paid[columns[j]] = int32_t(now + 1);
  }
}

// The same for the columns that a kernel of the step has listed, with the gradient of `scatter`, of which nothing is
// left.
template <class Rule, class T>
__global__ void apply_listed(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit,
                             const int32_t* listed, const int32_t* n_listed, int64_t n, int64_t width, int64_t* sums,
                             const T* bounds, int32_t n_bounds, const T* largest, int64_t n_largest,
                             const T* gradient_scale, const T* rows, int64_t row_width, int32_t* paid, int64_t step,
                             int64_t step_per_step, const int64_t* counter, int64_t stride, int64_t word_stride,
                             int32_t tile_size) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit, stride, stride};
  const T scale = gradient_scale ? *gradient_scale : T(1);
  const int64_t now = moved(step, step_per_step, counter);
  const FixedPoint<T> fixed(bounds, n_bounds, n, largest, n_largest);
  const Scalars<Rule, T> common(rows + now * row_width);
  const Extras kind = extras(common.common);
  const Tile tile(tile_size);
  for (int64_t j = tile.begin; j < *n_listed; j += tile.stride) {
    const int64_t column = listed[j];
    step_column(p, tile, column, width, common, kind,
                ScatteredGradient<T>{fixed, scale, column, Words{sums, word_stride, column * width}});
    if (paid && tile.lane == 0) paid[column] = int32_t(now + 1);
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
      at_rest = at_rest && cell.w == T(0) && p.weight(i) == T(0);
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
    if (tile.lane == 0) shrink_group(p, begin, width, k);
    tile.sync();
    if (p.average)
      for (int64_t i = begin + tile.lane; i < begin + width; i += tile.size)
        p.average[i] += double(k.common.average) * p.weight(i);
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
                            const double* averaged, const double* highest_rate, const double* lead,
                            const int32_t* closed_idle, int32_t* paid, int64_t to, int64_t to_per_step,
                            const int64_t* counter, int64_t stride,
                            int32_t tile_size) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit, stride, stride};
  const Steps<T> steps{rows,     row_width,         decay,             threshold,
                       averaged, highest_rate,      lead,              *closed_idle != 0,
                       average != nullptr};
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

// Rules whose weights are functions of the state leave w as it was before the block, and make out what it would be
// now when it is read. Nothing is owed then.
template <class Rule, class T>
struct DerivedWeights {
  const Parameters<T>& p;
  bool is_first;  // Before the first step of a block, w is as it lies there.
  Scalars<Rule, T> last;
  SKOPTIM_HD DerivedWeights(const Parameters<T>& p_, const T* rows, int64_t row_width, int64_t step)
      : p(p_), is_first(step == 0), last(rows + (is_first ? 0 : step - 1) * row_width) {}
  SKOPTIM_HD Cell<Rule, T> read(int64_t i) const {
    Cell<Rule, T> cell;
    cell.load_state(p, i);
    return cell;
  }
  SKOPTIM_HD T value(const Cell<Rule, T>& cell, int64_t column) const {
    if (is_first) return p.weight(cell.i);
    const Scalars<Rule, T> own = last.with_unit(p.unit_of(column));
    const bool has_learned = Rule::has_learned(cell.s, own.common, own.own);
    return derived_weight<Rule>(has_learned ? T(0) : p.weight(cell.i), cell.s, own);
  }
};

// X[batch] @ w.
template <class DerivedRule, class T>
__global__ void multiply_derived(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit, const T* data,
                                 const int32_t* indices, const int64_t* indptr, const int64_t* samples, int64_t first,
                                 int64_t first_per_step, int64_t n, int64_t width, const T* rows, int64_t row_width,
                                 int64_t step, int64_t step_per_step, const int64_t* counter, int64_t stride, T* out,
                                 int32_t row_lanes, int32_t output_lanes) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit, 1, stride};
  const Batch batch(samples, moved(first, first_per_step, counter));
  const DerivedWeights<DerivedRule, T> weights(p, rows, row_width, moved(step, step_per_step, counter));
  multiply_rows(data, indices, indptr, batch, n, width, out, row_lanes, output_lanes, weights);
}

// The step of the listed columns, as `apply_listed` takes it.
template <class DerivedRule, class T>
__global__ void apply_derived(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit,
                              const int32_t* listed, const int32_t* n_listed, int64_t n, int64_t width, int64_t* sums,
                              const T* bounds, int32_t n_bounds, const T* largest, int64_t n_largest,
                              const T* gradient_scale, const T* rows, int64_t row_width, int64_t step,
                              int64_t step_per_step, const int64_t* counter, int64_t stride, int64_t word_stride,
                              int32_t tile_size) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit, 1, stride};
  const Tile tile(tile_size);  // A lane has one coefficient of a column.
  const int64_t n_columns = tile.lane < width ? *n_listed : 0;
  int64_t j = tile.begin, column = 0;
  Cell<DerivedRule, T> cell;
  const auto load = [&] {
    column = listed[j];
    cell.load_state(p, column * width + tile.lane);
  };
  // Read before the scalars, which are found in two steps.
  if (j < n_columns) load();

  const T scale = gradient_scale ? *gradient_scale : T(1);
  const int64_t now = moved(step, step_per_step, counter);
  const FixedPoint<T> fixed(bounds, n_bounds, n, largest, n_largest);
  const DerivedWeights<DerivedRule, T> weights(p, rows, row_width, now);
  const Scalars<DerivedRule, T> common(rows + now * row_width);
  const Extras kind = extras(common.common);
  for (; j < n_columns; j += tile.stride) {
    if (j >= tile.stride) load();
    const ScatteredGradient<T> gradient{fixed, scale, column, Words{sums, word_stride, column * width}};
    const Scalars<DerivedRule, T> k = common.with_unit(p.unit_of(column));
    cell.w = weights.value(cell, column);
    update_as<DerivedRule>(kind, cell.w, gradient(tile.lane), cell.s, k.common, k.own);
    cell.store_state(p);
  }
}

// Writes what w is before step `to`.
template <class DerivedRule, class T>
__global__ void settle_derived(T* w, T* slot_0, T* slot_1, T* slot_2, double* average, const T* unit, int64_t n,
                               int64_t width, const T* rows, int64_t row_width, int64_t to, int64_t to_per_step,
                               const int64_t* counter, int64_t stride) {
  const Parameters<T> p{w, {slot_0, slot_1, slot_2}, average, unit, 1, stride};
  const DerivedWeights<DerivedRule, T> weights(p, rows, row_width, moved(to, to_per_step, counter));
  for (int64_t i = grid_begin(); i < n; i += grid_stride())
    w[i] = weights.value(weights.read(i), unit ? Place(i, width).row : 0);
}

// Sums up a block of steps for `pay_columns`; one thread, once per block of steps.
template <class Rule, class T>
__global__ void start_ledger(const T* rows, int64_t n_steps, int64_t row_width, int32_t averaging,
                             double* decay, double* threshold, double* averaged,
                             double* highest_rate, double* lead, int32_t* closed_idle) {
  if (grid_begin() == 0)
    *closed_idle = running_sums<Rule>(rows, 0, n_steps, row_width, averaging != 0, decay, threshold,
                                      averaged, highest_rate, lead);
}

SKOPTIM_END
