// The table of CPU kernels that each instruction set fills, and the plain structs they share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace skoptim {

constexpr int max_slots = 3;
// Which of the prepared scalars is the weight of a step in the averaged model.
constexpr int average_scalar = 8;
// Runs of so many coefficients fill vectors where they lie.
constexpr int64_t fills_vectors = 8;

template <class T>
struct Parameters {
  T* w;
  T* slots[max_slots];
  double* average;  // sum of the averaged weights; null when nothing is averaged
  const T* unit;    // (n_columns,) of the first layer's columns; null for none
};

// Where the weights of a run of coefficients lie, their slots, and the units of their columns (null:
// those in the scalars).
template <class T>
struct Run {
  T* w;
  T* slots[max_slots];
  const T* unit;
  Run from(int64_t i) const {
    Run rest = *this;
    rest.w += i;
    for (T*& slot : rest.slots)
      if (slot) slot += i;
    if (unit) rest.unit += i;
    return rest;
  }
};

// What has been summed up before a step, and what is ahead of it; see cpu_fading.hpp. (N: numbers of one step, or vectors
// of those of some.)
template <class N>
struct FadingStepOf {
  static constexpr int n_terms = 8, n_numbers = 2 * n_terms + 6;
  N moment[n_terms];  // the sum S of the moments ahead: of powers of 1 / (r + epsilon) before the step
  N pull[n_terms];    // the sum E of the steps before: of powers of 1 / R
  N decay;            // and of 1
  N q;                // product of the ratios of the steps before, since the part began
  N start;            // what the root of the slot is multiplied by, to give r
  N limit;            // the metric of the step times the strength of the penalty
  N lead;             // what the moment of a step moves, over what L1 does in units of its strength
  N part;             // the sums are comparable within a part, which is a whole number
};
using FadingStep = FadingStepOf<double>;

// And what is the same for all steps.
struct FadingConstants {
  bool holds;             // debts may be paid so; else all that follows means nothing
  double l1;
  double least, epsilon;  // what d never falls below, and what is in d beside r
  double moment_decay;
  int64_t horizon;        // steps after which nothing is left of a moment
  double falls;           // by what 1 / r grows meanwhile, beside the correction
  double matters;         // and while the last term of the moments' sum has most of its weight; 0 if it does not fade
};

// A block of prepared scalars; see owed.hpp for the fields.
template <class T>
struct Block {
  const T* rows;
  int64_t n_steps, width;
  const double *decay, *threshold, *averaged, *highest_rate, *lead;
  bool closed_idle, averaging;
  const T* factors;          // see cpu_fading.hpp; null if there are none
  const FadingStep* series;
  FadingConstants fading;
  bool one_rate;             // whether the learning rate is the same in all steps
};

// Some units of the first layer: begin..end of `width`.
struct Layer {
  int64_t width, begin, end;
};

// The columns of a batch of CSR rows, numbered in the order in which they are met.
struct Numbering {
  std::vector<int64_t> columns;   // with room for one more
  std::vector<int32_t> places;    // of each entry's column, among those of the batch
  std::vector<int32_t> position;  // of each column: its place + first, if it is of this batch; less otherwise
  int32_t first = 0;
};

// The entries of a batch of CSR rows, sorted by columns.
template <class T>
struct Touched {
  int64_t n_columns = 0, n_rows = 0;
  std::vector<int64_t> columns, starts;  // entries starts[j]..starts[j + 1] are those of columns[j]
  std::vector<int32_t> rows;             // in the batch
  std::vector<T> values;
  Numbering numbering;                   // scratch
};

// A dense (row-major) or CSR matrix. Index arrays were validated when the fit began.
template <class T>
struct Matrix {
  int64_t n_rows, n_columns;
  const T* data;
  const void* indices;  // null for a dense matrix
  const void* indptr;
  bool wide;            // 64-bit indices

  int64_t n_stored() const {
    if (!indices) return n_rows * n_columns;
    return wide ? static_cast<const int64_t*>(indptr)[n_rows] : static_cast<const int32_t*>(indptr)[n_rows];
  }
};

template <class T>
struct Targets {
  const int32_t* labels;  // (n_rows,) class indices, or null
  const T* values;        // (n_rows, n_outputs), when labels is null
  int32_t first_class;    // the class of the first output: 0, or 1 where one output tells two apart
};

struct RuleInfo {
  const char* name;
  const char* cpp_type;
  int n_slots, n_scalars;
  int row_width;  // of the prepared scalars
  bool uniform;
  bool derived;   // whether the weight is a function of the state (`contains_penalty`)
  const char* const* slots;
  const char* const* scalars;
};

template <class T>
class LinearTable;

template <class T>
struct RuleKernels {
  RuleInfo info;
  // One step of w[begin:end] with gradient g (of that length), all penalised or all not. With a
  // width these are columns of the first layer, runs of so many coefficients: with units, groups.
  void (*apply)(const Parameters<T>&, const T* g, int64_t begin, int64_t end, const T* row,
                bool penalised, int64_t width);
  // Pays the columns begin..end the idle steps paid[column]..to.
  void (*pay_columns)(const Parameters<T>&, int64_t begin, int64_t end, int64_t width, const Block<T>&,
                      int32_t* paid, int64_t to);
  // The first layer on CSR data, see cpu_touched.hpp.
  void (*multiply_touched)(const Parameters<T>&, const Touched<T>&, const Layer&, const Block<T>&,
                           const int32_t* paid, int64_t to, T* z);
  void (*apply_touched)(const Parameters<T>&, const Touched<T>&, const Layer&, const T* delta, T factor,
                        const T* row, T* g);
  bool (*running_sums)(const T* rows, int64_t begin, int64_t end, int64_t width, bool averaging,
                       double* decay, double* threshold, double* averaged, double* highest_rate, double* lead);
  // What paying idle steps reads, so many numbers a step (0: nothing) and what is known before and after each, and how
  // these are filled.
  int n_factors;
  void (*fill_factors)(const T* rows, int64_t begin, int64_t end, int64_t width, T* out);
  FadingConstants (*fill_series)(const T* rows, int64_t begin, int64_t end, int64_t width, FadingStep* out);
  // What paying the debt of a column costs, in replayed steps of one coefficient.
  double (*debt_in_steps)(const T* row, bool closed_idle);
  // And what a touched column costs in a table, in coefficients of a step that visits all.
  double (*cost_in_table)(const T* row, bool closed_idle, int64_t width);
  bool (*rests)(const T* row);
  // Whether a table keeps averages of such steps at no cost for columns that are not touched.
  bool (*averages_in_table)(const T* row);
  LinearTable<T>* (*make_table)(int64_t n_columns, int64_t width, bool has_units, bool averaging,
                                int64_t row_width);
};

template <class T>
struct LossKernel {
  const char* name;
  // Weighted sum of the losses of the batch; derivatives times `scale` into d unless null.
  // Sample i of the batch is row rows[i] of the targets and weights (first + i when rows is null).
  double (*batch)(const T* z, int64_t n, int64_t n_outputs, const Targets<T>&, const int64_t* rows,
                  int64_t first, const T* weights, T parameter, T scale, T* d);
  // The weighted derivative of one score; null for losses of several outputs.
  T (*slope)(T z, const Targets<T>&, int64_t row, const T* weights, T parameter);
  // The same for the scores of one row, fewer than `fills_vectors`; z and d have room for so many.
  void (*slopes)(const T* z, int64_t n_outputs, const Targets<T>&, int64_t row, const T* weights, T parameter, T* d);
};

template <class T>
struct ActivationKernel {
  const char* name;
  const char* cpp_type;
  bool needs_input;
  // z += bias, a = f(z); a may be z.
  void (*forward)(T* z, const T* bias, T* a, int64_t n, int64_t width);
  // delta *= f'.
  void (*backward)(const T* z, const T* a, T* delta, int64_t n);
};

// The scalars of a block of steps: a row of which some columns vary from step to step.
template <class T>
struct ScalarBlock {
  const T* row;            // those of the first step
  const int64_t* varying;  // (n_varying,) column numbers
  const T* values;         // (n_steps, n_varying)
  int64_t n_steps, n_varying, width;
};

// Writes out one row of scalars after the other; a row stays as it is until the next but one.
template <class T>
class RowReader {
 public:
  explicit RowReader(const ScalarBlock<T>& block) : block_(block) {
    for (auto& row : rows_) row.assign(block.row, block.row + block.width);
  }
  const T* operator()(int64_t step) {
    T* const row = rows_[step % 2].data();
    for (int64_t j = 0; j < block_.n_varying; ++j)
      row[block_.varying[j]] = block_.values[step * block_.n_varying + j];
    return row;
  }

 private:
  const ScalarBlock<T> block_;
  std::vector<T> rows_[2];
};

// The layers of a network; a linear model has inputs and outputs alone.
template <class T>
struct Architecture {
  std::vector<int64_t> layer_sizes;
  const ActivationKernel<T>* activation = nullptr;  // of the hidden layers
  double dropout = 0;
  uint64_t seed = 0;  // of dropout

  int64_t n_layers() const { return int64_t(layer_sizes.size()) - 1; }
  int64_t n_coefficients() const {
    int64_t n = 0;
    for (size_t l = 1; l < layer_sizes.size(); ++l) n += layer_sizes[l - 1] * layer_sizes[l];
    return n;
  }
  int64_t n_parameters() const {
    int64_t n = n_coefficients();
    for (size_t l = 1; l < layer_sizes.size(); ++l) n += layer_sizes[l];
    return n;
  }
};

// A block of steps: what is trained on what, and how.
template <class T>
struct Task {
  Architecture<T> network;
  int64_t first_step;  // number of the block's first step in the whole training
  Matrix<T> x;
  int64_t longest_row;  // of a CSR matrix
  Targets<T> targets;
  const T* weights;  // (n_rows,) or null
  const int64_t* order;
  int64_t n_samples, batch_size, n_outputs;
  const LossKernel<T>* loss;
  T loss_parameter;
  bool fit_intercept;
  double clip_norm;  // infinity for none
  ScalarBlock<T> scalars;
};

// Sums over the coefficients that penalties are made of.
struct PenaltySums {
  double absolute, squares;
  double norms;  // of the coefficients of each column
  bool finite;   // whether every parameter is
};

// A linear model while it is trained on CSR data, see cpu_table.hpp. Parameters come and go flat:
// coefficients (n_columns, width), then intercepts (width).
template <class T>
class LinearTable {
 public:
  virtual ~LinearTable() = default;
  // `last_row` holds the scalars that were in force when the weights were made.
  virtual void load(const T* w, const T* const* slots, const double* average, const T* unit,
                    const T* last_row) = 0;
  // Pays all debts; `w`, slots, `average` and `unit` may be null. The `last` time the table gives its memory back
  // as it is read, and cannot be used any more.
  virtual void store(T* w, T* const* slots, double* average, T* unit, bool last) = 0;
  virtual void settle() = 0;
  virtual PenaltySums penalty_sums() = 0;
  virtual double train(const Task<T>& task) = 0;  // returns the sum of the losses
  // Several threads at once, without locks (Niu, Recht, Re and Wright 2011): each takes every n-th step, with
  // whatever it finds in the columns. Returns whether this is possible, and if so makes n workers, of which
  // each thread trains one; `join` ends it.
  virtual bool share(const Task<T>& task, int64_t n_workers) = 0;
  virtual double train_share(const Task<T>& task, int64_t worker) = 0;
  virtual void join() = 0;
  // Whether all parameters are finite, or after `keep` those that may have changed.
  virtual bool finite() = 0;
  // See `observe` of Kernels.
  virtual double observe(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n) = 0;
  // Remembers from now on what is changed; `undo` brings it back, `forget` lets it go.
  virtual void keep() = 0;
  virtual void undo() = 0;
  virtual void forget() = 0;
};

template <class T>
struct Kernels {
  const RuleKernels<T>* rules;
  int n_rules;
  const LossKernel<T>* losses;
  int n_losses;
  const ActivationKernel<T>* activations;
  int n_activations;
  // unit[column] = 1 / the largest |x| so far, over the given rows; 0 before the first. Returns the mean
  // squared norm of rows in these units, over some of them.
  double (*observe)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, T* unit);
  // The weighted sum of each column's squares, and the weights of its entries that are not zero, added to what there is.
  void (*column_squares)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, const T* weights,
                         double* sums, double* counts);
  void (*gather_rows)(const T* x, int64_t width, const int64_t* rows, int64_t n, T* out);
  // Products of small or thin row-major matrices a (n, k), w (k, m), d (n, m): out = a w,
  void (*multiply)(const T* a, const T* w, int64_t n, int64_t k, int64_t m, T* out);
  // out = a' d, or added to that, for k of the `width` columns of a,
  void (*multiply_left)(const T* a, int64_t width, const T* d, int64_t n, int64_t k, int64_t m, bool adds, T* out);
  // out = d w'.
  void (*multiply_right)(const T* d, const T* w, int64_t n, int64_t k, int64_t m, T* out);
  void (*add_bias)(T* z, const T* bias, int64_t n, int64_t width);
  // out (n, width) = X[rows] @ W, W (n_columns, width).
  void (*csr_matmul)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, const T* w,
                     int64_t width, T* out);
  // g (n_columns, width) += X[rows].T @ delta.
  void (*csr_gradient)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, const T* delta,
                       int64_t width, T* g);
  // Lets g be zero again in the columns that the given rows touch.
  void (*csr_clear)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, int64_t width, T* g);
  void (*sort_by_column)(const Matrix<T>&, const int64_t* rows, int64_t first, int64_t n, Touched<T>&);
  // The squared norm of X.T @ delta; `g` has room for one column.
  double (*touched_squared_norm)(const Touched<T>&, int64_t width, const T* delta, T* g);
  // Of n numbers, whose first has the number `first` in the mask.
  void (*dropout)(const T* a, int64_t first, int64_t n, uint64_t seed, uint64_t stream, double rate, T* out);
  // Or added to what is there.
  void (*column_sums)(const T* a, int64_t n, int64_t width, bool adds, T* out);
  double (*dot)(const T* a, const T* b, int64_t n);
  // vector = H vector, with H from pairs and from H0 = scale, diagonal (null: 1), up to a factor. Steps and changes
  // are (capacity, n); pairs are the rows first..first + n_pairs, the latest last, and go on at row 0 after the last
  // row. Those whose product is rounding are left out.
  void (*inverse_hessian_product)(const T* steps, const T* changes, int64_t capacity, int64_t first, int64_t n_pairs,
                                  int64_t n, const T* scale, T* vector);
  // Prox of step * (l1, l2, box) in place; one step size, or one for each weight.
  void (*prox)(T* w, int64_t n, const T* steps, int64_t n_steps, T l1, T l2, T lower, T upper);
  // Shrinks the norm of each run of `width` by a threshold: one, or one for each group.
  void (*prox_groups)(T* w, int64_t n_groups, int64_t width, const T* thresholds, int64_t n_thresholds);
};

enum class IndexStatus { canonical, unsorted, duplicates, bad_indptr, bad_index };

}  // namespace skoptim
