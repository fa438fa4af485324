// Passes of whole networks, and the steps that visit every parameter: of networks and linear models on dense
// data, and on CSR data where the columns that a batch does not touch would owe more than they save.
//
// Threads share the samples on the way up and down, and the coefficients for gradients and steps; BLAS is
// called by each of them and must not start threads of its own. Only glue lies here: what takes time is a
// kernel of the instruction set in use, or a product of BLAS.
#pragma once
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu_threads.hpp"
#include "kernels.hpp"

namespace skoptim {

// sgemm or dgemm, as Fortran has them.
template <class T>
using Gemm = void (*)(char*, char*, int*, int*, int*, T*, T*, int*, T*, int*, T*, T*, int*);

// Products of row-major matrices: by BLAS, unless they are so small or thin that plain loops are faster.
template <class T>
class Products {
 public:
  Products(const Kernels<T>& kernels, Gemm<T> gemm) : kernels_(kernels), gemm_(gemm) {}

  // out (n, m) = a (n, k) w (k, m)
  void multiply(const T* a, const T* w, int64_t n, int64_t k, int64_t m, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply(a, w, n, k, m, out);
    call('N', 'N', m, n, k, w, m, a, k, T(0), out, m);
  }
  // out (k, m) = a' d for k of the `width` columns of a (n, width) and d (n, m), added to what is there if so told.
  void gradient(const T* a, int64_t width, const T* d, int64_t n, int64_t k, int64_t m, bool adds, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply_left(a, width, d, n, k, m, adds, out);
    call('N', 'T', m, k, n, d, m, a, width, adds ? T(1) : T(0), out, m);
  }
  // out (n, k) = d w' for d (n, m), w (k, m)
  void back(const T* d, const T* w, int64_t n, int64_t k, int64_t m, T* out) const {
    if (is_thin(n, k, m)) return kernels_.multiply_right(d, w, n, k, m, out);
    call('T', 'N', k, n, m, w, m, d, m, T(0), out, k);
  }

 private:
  static bool is_thin(int64_t n, int64_t k, int64_t m) {
    constexpr int64_t worth_a_call = 1 << 12;
    return n <= 1 || m == 1 || n * k * m <= worth_a_call;
  }

  // In Fortran's order of memory a row-major matrix is its transpose.
  void call(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
            int64_t ldb, T beta, T* c, int64_t ldc) const {
    int sizes[] = {int(m), int(n), int(k), int(lda), int(ldb), int(ldc)};
    T alpha = T(1);
    gemm_(&trans_a, &trans_b, &sizes[0], &sizes[1], &sizes[2], &alpha, const_cast<T*>(a), &sizes[3],
          const_cast<T*>(b), &sizes[4], &beta, c, &sizes[5]);
  }

  const Kernels<T>& kernels_;
  const Gemm<T> gemm_;
};

// Some rows of a matrix: those listed, or n in a row from `first`.
template <class T>
struct Batch {
  const Matrix<T>& x;
  const int64_t* rows;
  int64_t first, n;

  bool is_sparse() const { return x.indices != nullptr; }
  // Rows that lie one after the other need not be copied; null for others.
  const T* in_place() const {
    if (is_sparse() || n == 0) return nullptr;
    for (int64_t i = 1; rows && i < n; ++i)
      if (rows[i] != rows[0] + i) return nullptr;
    return x.data + (rows ? rows[0] : first) * x.n_columns;
  }
};

// Where the parameters of each layer lie: coefficients (fan_in, fan_out), intercepts (fan_out).
template <class T>
struct Layers {
  std::vector<const T*> coefs, intercepts;

  Layers() = default;
  // In flat parameters: the coefficients of all layers, then all intercepts.
  Layers(const Architecture<T>& network, const T* flat) {
    const T* intercept = flat + network.n_coefficients();
    for (int64_t l = 0; l < network.n_layers(); ++l) {
      coefs.push_back(flat);
      intercepts.push_back(intercept);
      flat += network.layer_sizes[l] * network.layer_sizes[l + 1];
      intercept += network.layer_sizes[l + 1];
    }
  }
};

// What a network passes over samples for: steps drop units out.
enum class Purpose { scores, gradient, steps };

// A network while it passes over batches.
template <class T>
class Passes {
 public:
  Passes(const Architecture<T>& network, const Kernels<T>& kernels, Gemm<T> gemm, const Layers<T>& layers, int64_t capacity,
         Purpose purpose)
      : network_(network), kernels_(kernels), products_(kernels, gemm), layers_(layers),
        sizes_(network.layer_sizes), n_layers_(network.n_layers()), dropout_(purpose == Purpose::steps ? network.dropout : 0.0) {
    const bool backward = purpose != Purpose::scores;
    int64_t intercept = network.n_coefficients(), coef = 0;
    for (int64_t l = 0; l < n_layers_; ++l) {
      coefs_.push_back(coef);
      intercepts_.push_back(intercept);
      coef += sizes_[l] * sizes_[l + 1];
      intercept += sizes_[l + 1];
      const size_t size = capacity * sizes_[l + 1];
      const bool hidden = l + 1 < n_layers_;
      scores_.emplace_back(hidden || backward ? size : 0);
      deltas_.emplace_back(backward ? size : 0);
      outputs_.emplace_back(hidden && backward && network.activation->needs_input ? size : 0);
      dropped_.emplace_back(hidden && dropout_ > 0 ? size : 0);
    }
  }

  int64_t n_layers() const { return n_layers_; }
  int64_t coefs(int64_t l) const { return coefs_[l]; }
  int64_t intercepts(int64_t l) const { return intercepts_[l]; }
  T* scores() { return scores_.back().data(); }

  // Room for copies of `capacity` rows.
  void reserve_inputs(int64_t capacity) { inputs_.resize(capacity * sizes_[0]); }

  // Raw scores of a part of the batch, which go to `scores`. `step` tells dropout masks apart.
  void forward(const Batch<T>& batch, Part part, int64_t step, T* scores) {
    const int64_t first = part.first(batch.n), n = part.last(batch.n) - first;
    const T* below = batch.in_place();
    if (part.index == 0) lies_ = below;
    if (n == 0) return;
    const int64_t* const rows = batch.rows ? batch.rows + first : nullptr;
    if (below) {
      below += first * sizes_[0];
    } else if (!batch.is_sparse()) {
      kernels_.gather_rows(batch.x.data, sizes_[0], rows, n, inputs_.data() + first * sizes_[0]);
      below = inputs_.data() + first * sizes_[0];
    }
    for (int64_t l = 0; l < n_layers_; ++l) {
      const int64_t fan_in = sizes_[l], fan_out = sizes_[l + 1];
      const T* const w = layers_.coefs[l];
      const T* const bias = layers_.intercepts[l];
      const bool is_last = l + 1 == n_layers_;
      T* const z = (is_last ? scores : scores_[l].data()) + first * fan_out;
      if (l == 0 && batch.is_sparse())
        kernels_.csr_matmul(batch.x, rows, batch.first + first, n, w, fan_out, z);
      else
        products_.multiply(below, w, n, fan_in, fan_out, z);
      if (is_last) return kernels_.add_bias(z, bias, n, fan_out);
      T* const a = activated(l) + first * fan_out;
      network_.activation->forward(z, bias, a, n, fan_out);
      if (!dropped_[l].empty()) drop(a, l, first, n, step, dropped_[l].data() + first * fan_out);
      below = output(l) + first * fan_out;
    }
  }

  // Derivatives of `scale` times the loss by the scores of all layers, of a part of the batch; returns the sum
  // of its losses.
  double backward(const Task<T>& task, const Batch<T>& batch, Part part, int64_t step, T scale) {
    const int64_t first = part.first(batch.n), n = part.last(batch.n) - first;
    if (n == 0) return 0.0;
    const int64_t* const rows = batch.rows ? batch.rows + first : nullptr;
    const int64_t n_outputs = sizes_.back();
    T* delta = deltas_.back().data() + first * n_outputs;
    const double loss =
        task.loss->batch(scores_.back().data() + first * n_outputs, n, n_outputs, task.targets, rows,
                         batch.first + first, task.weights, task.loss_parameter, scale, delta);
    for (int64_t l = n_layers_ - 1; l > 0; --l) {
      const int64_t width = sizes_[l], begin = first * width;
      T* const below = deltas_[l - 1].data() + begin;
      products_.back(delta, layers_.coefs[l], n, width, sizes_[l + 1], below);
      if (!dropped_[l - 1].empty()) drop(below, l - 1, first, n, step, below);
      network_.activation->backward(scores_[l - 1].data() + begin, activated(l - 1) + begin, below, n * width);
      delta = below;
    }
    return loss;
  }

  // The gradient by the coefficients from..to (rows of the matrix) of layer l, after all parts went backward.
  void coef_gradient(const Batch<T>& batch, int64_t l, int64_t from, int64_t to, bool adds, T* gradient) {
    const int64_t fan_out = sizes_[l + 1];
    T* const g = gradient + coefs_[l] + from * fan_out;
    if (l == 0 && batch.is_sparse())
      return kernels_.csr_gradient(batch.x, batch.rows, batch.first, batch.n, deltas_[0].data(), fan_out, g);
    const T* const a = l > 0 ? output(l - 1) : lies_ ? lies_ : inputs_.data();
    products_.gradient(a + from, sizes_[l], deltas_[l].data(), batch.n, to - from, fan_out, adds, g);
  }

  // That by the intercepts of layer l.
  void intercept_gradient(const Batch<T>& batch, int64_t l, bool adds, T* gradient) {
    T* const g = gradient + intercepts_[l];
    kernels_.column_sums(deltas_[l].data(), batch.n, sizes_[l + 1], adds, g);
  }

 private:
  void drop(const T* a, int64_t l, int64_t first, int64_t n, int64_t step, T* out) const {
    const uint64_t stream = uint64_t(step) * uint64_t(n_layers_) + uint64_t(l);
    const int64_t width = sizes_[l + 1];
    kernels_.dropout(a, first * width, n * width, network_.seed, stream, dropout_, out);
  }

  // Activations lie where the scores were, unless these are needed on the way back.
  T* activated(int64_t l) { return outputs_[l].empty() ? scores_[l].data() : outputs_[l].data(); }
  T* output(int64_t l) { return dropped_[l].empty() ? activated(l) : dropped_[l].data(); }

  const Architecture<T>& network_;
  const Kernels<T>& kernels_;
  const Products<T> products_;
  const Layers<T> layers_;
  const std::vector<int64_t>& sizes_;
  const int64_t n_layers_;
  const double dropout_;
  std::vector<int64_t> coefs_, intercepts_;  // where those of a layer begin in a flat gradient
  std::vector<T> inputs_;
  const T* lies_ = nullptr;  // the inputs of the last batch that went forward, if they were not copied
  std::vector<std::vector<T>> scores_, outputs_, dropped_, deltas_;  // of each layer
};

// What n rows of X have in the mean.
template <class T>
int64_t stored_in(const Matrix<T>& x, int64_t n) {
  return int64_t(double(x.n_stored()) / double(std::max<int64_t>(x.n_rows, 1)) * double(n));
}

// Multiplications of a pass of n rows; those of a stored entry take as long as several others, and so does a loss.
template <class T>
int64_t multiplications(const Architecture<T>& network, const Matrix<T>& x, int64_t n) {
  const int64_t inputs = stored_in(x, n) * (x.indices ? 4 : 1) * network.layer_sizes[1];
  return inputs + 32 * n * network.layer_sizes.back() + n * (network.n_coefficients() - network.layer_sizes[0] * network.layer_sizes[1]);
}

// Passes over fewer multiplications take less time than calling another thread.
constexpr int64_t multiplications_worth_a_thread = 1 << 18;

template <class T>
int64_t team_size(const Architecture<T>& network, const Matrix<T>& x, int64_t n, int64_t n_threads) {
  return multiplications(network, x, n) < multiplications_worth_a_thread ? 1 : n_threads;
}

// Takes the steps of a task; returns the sum of the losses.
template <class T>
class Training {
 public:
  Training(const Task<T>& task, const Kernels<T>& kernels, Gemm<T> gemm, const RuleKernels<T>& rule,
           const Parameters<T>& parameters, int64_t n_threads)
      : task_(task), kernels_(kernels), rule_(rule), parameters_(parameters),
        passes_(task.network, kernels, gemm, {task.network, parameters.w}, task.batch_size, Purpose::steps),
        gradient_(task.network.n_parameters()),
        // The gradient of a first layer on CSR data is scattered: one thread makes it.
        team_(task.x.indices ? 1 : team_size(task.network, task.x, task.batch_size, n_threads)),
        sums_(team_.n_members()) {
    if (!task.x.indices) passes_.reserve_inputs(task.batch_size);
  }

  double run() {
    double loss = 0;
    RowReader<T> rows(task_.scalars);
    for (int64_t step = 0, begin = 0; step < task_.scalars.n_steps; ++step, begin += task_.batch_size) {
      const Batch<T> batch{task_.x, task_.order + begin, 0, std::min(task_.batch_size, task_.n_samples - begin)};
      loss += take_step(batch, task_.first_step + step, rows(step));
    }
    return loss;
  }

 private:
  double take_step(const Batch<T>& batch, int64_t step, const T* scalars) {
    team_.run([&](Part part) {
      passes_.forward(batch, part, step, passes_.scores());
      sums_[part.index] = passes_.backward(task_, batch, part, step, T(1) / T(batch.n));
    });
    const double loss = total();
    const bool clips = task_.clip_norm < std::numeric_limits<double>::infinity();
    team_.run([&](Part part) {
      double squared_norm = 0;
      each_range(part, [&](int64_t l, int64_t from, int64_t to) {
        passes_.coef_gradient(batch, l, from, to, false, gradient_.data());
        if (!clips) return apply_coefs(l, from, to, scalars);
        const int64_t first = passes_.coefs(l), fan_out = fan_out_of(l);
        const T* const g = gradient_.data() + first + from * fan_out;
        squared_norm += kernels_.dot(g, g, (to - from) * fan_out);
      });
      if (part.is_last() && !task_.fit_intercept) average_intercepts(scalars);
      if (part.is_last() && task_.fit_intercept) {
        for (int64_t l = 0; l < passes_.n_layers(); ++l)
          passes_.intercept_gradient(batch, l, false, gradient_.data());
        const int64_t first = passes_.intercepts(0);
        if (!clips) return apply_intercepts(scalars);
        const T* const g = gradient_.data() + first;
        squared_norm += kernels_.dot(g, g, int64_t(gradient_.size()) - first);
      }
      sums_[part.index] = squared_norm;
    });
    if (clips) {
      const double norm = std::sqrt(total());
      const T factor = T(norm > task_.clip_norm ? task_.clip_norm / norm : 1.0);
      if (factor != T(1))
        for (T& g : gradient_) g *= factor;
      team_.run([&](Part part) {
        each_range(part, [&](int64_t l, int64_t from, int64_t to) { apply_coefs(l, from, to, scalars); });
        if (part.is_last() && task_.fit_intercept) apply_intercepts(scalars);
      });
    }
    if (batch.is_sparse())  // Only the touched columns are not zero already.
      kernels_.csr_clear(task_.x, batch.rows, 0, batch.n, fan_out_of(0), gradient_.data());
    return loss;
  }

  int64_t fan_out_of(int64_t l) const { return task_.network.layer_sizes[l + 1]; }

  // Calls visit(layer, from, to) with the rows of the coefficients that are this part's.
  template <class Visit>
  void each_range(Part part, Visit visit) {
    for (int64_t l = 0; l < passes_.n_layers(); ++l) {
      const int64_t fan_in = task_.network.layer_sizes[l];
      const int64_t from = part.first(fan_in), to = part.last(fan_in);
      if (from < to) visit(l, from, to);
    }
  }

  void apply_coefs(int64_t l, int64_t from, int64_t to, const T* scalars) {
    const int64_t begin = passes_.coefs(l) + from * fan_out_of(l), end = passes_.coefs(l) + to * fan_out_of(l);
    rule_.apply(parameters_, gradient_.data() + begin, begin, end, scalars, true, l == 0 ? fan_out_of(0) : 0);
  }

  void apply_intercepts(const T* scalars) {
    const int64_t begin = passes_.intercepts(0);
    rule_.apply(parameters_, gradient_.data() + begin, begin, int64_t(gradient_.size()), scalars, false, 0);
  }

  // Those that are not fitted stay where they are, in the averaged model too.
  void average_intercepts(const T* scalars) {
    if (!parameters_.average) return;
    for (size_t i = passes_.intercepts(0); i < gradient_.size(); ++i)
      parameters_.average[i] += double(scalars[average_scalar]) * parameters_.w[i];
  }

  double total() const {
    double sum = 0;
    for (const double part : sums_) sum += part;
    return sum;
  }

  const Task<T>& task_;
  const Kernels<T>& kernels_;
  const RuleKernels<T>& rule_;
  const Parameters<T>& parameters_;
  Passes<T> passes_;
  std::vector<T> gradient_;
  Team team_;
  std::vector<double> sums_;  // one for each member of the team
};

// Rows that pass through a network together, for each thread: their inputs stay in the second level of a usual
// cache.
template <class T>
int64_t chunk_rows(const Architecture<T>& network, bool is_sparse) {
  constexpr int64_t numbers = (1 << 19) / sizeof(T);
  int64_t widest = 1;
  for (size_t l = is_sparse; l < network.layer_sizes.size(); ++l) widest = std::max(widest, network.layer_sizes[l]);
  return std::max<int64_t>(64, numbers / widest);
}

// Raw scores of n rows, (n, n_outputs).
template <class T>
void network_scores(const Architecture<T>& network, const Kernels<T>& kernels, Gemm<T> gemm, const Layers<T>& layers,
                    const Batch<T>& all, int64_t n_threads, T* out) {
  Team team(team_size(network, all.x, all.n, n_threads));
  const int64_t chunk = std::min(all.n, team.n_members() * chunk_rows(network, all.is_sparse()));
  Passes<T> passes(network, kernels, gemm, layers, chunk, Purpose::scores);
  if (!all.in_place() && !all.is_sparse()) passes.reserve_inputs(chunk);
  for (int64_t begin = 0; begin < all.n; begin += chunk) {
    const Batch<T> batch{all.x, all.rows ? all.rows + begin : nullptr, all.first + begin, std::min(chunk, all.n - begin)};
    team.run([&](Part part) { passes.forward(batch, part, 0, out + begin * network.layer_sizes.back()); });
  }
}

// The same on CSR data, whose gradient is scattered over all columns: each member of the team goes through rows of its
// own, into a gradient of its own. It takes so few at a time that they are still in its cache on the way back.
template <class T>
double sparse_full_gradient(const Task<T>& task, const Kernels<T>& kernels, Gemm<T> gemm, const T* parameters,
                            const Batch<T>& all, int64_t n_threads, T* gradient) {
  const Architecture<T>& network = task.network;
  const int64_t size = network.n_parameters();
  // Another gradient is made zero, and added, once; they must not take much memory beside the parameters.
  constexpr int64_t most_bytes = 1 << 26;
  const int64_t worth = 1 + multiplications(network, all.x, all.n) / (4 * size);
  const int64_t room = 1 + most_bytes / (size * int64_t(sizeof(T)));
  Team team(std::min({worth, room, team_size(network, all.x, all.n, n_threads)}));
  constexpr int64_t entries = 1 << 14;
  const int64_t of_a_row = std::max<int64_t>(stored_in(all.x, 1), 1);
  const int64_t chunk = std::min(all.n, std::min(chunk_rows(network, true), std::max<int64_t>(entries / of_a_row, 64)));
  const std::unique_ptr<T[]> others(new T[(team.n_members() - 1) * size]);
  std::vector<double> losses(team.n_members());
  team.run([&](Part part) {
    T* const own = part.index == 0 ? gradient : others.get() + (part.index - 1) * size;
    std::fill_n(own, size, T(0));
    Passes<T> passes(network, kernels, gemm, {network, parameters}, chunk, Purpose::gradient);
    const int64_t last = part.last(all.n);
    for (int64_t begin = part.first(all.n); begin < last; begin += chunk) {
      const Batch<T> batch{all.x, all.rows ? all.rows + begin : nullptr, all.first + begin, std::min(chunk, last - begin)};
      passes.forward(batch, {0, 1}, 0, passes.scores());
      losses[part.index] += passes.backward(task, batch, {0, 1}, 0, T(1) / T(all.n));
      for (int64_t l = 0; l < passes.n_layers(); ++l) {
        passes.coef_gradient(batch, l, 0, network.layer_sizes[l], true, own);
        if (task.fit_intercept) passes.intercept_gradient(batch, l, true, own);
      }
    }
  });
  team.run([&](Part part) {
    for (int64_t other = 1; other < part.count; ++other) {
      const T* const from = others.get() + (other - 1) * size;
      for (int64_t i = part.first(size); i < part.last(size); ++i) gradient[i] += from[i];
    }
  });
  double loss = 0;
  for (const double part : losses) loss += part;
  return loss;
}

// The sum of the losses of n rows; leaves the gradient of the mean loss.
template <class T>
double full_gradient(const Task<T>& task, const Kernels<T>& kernels, Gemm<T> gemm, const T* parameters,
                     const Batch<T>& all, int64_t n_threads, T* gradient) {
  if (all.is_sparse()) return sparse_full_gradient(task, kernels, gemm, parameters, all, n_threads, gradient);
  const Architecture<T>& network = task.network;
  Team team(team_size(network, all.x, all.n, n_threads));
  const int64_t chunk = std::min(all.n, team.n_members() * chunk_rows(network, false));
  Passes<T> passes(network, kernels, gemm, {network, parameters}, chunk, Purpose::gradient);
  if (!all.in_place()) passes.reserve_inputs(chunk);
  std::fill_n(gradient, network.n_parameters(), T(0));
  std::vector<double> losses(team.n_members());
  for (int64_t begin = 0; begin < all.n; begin += chunk) {
    const Batch<T> batch{all.x, all.rows ? all.rows + begin : nullptr, all.first + begin, std::min(chunk, all.n - begin)};
    team.run([&](Part part) {
      passes.forward(batch, part, 0, passes.scores());
      losses[part.index] += passes.backward(task, batch, part, 0, T(1) / T(all.n));
    });
    team.run([&](Part part) {
      for (int64_t l = 0; l < passes.n_layers(); ++l) {
        const int64_t fan_in = network.layer_sizes[l];
        if (part.first(fan_in) < part.last(fan_in))
          passes.coef_gradient(batch, l, part.first(fan_in), part.last(fan_in), true, gradient);
        if (part.is_last() && task.fit_intercept) passes.intercept_gradient(batch, l, true, gradient);
      }
    });
  }
  double loss = 0;
  for (const double part : losses) loss += part;
  return loss;
}

}  // namespace skoptim
