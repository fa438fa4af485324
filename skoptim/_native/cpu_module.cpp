// The Python module `skoptim._native._core`: checks arguments, releases the GIL, calls the kernels
// of the instruction set in use.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu_columns.hpp"
#include "cpu_shuffle.hpp"
#include "cpu_threads.hpp"
#include "cpu_training.hpp"
#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace skoptim {

#define SKOPTIM_DECLARE(ARCH) \
  namespace ARCH {            \
  template <class T>          \
  const Kernels<T>& kernels(); \
  }
SKOPTIM_DECLARE(baseline)
#ifdef SKOPTIM_X86_64_LEVELS
SKOPTIM_DECLARE(v3)
SKOPTIM_DECLARE(v4)
#endif

namespace {

struct Isa {
  std::string name;
  const Kernels<float>* single;
  const Kernels<double>* double_;
};

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas{{"baseline", &baseline::kernels<float>(), &baseline::kernels<double>()}};
#ifdef SKOPTIM_X86_64_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    isas.push_back({"v3", &v3::kernels<float>(), &v3::kernels<double>()});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    isas.push_back({"v4", &v4::kernels<float>(), &v4::kernels<double>()});
#endif
  return isas;
}

const std::vector<Isa> isas = supported_isas();
std::atomic<const Isa*> active = &isas.back();

template <class T>
const Kernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return *active.load()->single;
  else
    return *active.load()->double_;
}

void use_isa(const std::string& name) {
  for (const Isa& isa : isas)
    if (isa.name == name) {
      active = &isa;
      return;
    }
  throw nb::value_error("use_isa: this machine has no such instruction set; see available_isas()");
}

template <class T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Input2d = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Output2d = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = std::optional<Input<int64_t>>;

// A section that computes: without the lock of the interpreter.
struct Computing {
  nb::gil_scoped_release unlocked;
  Flushing flushing;
};
using Unlocked = nb::call_guard<Computing>;

void require(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

void check_range(const int64_t* numbers, int64_t n, int64_t end, const char* message) {
  for (int64_t i = 0; i < n; ++i) require(numbers[i] >= 0 && numbers[i] < end, message);
}

template <class T, class Entry>
const Entry& find(const Entry* entries, int n, const std::string& name, const char* what) {
  for (int i = 0; i < n; ++i)
    if (entries[i].name == name) return entries[i];
  throw nb::value_error((std::string(what) + " '" + name + "' is not known to the compiled core").c_str());
}

template <class T>
const RuleKernels<T>& find_rule(const std::string& name) {
  const Kernels<T>& table = kernels<T>();
  for (int i = 0; i < table.n_rules; ++i)
    if (table.rules[i].info.name == name) return table.rules[i];
  throw nb::value_error(("rule '" + name + "' is not known to the compiled core").c_str());
}

template <class T>
const LossKernel<T>& find_loss(const std::string& name) {
  return find<T>(kernels<T>().losses, kernels<T>().n_losses, name, "loss");
}

template <class T>
const ActivationKernel<T>& find_activation(const std::string& name) {
  return find<T>(kernels<T>().activations, kernels<T>().n_activations, name, "activation");
}

// Reads every index once: native code may then follow them blindly. The loops vectorise.
template <class Index>
IndexStatus check_indices(const Index* indices, int64_t nnz, const Index* indptr, int64_t n_rows,
                          int64_t n_columns) {
  if (indptr[0] != 0 || int64_t(indptr[n_rows]) > nnz) return IndexStatus::bad_indptr;
  for (int64_t i = 0; i < n_rows; ++i)
    if (indptr[i + 1] < indptr[i]) return IndexStatus::bad_indptr;
  const int64_t n = indptr[n_rows];
  // Columns that do not rise from one entry to the next: where a row begins they need not.
  int64_t falls = 0;
  for (int64_t i = 0; i < n_rows; ++i)
    if (indptr[i] > 0 && indptr[i] < indptr[i + 1]) falls -= indices[indptr[i]] <= indices[indptr[i] - 1];
  using Unsigned = std::make_unsigned_t<Index>;
  const Index last = Index(std::min<int64_t>(n_columns - 1, std::numeric_limits<Index>::max()));
  constexpr int64_t chunk = 1 << 12;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk), second = std::max<int64_t>(begin, 1);
    // Below zero if the column is, or is beyond the last.
    Index out_of_range = last, here = 0;
    for (int64_t e = begin; e < end; ++e) out_of_range |= indices[e] | Index(Unsigned(last) - Unsigned(indices[e]));
    if (out_of_range < 0) return IndexStatus::bad_index;
    const Index* const column = indices + second;
    for (int64_t e = 0; e < end - second; ++e) here += column[e] <= column[e - 1];
    falls += here;
  }
  if (falls == 0) return IndexStatus::canonical;
  std::vector<int64_t> last_row(n_columns, -1);
  for (int64_t i = 0; i < n_rows; ++i)
    for (int64_t e = indptr[i]; e < int64_t(indptr[i + 1]); ++e) {
      if (last_row[indices[e]] == i) return IndexStatus::duplicates;
      last_row[indices[e]] = i;
    }
  return IndexStatus::unsorted;
}

// A matrix whose memory is kept alive and whose indices have been checked.
template <class T>
struct MatrixObject {
  Matrix<T> view;
  std::vector<nb::object> owners;
  IndexStatus status = IndexStatus::canonical;
  int64_t longest_row = 0;

  explicit MatrixObject(Input2d<T> x)
      : view{int64_t(x.shape(0)), int64_t(x.shape(1)), x.data(), nullptr, nullptr, false},
        owners{nb::cast(x)} {}

  template <class Index>
  void set_csr(Input<T> data, Input<Index> indices, Input<Index> indptr, int64_t n_rows,
               int64_t n_columns) {
    require(n_rows >= 0 && n_columns >= 0 && int64_t(indptr.shape(0)) == n_rows + 1,
            "X: a CSR matrix needs an indptr of n_samples + 1 entries");
    require(data.shape(0) == indices.shape(0), "X: a CSR matrix needs as many indices as data");
    view = {n_rows, n_columns, data.data(), indices.data(), indptr.data(), sizeof(Index) == 8};
    owners = {nb::cast(data), nb::cast(indices), nb::cast(indptr)};
    {
      Computing section;
      status = check_indices(indices.data(), int64_t(indices.shape(0)), indptr.data(), n_rows, n_columns);
    }
    require(status != IndexStatus::bad_indptr,
            "X: the indptr of the CSR matrix must start at 0, never fall, and end within the data");
    require(status != IndexStatus::bad_index,
            "X: the CSR matrix has column indices outside 0..n_features - 1");
    for (int64_t i = 0; i < n_rows; ++i)
      longest_row = std::max<int64_t>(longest_row, indptr.data()[i + 1] - indptr.data()[i]);
  }
  MatrixObject(Input<T> data, Input<int32_t> indices, Input<int32_t> indptr, int64_t n, int64_t m) {
    set_csr(data, indices, indptr, n, m);
  }
  MatrixObject(Input<T> data, Input<int64_t> indices, Input<int64_t> indptr, int64_t n, int64_t m) {
    set_csr(data, indices, indptr, n, m);
  }

  // Where a batch of n rows starts; checks that it lies within the matrix.
  int64_t check_batch(const Rows& rows, int64_t first, int64_t n) const {
    if (rows) {
      require(int64_t(rows->shape(0)) == n, "rows: one row number for each row of the batch");
      check_range(rows->data(), n, view.n_rows, "rows: row number out of range");
    } else {
      require(n >= 0 && first >= 0 && n <= view.n_rows && first <= view.n_rows - n,
              "rows: the batch ends outside the matrix");
    }
    return first;
  }
  const int64_t* pointer(const Rows& rows) const { return rows ? rows->data() : nullptr; }
};

template <class T>
struct TargetsObject {
  Targets<T> view{nullptr, nullptr, 0};
  nb::object owner;
  int64_t n_rows, n_outputs;

  TargetsObject(Input<int32_t> labels, int64_t n_outputs_)
      : owner(nb::cast(labels)), n_rows(labels.shape(0)), n_outputs(n_outputs_) {
    view.labels = labels.data();
    view.first_class = n_outputs == 1 ? 1 : 0;
    for (int64_t i = 0; i < n_rows; ++i)
      require(view.labels[i] >= 0 && view.labels[i] < std::max<int64_t>(2, n_outputs),
              "targets: class indices must lie in 0..n_classes - 1");
  }
  explicit TargetsObject(Input2d<T> values)
      : owner(nb::cast(values)), n_rows(values.shape(0)), n_outputs(values.shape(1)) {
    view.values = values.data();
  }
};

template <class T>
void check_targets(const std::string& loss, const TargetsObject<T>& targets) {
  require(loss != "multinomial" || (targets.view.labels && targets.n_outputs > 1),
          "multinomial: needs class indices, and a score for each of at least two classes");
}

// The scalars of a block of steps: a row of which some columns vary.
template <class T>
struct ScalarsObject {
  ScalarBlock<T> view;
  Input<T> row;
  Input<int64_t> varying;
  Input2d<T> values;

  ScalarsObject(int64_t n_steps, Input<T> row_, Input<int64_t> varying_, Input2d<T> values_)
      : row(row_), varying(varying_), values(values_) {
    view = {row.data(), varying.data(), values.data(), n_steps, int64_t(varying.shape(0)), int64_t(row.shape(0))};
    require(n_steps > 0, "scalars: at least one step");
    require(view.n_varying == 0 || (int64_t(values.shape(0)) == n_steps && values.shape(1) == varying.shape(0)),
            "values: one for each step and varying column");
    check_range(varying.data(), view.n_varying, view.width, "varying: column number out of range");
  }
};

// The layers of a network, and the product that BLAS lends to them.
template <class T>
class ArchitectureObject {
 public:
  ArchitectureObject(std::vector<int64_t> layer_sizes, const std::optional<std::string>& activation, double dropout,
                     uint64_t seed, nb::capsule gemm)
      : gemm_(find_gemm(gemm)), owner_(gemm) {
    require(layer_sizes.size() >= 2, "layer_sizes: at least inputs and outputs");
    // BLAS counts in 32 bits. Of CSR data it never sees the columns, so there may be more of these.
    for (size_t l = 0; l < layer_sizes.size(); ++l)
      require(layer_sizes[l] > 0 && (l == 0 || layer_sizes[l] <= std::numeric_limits<int>::max()),
              "layer_sizes: out of range");
    require(activation || layer_sizes.size() == 2, "activation: needed by hidden layers");
    require(dropout >= 0 && dropout < 1, "dropout: must lie in [0, 1)");
    view_ = {std::move(layer_sizes), activation ? &find_activation<T>(*activation) : nullptr, dropout, seed};
  }

  const Architecture<T>& view() const { return view_; }
  Gemm<T> gemm() const { return gemm_; }

  void check(const MatrixObject<T>& x) const {
    require(view_.layer_sizes[0] == x.view.n_columns, "X: must have the columns of the first layer");
    require(x.view.indices || x.view.n_columns <= std::numeric_limits<int>::max(), "X: too many columns");
  }

  void scores(const MatrixObject<T>& x, const Rows& rows, const std::vector<Input2d<T>>& coefs,
              const std::vector<Input<T>>& intercepts, int64_t n_threads, Output2d<T> out) const {
    check(x);
    require(int64_t(coefs.size()) == view_.n_layers() && coefs.size() == intercepts.size(), "coefs: of all layers");
    Layers<T> layers;
    for (size_t l = 0; l < coefs.size(); ++l) {
      require(int64_t(coefs[l].shape(0)) == view_.layer_sizes[l] && int64_t(coefs[l].shape(1)) == view_.layer_sizes[l + 1] &&
                  intercepts[l].shape(0) == coefs[l].shape(1),
              "coefs, intercepts: must have the shapes of the layers");
      layers.coefs.push_back(coefs[l].data());
      layers.intercepts.push_back(intercepts[l].data());
    }
    require(int64_t(out.shape(1)) == view_.layer_sizes.back(), "out: one score for each output");
    const Batch<T> all{x.view, x.pointer(rows), x.check_batch(rows, 0, out.shape(0)), int64_t(out.shape(0))};
    Computing section;
    network_scores<T>(view_, kernels<T>(), gemm_, layers, all, n_threads, out.data());
  }

 private:
  // The capsules of scipy.linalg.cython_blas are named after the types of the arguments.
  static Gemm<T> find_gemm(const nb::capsule& gemm) {
    const std::string name = gemm.name() ? gemm.name() : "";
    const std::string number = sizeof(T) == 4 ? "_s *" : "_d *", plain = sizeof(T) == 4 ? "float *" : "double *";
    require(name.rfind("void (char *, char *, int *, int *, int *, ", 0) == 0 &&
                (name.find(number) != std::string::npos || name.find(plain) != std::string::npos),
            "gemm: must be the capsule of sgemm or dgemm of scipy.linalg.cython_blas");
    return reinterpret_cast<Gemm<T>>(gemm.data());
  }

  Architecture<T> view_;
  Gemm<T> gemm_;
  nb::object owner_;
};

// What is trained on what, and how: everything about a block of steps but its scalars and the order of its
// samples.
template <class T>
class TaskObject {
 public:
  TaskObject(const MatrixObject<T>& x, const TargetsObject<T>& targets, std::optional<Input<T>> weights,
             const std::string& loss, double parameter, bool fit_intercept, double clip_norm,
             const ArchitectureObject<T>& architecture)
      : owners_{nb::cast(&x, nb::rv_policy::reference), nb::cast(&targets, nb::rv_policy::reference)},
        weights_(weights), gemm_(architecture.gemm()), x_(x) {
    task_.network = architecture.view();
    architecture.check(x);
    require(task_.network.layer_sizes.back() == targets.n_outputs, "targets: one for each output");
    require(targets.n_rows == x.view.n_rows, "targets: one for each row of X");
    require(!weights || int64_t(weights->shape(0)) == x.view.n_rows, "weights: one for each row");
    check_targets(loss, targets);
    task_.x = x.view;
    task_.longest_row = x.longest_row;
    task_.targets = targets.view;
    task_.weights = weights ? weights->data() : nullptr;
    task_.n_outputs = targets.n_outputs;
    task_.loss = &find_loss<T>(loss);
    task_.loss_parameter = T(parameter);
    task_.fit_intercept = fit_intercept;
    task_.clip_norm = clip_norm;
  }

  Task<T> task(const Input<int64_t>& order, const ScalarsObject<T>& scalars, int64_t batch_size,
               int64_t first_step) const {
    Task<T> task = task_;
    task.first_step = first_step;
    task.order = order.data();
    task.n_samples = order.shape(0);
    require(batch_size > 0 && task.n_samples > 0, "order, batch_size: at least one sample");
    task.batch_size = std::min(batch_size, task.n_samples);
    task.scalars = scalars.view;
    require(scalars.view.n_steps == (task.n_samples + task.batch_size - 1) / task.batch_size,
            "scalars: one step for each batch");
    return task;
  }
  Gemm<T> gemm() const { return gemm_; }

  // The sum of the losses of all samples; leaves the gradient of their mean.
  double full_gradient(const Rows& rows, Input<T> parameters, int64_t n_threads, Vector<T> gradient) const {
    const int64_t n = rows ? int64_t(rows->shape(0)) : task_.x.n_rows;
    const size_t size = task_.network.n_parameters();
    require(parameters.shape(0) == size && gradient.shape(0) == size, "parameters, gradient: must be of all layers");
    require(n > 0, "rows: at least one");
    const Batch<T> all{task_.x, x_.pointer(rows), x_.check_batch(rows, 0, n), n};
    Computing section;
    return skoptim::full_gradient<T>(task_, kernels<T>(), gemm_, parameters.data(), all, n_threads, gradient.data());
  }

 private:
  Task<T> task_{};
  nb::object owners_[2];
  std::optional<Input<T>> weights_;
  Gemm<T> gemm_;
  const MatrixObject<T>& x_;
};

// A pass over fewer numbers is done before another thread has started.
constexpr int64_t worth_a_thread = 1 << 16, numbers_of_a_part = 1 << 14;

// A batch of CSR rows sorted by columns, in memory that is used again.
template <class T>
struct TouchedObject {
  Touched<T> view;

  void sort(const MatrixObject<T>& x, const Rows& rows, int64_t first, int64_t n) {
    x.check_batch(rows, first, n);
    require(x.view.indices, "x: must be sparse");
    require(n < std::numeric_limits<int32_t>::max(), "n: too many rows in a batch");
    Computing section;
    kernels<T>().sort_by_column(x.view, x.pointer(rows), first, n, view);
  }

  double squared_norm(Input2d<T> delta) {
    require(int64_t(delta.shape(0)) == view.n_rows, "delta: one row for each row of the batch");
    std::vector<T> g(delta.shape(1));
    Computing section;
    return kernels<T>().touched_squared_norm(view, delta.shape(1), delta.data(), g.data());
  }
};


// A rule bound to flat parameters and to one block of prepared scalars. The first
// n_columns * width parameters are the first layer, n_columns runs of `width`; the first
// n_penalised are coefficients; the rest are intercepts.
template <class T>
class Updater {
 public:
  Updater(const std::string& rule, Vector<T> w, std::vector<Vector<T>> slots,
          std::optional<Vector<double>> average, Input2d<T> rows, int64_t n_columns, int64_t width,
          int64_t n_penalised, bool sparse, std::optional<Input<T>> unit, int64_t n_threads)
      : rule_(find_rule<T>(rule)), kernels_(kernels<T>()), size_(w.shape(0)), n_columns_(n_columns),
        width_(width), n_penalised_(n_penalised), n_threads_(n_threads), w_(w), slots_(slots), average_(average), rows_(rows), unit_(unit) {
    require(int(slots.size()) == rule_.info.n_slots, "slots: as many arrays as the rule has slots");
    require(n_penalised >= 0 && n_penalised <= size_, "n_penalised: more parameters than w has");
    require(n_columns >= 0 && width >= 0 && (width == 0 || n_columns <= n_penalised / width),
            "n_columns, width: more coefficients than are penalised");
    require(n_threads >= 1, "n_threads: at least 1");
    parameters_.w = w.data();
    for (size_t j = 0; j < slots.size(); ++j) {
      require(int64_t(slots[j].shape(0)) == size_, "slots: each must have the length of w");
      parameters_.slots[j] = slots[j].data();
    }
    if (average) {
      require(int64_t(average->shape(0)) == size_, "average: must have the length of w");
      parameters_.average = average->data();
    }
    if (unit) {
      require(int64_t(unit->shape(0)) == n_columns, "unit: one for each column");
      parameters_.unit = unit->data();
    }
    block_.rows = rows.data();
    block_.n_steps = rows.shape(0);
    block_.width = rows.shape(1);
    require(block_.n_steps > 0 && block_.width >= rule_.info.row_width,
            "rows: one row of scalars for each step, as long as the rule wants");
    require(block_.n_steps < std::numeric_limits<int32_t>::max(), "rows: too many steps in a block");
    if (sparse) start_ledger();
  }

  void apply(Input<T> g, int64_t step) const {
    require(int64_t(g.shape(0)) == size_, "g: must have the length of w");
    Computing section;
    apply_from(0, g.data(), row(step));
  }

  void apply_rest(Input<T> g, int64_t step) const {
    require(int64_t(g.shape(0)) == size_ - n_columns_ * width_, "g: must cover all but the first layer");
    Computing section;
    apply_from(n_columns_ * width_, g.data(), row(step));
  }

  // Pays the touched columns the steps before this one, and writes X W to z.
  void multiply_touched(const TouchedObject<T>& touched, int64_t step, Output2d<T> z) {
    check_touched(touched, z.shape(0), z.shape(1), step);
    Computing section;
    const Touched<T>& view = touched.view;
    const int64_t n_threads = threads_for(view);
    Helpers::share(n_threads, n_threads, [&](Part part) {
      const Layer layer{width_, border(part.first(width_)), border(part.last(width_))};
      rule_.multiply_touched(parameters_, view, layer, block_, paid_.data(), step, z.data());
    });
    for (const int64_t column : view.columns) paid_[column] = int32_t(step);
  }

  // One step of the touched columns with gradient factor * X' delta.
  void apply_touched(const TouchedObject<T>& touched, Input2d<T> delta, double factor, int64_t step) {
    check_touched(touched, delta.shape(0), delta.shape(1), step);
    Computing section;
    const Touched<T>& view = touched.view;
    gradient_.resize(width_);
    const T* const scalars = row(step);
    const int64_t n_threads = threads_for(view);
    Helpers::share(n_threads, n_threads, [&](Part part) {
      const Layer layer{width_, border(part.first(width_)), border(part.last(width_))};
      rule_.apply_touched(parameters_, view, layer, delta.data(), T(factor), scalars, gradient_.data() + layer.begin);
    });
    for (const int64_t column : view.columns) paid_[column] = int32_t(step + 1);
  }

  // Pays all columns the steps before this one.
  void settle(int64_t step) {
    require(!paid_.empty() || n_columns_ == 0, "settle: this updater keeps no ledger");
    require(step >= 0 && step <= block_.n_steps, "step: outside the block of prepared scalars");
    Computing section;
    share(n_columns_ * width_, [&](Part part) {
      const int64_t begin = part.first(n_columns_), end = part.last(n_columns_);
      rule_.pay_columns(parameters_, begin, end, width_, block_, paid_.data(), step);
    });
  }

  // Steps that visit all parameters, in one call; returns the sum of the losses.
  double train(const TaskObject<T>& data, Input<int64_t> order, const ScalarsObject<T>& scalars,
               int64_t batch_size, int64_t first_step, int64_t n_threads) const {
    const Task<T> task = data.task(order, scalars, batch_size, first_step);
    require(scalars.view.width >= rule_.info.row_width, "scalars: as many as the rule wants");
    const std::vector<int64_t>& sizes = task.network.layer_sizes;
    require(task.x.indices || task.batch_size <= std::numeric_limits<int>::max(), "batch_size: more than BLAS can count");
    require(n_columns_ == sizes[0] && width_ == sizes[1] && n_penalised_ == task.network.n_coefficients() &&
                size_ == task.network.n_parameters(),
            "train: X, targets and w do not fit together");
    Computing section;
    check_range(order.data(), task.n_samples, task.x.n_rows, "order: row number out of range");
    return Training<T>(task, kernels_, data.gemm(), rule_, parameters_, n_threads).run();
  }

 private:
  const T* row(int64_t step) const {
    require(step >= 0 && step < block_.n_steps, "step: outside the block of prepared scalars");
    return block_.rows + step * block_.width;
  }

  // Calls visit(part) for parts of n numbers.
  template <class Visit>
  void share(int64_t n, Visit&& visit) const {
    const bool worth = n >= worth_a_thread;
    Helpers::share(worth ? n_threads_ : 1, worth ? n / numbers_of_a_part : 1, visit);
  }

  // Units of the first layer are shared out in whole vectors.
  int64_t border(int64_t unit) const { return unit == width_ ? width_ : unit / 16 * 16; }

  // Groups are shrunk as a whole.
  int64_t threads_for(const Touched<T>& touched) const {
    const bool worth = int64_t(touched.columns.size()) * width_ >= worth_a_thread;
    return worth && !(block_.rows[3] > T(0)) ? n_threads_ : 1;
  }

  void check_touched(const TouchedObject<T>& touched, size_t n_rows, size_t width, int64_t step) const {
    require(!paid_.empty() || touched.view.columns.empty(), "touched: this updater keeps no ledger");
    require(touched.view.n_columns == n_columns_, "touched: of another matrix");
    require(int64_t(n_rows) == touched.view.n_rows && int64_t(width) == width_, "touched: rows of the batch, width of w");
    require(step >= 0 && step < block_.n_steps, "step: outside the block of prepared scalars");
  }

  void apply_from(int64_t begin, const T* g, const T* scalars) const {
    share(size_ - begin, [&](Part part) { apply_part(begin, g, scalars, part); });
  }

  void apply_part(int64_t begin, const T* g, const T* scalars, Part part) const {
    const int64_t first_layer = n_columns_ * width_;
    // Groups and units need a range of their own for the first layer; otherwise one range will do.
    const bool own_range = scalars[3] > T(0) || parameters_.unit;
    const int64_t split = own_range ? first_layer : begin, rest = std::max(begin, split);
    if (begin < split && part.index == 0) rule_.apply(parameters_, g, begin, split, scalars, true, width_);
    const int64_t n = n_penalised_ - rest, first = rest + part.first(n), last = rest + part.last(n);
    rule_.apply(parameters_, g + (first - begin), first, last, scalars, true, 0);
    if (part.is_last())
      rule_.apply(parameters_, g + (n_penalised_ - begin), n_penalised_, size_, scalars, false, 0);
  }

  void start_ledger() {
    paid_.assign(n_columns_, 0);
    decay_.resize(block_.n_steps + 1);
    threshold_.resize(block_.n_steps + 1);
    averaged_.resize(block_.n_steps + 1);
    highest_rate_.resize(block_.n_steps + 1);
    lead_.resize(block_.n_steps + 1);
    block_.averaging = parameters_.average != nullptr;
    block_.closed_idle = rule_.running_sums(block_.rows, 0, block_.n_steps, block_.width, block_.averaging,
                                           decay_.data(), threshold_.data(), averaged_.data(),
                                            highest_rate_.data(), lead_.data());
    if (rule_.n_factors > 0) {
      factors_.resize(block_.n_steps * rule_.n_factors);
      rule_.fill_factors(block_.rows, 0, block_.n_steps, block_.width, factors_.data());
      block_.factors = factors_.data();
      series_.resize(block_.n_steps + 1);
      block_.fading = rule_.fill_series(block_.rows, 0, block_.n_steps, block_.width, series_.data());
      block_.series = series_.data();
    }
    block_.one_rate = true;
    for (int64_t t = 1; t < block_.n_steps; ++t)
      block_.one_rate = block_.one_rate && block_.rows[t * block_.width] == block_.rows[0];
    block_.decay = decay_.data();
    block_.threshold = threshold_.data();
    block_.averaged = averaged_.data();
    block_.highest_rate = highest_rate_.data();
    block_.lead = lead_.data();
  }

  const RuleKernels<T>& rule_;
  const Kernels<T>& kernels_;
  int64_t size_, n_columns_, width_, n_penalised_, n_threads_;
  Vector<T> w_;
  std::vector<Vector<T>> slots_;
  std::optional<Vector<double>> average_;
  Input2d<T> rows_;
  std::optional<Input<T>> unit_;
  Parameters<T> parameters_{};
  Block<T> block_{};
  std::vector<int32_t> paid_;
  std::vector<T> factors_, gradient_;
  std::vector<FadingStep> series_;
  std::vector<double> decay_, threshold_, averaged_, highest_rate_, lead_;
};

// A linear model while it is trained on CSR data, see cpu_table.hpp.
template <class T>
class TableObject {
 public:
  TableObject(const std::string& rule, int64_t n_columns, int64_t width, bool has_units, bool averaging)
      : n_columns_(n_columns), width_(width), has_units_(has_units), averaging_(averaging),
        info_(find_rule<T>(rule).info),
        table_(find_rule<T>(rule).make_table(n_columns, width, has_units, averaging, info_.row_width)) {}

  void load(Input<T> w, const std::vector<Input<T>>& slots, const std::optional<Input<double>>& average,
            const std::optional<Input<T>>& unit, Input<T> last_row) {
    std::vector<const T*> pointers(max_slots);
    check(w.shape(0), slots, average, unit);
    for (size_t j = 0; j < slots.size(); ++j) pointers[j] = slots[j].data();
    require(int64_t(last_row.shape(0)) >= info_.row_width, "last_row: too short for the rule");
    Computing section;
    table_->load(w.data(), pointers.data(), average ? average->data() : nullptr,
                 unit ? unit->data() : nullptr, last_row.data());
    loaded_ = true;
  }

  void store(const std::optional<Vector<T>>& w, const std::vector<Vector<T>>& slots, const std::optional<Vector<double>>& average,
             const std::optional<Vector<T>>& unit, bool last) {
    require_loaded();
    std::vector<T*> pointers(max_slots);
    if (!slots.empty()) check(size(), slots, average, unit);
    require(!w || int64_t(w->shape(0)) == size(), "w: must have the size of the table");
    for (size_t j = 0; j < slots.size(); ++j) pointers[j] = slots[j].data();
    Computing section;
    table_->store(w ? w->data() : nullptr, pointers.data(), average ? average->data() : nullptr,
                  unit ? unit->data() : nullptr, last);
    loaded_ = !last;
  }

  void settle() {
    require_loaded();
    Computing section;
    table_->settle();
  }

  // With more threads than one, asynchronously.
  double train(const TaskObject<T>& data, Input<int64_t> order, const ScalarsObject<T>& scalars,
               int64_t batch_size, int64_t n_threads) {
    require_loaded();
    const Task<T> task = data.task(order, scalars, batch_size, 0);
    require(task.x.indices && n_columns_ == task.x.n_columns && width_ == task.n_outputs &&
                task.network.layer_sizes.size() == 2,
            "train: X must be CSR, and it and the targets must fit the table");
    require(scalars.view.width == info_.row_width, "scalars: as many as the rule wants");
    Computing section;
    check_range(order.data(), task.n_samples, task.x.n_rows, "order: row number out of range");
    const int64_t n_workers = std::min(n_threads, task.scalars.n_steps);
    if (!table_->share(task, n_workers)) return table_->train(task);
    std::vector<double> losses(n_workers);
    Team(n_workers).run([&](Part part) {
      // There may have been fewer threads to be had.
      for (int64_t i = part.index; i < n_workers; i += part.count) losses[i] = table_->train_share(task, i);
    });
    table_->join();
    double loss = 0;
    for (const double part : losses) loss += part;
    return loss;
  }

  double observe(const MatrixObject<T>& x, const Rows& rows, int64_t first, int64_t n) {
    check_rows(x, rows, first, n);
    Computing section;
    return table_->observe(x.view, x.pointer(rows), first, n);
  }

  void keep() { table_->keep(); }
  void undo() { table_->undo(); }
  void forget() { table_->forget(); }
  bool finite() { return table_->finite(); }

  nb::tuple penalty_sums() {
    require_loaded();
    PenaltySums sums;
    {
      Computing section;
      sums = table_->penalty_sums();
    }
    return nb::make_tuple(sums.absolute, sums.squares, sums.norms, sums.finite);
  }

 private:
  void check_rows(const MatrixObject<T>& x, const Rows& rows, int64_t first, int64_t n) const {
    require_loaded();
    x.check_batch(rows, first, n);
    require(x.view.indices && x.view.n_columns == n_columns_, "X must be CSR, and fit the table");
  }
  int64_t size() const { return n_columns_ * width_ + width_; }
  void require_loaded() const { require(loaded_, "the table is empty: call load first"); }

  template <class Slots, class Average, class Unit>
  void check(size_t n, const Slots& slots, const Average& average, const Unit& unit) const {
    require(int64_t(n) == size(), "w: must have the size of the table");
    require(int(slots.size()) == info_.n_slots, "slots: as many arrays as the rule has slots");
    for (const auto& slot : slots)
      require(int64_t(slot.shape(0)) == size(), "slots: each must have the length of w");
    require(average.has_value() == averaging_, "average: needed by a table that averages");
    require(!average || int64_t(average->shape(0)) == size(), "average: must have the length of w");
    require(unit.has_value() == has_units_, "unit: needed by a table with units");
    require(!unit || int64_t(unit->shape(0)) == n_columns_, "unit: one for each column");
  }

  const int64_t n_columns_, width_;
  const bool has_units_, averaging_;
  const RuleInfo& info_;
  std::unique_ptr<LinearTable<T>> table_;
  bool loaded_ = false;
};

template <class T>
void bind(nb::module_& m, const char* suffix) {
  const std::string s(suffix);
  nb::class_<MatrixObject<T>>(m, ("Matrix" + s).c_str())
      .def(nb::init<Input2d<T>>(), "x"_a.noconvert())
      .def(nb::init<Input<T>, Input<int32_t>, Input<int32_t>, int64_t, int64_t>(),
           "data"_a.noconvert(), "indices"_a.noconvert(), "indptr"_a.noconvert(), "n_rows"_a, "n_columns"_a)
      .def(nb::init<Input<T>, Input<int64_t>, Input<int64_t>, int64_t, int64_t>(),
           "data"_a.noconvert(), "indices"_a.noconvert(), "indptr"_a.noconvert(), "n_rows"_a, "n_columns"_a)
      .def_prop_ro("has_duplicates",
                   [](const MatrixObject<T>& x) { return x.status == IndexStatus::duplicates; })
      .def_prop_ro("longest_row", [](const MatrixObject<T>& x) { return x.longest_row; });
  nb::class_<TargetsObject<T>>(m, ("Targets" + s).c_str())
      .def(nb::init<Input<int32_t>, int64_t>(), "labels"_a.noconvert(), "n_outputs"_a)
      .def(nb::init<Input2d<T>>(), "values"_a.noconvert());
  nb::class_<Updater<T>>(m, ("Updater" + s).c_str())
      .def(nb::init<const std::string&, Vector<T>, std::vector<Vector<T>>, std::optional<Vector<double>>,
                    Input2d<T>, int64_t, int64_t, int64_t, bool, std::optional<Input<T>>, int64_t>(),
           "rule"_a, "w"_a.noconvert(), "slots"_a.noconvert(), "average"_a.noconvert().none(), "rows"_a.noconvert(),
           "n_columns"_a, "width"_a, "n_penalised"_a, "sparse"_a, "unit"_a.noconvert().none(), "n_threads"_a)
      .def("apply", &Updater<T>::apply, "g"_a.noconvert(), "step"_a)
      .def("apply_rest", &Updater<T>::apply_rest, "g"_a.noconvert(), "step"_a)
      .def("multiply_touched", &Updater<T>::multiply_touched, "touched"_a, "step"_a, "z"_a.noconvert())
      .def("apply_touched", &Updater<T>::apply_touched, "touched"_a, "delta"_a.noconvert(), "factor"_a, "step"_a)
      .def("settle", &Updater<T>::settle, "step"_a)
      .def("train", &Updater<T>::train, "task"_a, "order"_a, "scalars"_a, "batch_size"_a, "first_step"_a, "n_threads"_a);
  nb::class_<ScalarsObject<T>>(m, ("Scalars" + s).c_str())
      .def(nb::init<int64_t, Input<T>, Input<int64_t>, Input2d<T>>(), "n_steps"_a, "row"_a.noconvert(),
           "varying"_a.noconvert(), "values"_a.noconvert());
  nb::class_<ArchitectureObject<T>>(m, ("Architecture" + s).c_str())
      .def(nb::init<std::vector<int64_t>, const std::optional<std::string>&, double, uint64_t, nb::capsule>(),
           "layer_sizes"_a, "activation"_a.none(), "dropout"_a, "seed"_a, "gemm"_a)
      .def("scores", &ArchitectureObject<T>::scores, "x"_a, "rows"_a.none(), "coefs"_a, "intercepts"_a,
           "n_threads"_a, "out"_a.noconvert());
  nb::class_<TaskObject<T>>(m, ("Task" + s).c_str())
      .def(nb::init<const MatrixObject<T>&, const TargetsObject<T>&, std::optional<Input<T>>,
                    const std::string&, double, bool, double, const ArchitectureObject<T>&>(),
           "x"_a, "targets"_a, "weights"_a.noconvert().none(), "loss"_a, "parameter"_a,
           "fit_intercept"_a, "clip_norm"_a, "architecture"_a)
      .def("full_gradient", &TaskObject<T>::full_gradient, "rows"_a.none(), "parameters"_a.noconvert(), "n_threads"_a,
           "gradient"_a.noconvert());
  nb::class_<TableObject<T>>(m, ("LinearTable" + s).c_str())
      .def(nb::init<const std::string&, int64_t, int64_t, bool, bool>(), "rule"_a, "n_columns"_a,
           "width"_a, "has_units"_a, "averaging"_a)
      .def("load", &TableObject<T>::load, "w"_a.noconvert(), "slots"_a.noconvert(),
           "average"_a.noconvert().none(), "unit"_a.noconvert().none(), "last_row"_a.noconvert())
      .def("store", &TableObject<T>::store, "w"_a.noconvert().none(), "slots"_a.noconvert(),
           "average"_a.noconvert().none(), "unit"_a.noconvert().none(), "last"_a)
      .def("settle", &TableObject<T>::settle)
      .def("train", &TableObject<T>::train, "task"_a, "order"_a, "scalars"_a, "batch_size"_a, "n_threads"_a)
      .def("observe", &TableObject<T>::observe, "x"_a, "rows"_a.none(), "first"_a, "n"_a)
      .def("penalty_sums", &TableObject<T>::penalty_sums)
      .def("keep", &TableObject<T>::keep)
      .def("undo", &TableObject<T>::undo)
      .def("forget", &TableObject<T>::forget)
      .def_prop_ro("finite", &TableObject<T>::finite);

  m.def("observe",
        [](const MatrixObject<T>& x, const Rows& rows, int64_t first, int64_t n, Vector<T> unit) {
          x.check_batch(rows, first, n);
          require(int64_t(unit.shape(0)) == x.view.n_columns, "unit: one for each column");
          return kernels<T>().observe(x.view, x.pointer(rows), first, n, unit.data());
        },
        "x"_a, "rows"_a.none(), "first"_a, "n"_a, "unit"_a.noconvert(), Unlocked());
  m.def("column_squares",
        [](const MatrixObject<T>& x, const Rows& rows, int64_t first, int64_t n, std::optional<Input<T>> weights,
           Vector<double> sums, Vector<double> counts) {
          x.check_batch(rows, first, n);
          const int64_t n_columns = x.view.n_columns;
          require(int64_t(sums.shape(0)) == n_columns && int64_t(counts.shape(0)) == n_columns,
                  "sums, counts: one for each column");
          require(!weights || int64_t(weights->shape(0)) == x.view.n_rows, "weights: one for each row");
          kernels<T>().column_squares(x.view, x.pointer(rows), first, n, weights ? weights->data() : nullptr,
                                      sums.data(), counts.data());
        },
        "x"_a, "rows"_a.none(), "first"_a, "n"_a, "weights"_a.none().noconvert(), "sums"_a.noconvert(),
        "counts"_a.noconvert(), Unlocked());
  m.def("count_chosen",
        [](const MatrixObject<T>& x, Input<int32_t> places, int64_t n_threads, Vector<int32_t> counts) {
          require(x.view.indices, "x: must be a CSR matrix");
          require(int64_t(places.shape(0)) == x.view.n_columns, "places: one for each column");
          require(int64_t(counts.shape(0)) == x.view.n_rows, "counts: one for each row");
          count_chosen(x.view, places.data(), n_threads, counts.data());
        },
        "x"_a, "places"_a.noconvert(), "n_threads"_a, "counts"_a.noconvert(), Unlocked());
  m.def("copy_chosen",
        [](const MatrixObject<T>& x, Input<int32_t> places, int64_t n_threads, Input<int32_t> starts, Vector<T> data,
           Vector<int32_t> numbers) {
          require(x.view.indices, "x: must be a CSR matrix");
          require(int64_t(places.shape(0)) == x.view.n_columns, "places: one for each column");
          const int64_t n_rows = x.view.n_rows;
          require(int64_t(starts.shape(0)) == n_rows + 1 && starts.data()[0] >= 0, "starts: one for each row, and an end");
          for (int64_t i = 0; i < n_rows; ++i)
            require(starts.data()[i] <= starts.data()[i + 1], "starts: must not fall");
          require(starts.data()[n_rows] <= int64_t(data.shape(0)) && data.shape(0) == numbers.shape(0),
                  "data, numbers: too short");
          copy_chosen(x.view, places.data(), n_threads, starts.data(), data.data(), numbers.data());
        },
        "x"_a, "places"_a.noconvert(), "n_threads"_a, "starts"_a.noconvert(), "data"_a.noconvert(),
        "numbers"_a.noconvert(), Unlocked());
  m.def("gather_rows",
        [](Input2d<T> x, Input<int64_t> rows, Output2d<T> out) {
          require(out.shape(0) == rows.shape(0) && out.shape(1) == x.shape(1), "out: wrong shape");
          check_range(rows.data(), rows.shape(0), x.shape(0), "rows: row number out of range");
          kernels<T>().gather_rows(x.data(), x.shape(1), rows.data(), rows.shape(0), out.data());
        },
        "x"_a.noconvert(), "rows"_a, "out"_a.noconvert(), Unlocked());
  m.def("csr_matmul",
        [](const MatrixObject<T>& x, const Rows& rows, int64_t first, Input2d<T> w, Output2d<T> out) {
          x.check_batch(rows, first, out.shape(0));
          require(int64_t(w.shape(0)) == x.view.n_columns && w.shape(1) == out.shape(1), "w: wrong shape");
          kernels<T>().csr_matmul(x.view, x.pointer(rows), first, out.shape(0), w.data(), w.shape(1),
                                  out.data());
        },
        "x"_a, "rows"_a.none(), "first"_a, "w"_a.noconvert(), "out"_a.noconvert(), Unlocked());
  nb::class_<TouchedObject<T>>(m, ("Touched" + s).c_str())
      .def(nb::init<>())
      .def("sort", &TouchedObject<T>::sort, "x"_a, "rows"_a.none(), "first"_a, "n"_a)
      .def("squared_norm", &TouchedObject<T>::squared_norm, "delta"_a.noconvert());
  m.def("csr_gradient",
        [](const MatrixObject<T>& x, const Rows& rows, int64_t first, Input2d<T> delta, Output2d<T> g) {
          x.check_batch(rows, first, delta.shape(0));
          require(g.shape(1) == delta.shape(1), "g: wrong shape");
          require(int64_t(g.shape(0)) == x.view.n_columns, "g: one row per column");
          kernels<T>().csr_gradient(x.view, x.pointer(rows), first, delta.shape(0), delta.data(),
                                    delta.shape(1), g.data());
        },
        "x"_a, "rows"_a.none(), "first"_a, "delta"_a.noconvert(), "g"_a.noconvert(), Unlocked());
  m.def("loss_gradient",
        [](const std::string& loss, Input2d<T> z, const TargetsObject<T>& targets, const Rows& rows,
           int64_t first, const std::optional<Input<T>>& weights, double parameter, double scale,
           const std::optional<Output2d<T>>& d) {
          require(int64_t(z.shape(1)) == targets.n_outputs, "z: one score per output");
          require(!rows || rows->shape(0) == z.shape(0), "rows: one row number for each row of z");
          if (rows)
            check_range(rows->data(), rows->shape(0), targets.n_rows, "rows: row number out of range");
          else
            require(first >= 0 && int64_t(z.shape(0)) <= targets.n_rows &&
                        first <= targets.n_rows - int64_t(z.shape(0)),
                    "z: more rows than targets");
          check_targets(loss, targets);
          require(!weights || int64_t(weights->shape(0)) == targets.n_rows, "weights: one for each row");
          require(!d || (d->shape(0) == z.shape(0) && d->shape(1) == z.shape(1)), "d: wrong shape");
          return find_loss<T>(loss).batch(z.data(), z.shape(0), z.shape(1), targets.view,
                                          rows ? rows->data() : nullptr, first,
                                          weights ? weights->data() : nullptr, T(parameter), T(scale),
                                          d ? d->data() : nullptr);
        },
        "loss"_a, "z"_a.noconvert(), "targets"_a, "rows"_a.none(), "first"_a, "weights"_a.noconvert().none(), "parameter"_a,
        "scale"_a, "d"_a.noconvert().none(), Unlocked());
  m.def("activation_forward",
        [](const std::string& name, Output2d<T> z, Input<T> bias, Output2d<T> a) {
          require(z.shape(0) == a.shape(0) && z.shape(1) == a.shape(1) && bias.shape(0) == z.shape(1),
                  "activation_forward: shapes do not fit");
          find_activation<T>(name).forward(z.data(), bias.data(), a.data(), z.shape(0), z.shape(1));
        },
        "name"_a, "z"_a.noconvert(), "bias"_a.noconvert(), "a"_a.noconvert(), Unlocked());
  m.def("activation_backward",
        [](const std::string& name, Input2d<T> z, Input2d<T> a, Output2d<T> delta) {
          require(z.size() == delta.size() && a.size() == delta.size(),
                  "activation_backward: shapes do not fit");
          find_activation<T>(name).backward(z.data(), a.data(), delta.data(), delta.size());
        },
        "name"_a, "z"_a.noconvert(), "a"_a.noconvert(), "delta"_a.noconvert(), Unlocked());
  m.def("dropout",
        [](Input2d<T> a, uint64_t seed, uint64_t stream, double rate, Output2d<T> out) {
          require(a.size() == out.size(), "out: wrong shape");
          require(rate >= 0 && rate < 1, "rate: must lie in [0, 1)");
          kernels<T>().dropout(a.data(), 0, a.size(), seed, stream, rate, out.data());
        },
        "a"_a.noconvert(), "seed"_a, "stream"_a, "rate"_a, "out"_a.noconvert(), Unlocked());
  m.def("column_sums",
        [](Input2d<T> a, Vector<T> out) {
          require(out.shape(0) == a.shape(1), "out: one entry per column");
          kernels<T>().column_sums(a.data(), a.shape(0), a.shape(1), false, out.data());
        },
        "a"_a.noconvert(), "out"_a.noconvert(), Unlocked());
  m.def("dot",
        [](nb::ndarray<const T, nb::c_contig, nb::device::cpu> a,
           nb::ndarray<const T, nb::c_contig, nb::device::cpu> b) {
          require(a.size() == b.size(), "dot: arrays of one size");
          return kernels<T>().dot(a.data(), b.data(), a.size());
        },
        "a"_a.noconvert(), "b"_a.noconvert(), Unlocked());
  m.def("inverse_hessian_product",
        [](Input2d<T> steps, Input2d<T> changes, int64_t first, int64_t n_pairs, std::optional<Input<T>> scale,
           Vector<T> vector) {
          const int64_t capacity = steps.shape(0), n = vector.shape(0);
          require(int64_t(steps.shape(1)) == n && int64_t(changes.shape(1)) == n &&
                      int64_t(changes.shape(0)) == capacity,
                  "steps, changes: rows like the vector, as many of each");
          require(first >= 0 && n_pairs >= 0 && n_pairs <= capacity, "first, n_pairs: rows of steps");
          require(!scale || int64_t(scale->shape(0)) == n, "scale: must have the length of the vector");
          kernels<T>().inverse_hessian_product(steps.data(), changes.data(), capacity, first, n_pairs, n,
                                               scale ? scale->data() : nullptr, vector.data());
        },
        "steps"_a.noconvert(), "changes"_a.noconvert(), "first"_a, "n_pairs"_a, "scale"_a.none().noconvert(),
        "vector"_a.noconvert(), Unlocked());
  m.def("prox",
        [](Vector<T> w, Input<T> step, double l1, double l2, double lower, double upper) {
          require(step.shape(0) == 1 || step.shape(0) == w.shape(0), "step: one, or one for each weight");
          kernels<T>().prox(w.data(), w.shape(0), step.data(), step.shape(0), T(l1), T(l2), T(lower), T(upper));
        },
        "w"_a.noconvert(), "step"_a.noconvert(), "l1"_a, "l2"_a, "lower"_a, "upper"_a, Unlocked());
  m.def("prox_groups",
        [](Vector<T> w, int64_t n_groups, int64_t width, Input<T> thresholds) {
          require(n_groups * width <= int64_t(w.shape(0)), "w: too short for the groups");
          const int64_t n_thresholds = thresholds.shape(0);
          require(n_thresholds == 1 || n_thresholds == n_groups, "thresholds: one, or one for each group");
          kernels<T>().prox_groups(w.data(), n_groups, width, thresholds.data(), n_thresholds);
        },
        "w"_a.noconvert(), "n_groups"_a, "width"_a, "thresholds"_a.noconvert(), Unlocked());
}

// Whether owing idle steps to the columns that a batch does not touch costs less than stepping them
// all. `rows` are the scalars of some steps. A table knows what it costs. In the first layer of a network a replayed step
// costs about eight times a vectorised one; for many units it is vectorised itself, and spares the way to memory.
bool owing_pays(const std::string& name, Input2d<double> rows, double touched_columns, int64_t n_columns,
                int64_t of_a_column, bool in_table) {
  const RuleKernels<double>& rule = find_rule<double>(name);
  const int64_t n_steps = rows.shape(0), width = rows.shape(1);
  require(n_steps > 0 && width >= rule.info.row_width, "rows: as many scalars as the rule wants");
  std::vector<double> sums[5], row(rows.data(), rows.data() + width);
  for (auto& sum : sums) sum.resize(n_steps + 1);
  const bool averaging = row[average_scalar] != 0;
  const bool steps_averages = averaging && !(in_table && rule.averages_in_table(row.data()));
  const bool closed = rule.running_sums(rows.data(), 0, n_steps, width, steps_averages, sums[0].data(),
                                        sums[1].data(), sums[2].data(), sums[3].data(), sums[4].data());
  double cost;
  if (in_table)
    cost = rule.cost_in_table(row.data(), closed, of_a_column);
  else if (of_a_column >= fills_vectors && !averaging)
    cost = 4.0;
  else
    cost = 8.0 * (1.0 + rule.debt_in_steps(row.data(), closed));
  return cost * std::max(touched_columns, 1.0) < double(n_columns);
}

bool rests(const std::string& name, Input2d<double> rows) {
  const RuleKernels<double>& rule = find_rule<double>(name);
  require(int64_t(rows.shape(1)) >= rule.info.row_width, "rows: as many scalars as the rule wants");
  for (size_t t = 0; t < rows.shape(0); ++t)
    if (!rule.rests(rows.data() + t * rows.shape(1))) return false;
  return true;
}

nb::dict describe_rules() {
  nb::dict rules;
  for (int i = 0; i < active.load()->double_->n_rules; ++i) {
    const RuleInfo& info = active.load()->double_->rules[i].info;
    nb::list slots, scalars;
    for (int j = 0; j < info.n_slots; ++j) slots.append(info.slots[j]);
    for (int j = 0; j < info.n_scalars; ++j) scalars.append(info.scalars[j]);
    nb::dict rule;
    rule["cpp_type"] = info.cpp_type;
    rule["slots"] = nb::tuple(slots);
    rule["scalars"] = nb::tuple(scalars);
    rule["uniform"] = info.uniform;
    rule["derived"] = info.derived;
    rules[info.name] = rule;
  }
  return rules;
}

nb::dict describe_activations() {
  nb::dict activations;
  for (int i = 0; i < active.load()->double_->n_activations; ++i) {
    nb::dict activation;
    activation["cpp_type"] = active.load()->double_->activations[i].cpp_type;
    activation["needs_input"] = active.load()->double_->activations[i].needs_input;
    activations[active.load()->double_->activations[i].name] = activation;
  }
  return activations;
}

}  // namespace
}  // namespace skoptim

NB_MODULE(_core, m) {
  using namespace skoptim;
  m.doc() = "Compiled kernels of skoptim.";
  bind<float>(m, "Float32");
  bind<double>(m, "Float64");
  m.def("shuffle",
        [](uint64_t seed, uint64_t epoch, Vector<int64_t> out) {
          require(out.shape(0) < (uint64_t(1) << 32), "out: fewer than 2**32 rows");
          baseline::shuffle(seed, epoch, out.shape(0), out.data());
        },
        "seed"_a, "epoch"_a, "out"_a.noconvert(), Unlocked());
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : isas) names.push_back(isa.name);
    return names;
  });
  m.def("current_isa", [] { return active.load()->name; });
  m.def("use_isa", &use_isa, "name"_a);
  m.def("owing_pays", &owing_pays, "rule"_a, "rows"_a, "touched_columns"_a, "n_columns"_a, "width"_a,
        "in_table"_a);
  m.def("rests", &rests, "rule"_a, "rows"_a);
  m.def("describe_rules", &describe_rules);
  m.def("describe_activations", &describe_activations);
}
