// A linear model while it is trained on CSR data: the weights and the state of a column lie together
// in memory, columns that a batch does not touch are not visited, and the steps that these miss are
// owed. One call trains a block of steps.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu_batch.hpp"
#include "cpu_memory.hpp"
#include "cpu_network.hpp"
#include "cpu_owing.hpp"
#include "cpu_rows.hpp"
#include "cpu_runs.hpp"
#include "cpu_undo.hpp"
#include "cpu_units.hpp"
#include "cpu_wide_rows.hpp"

SKOPTIM_BEGIN

// Reads one step's scalars after the other; those of a step stay as they are until the next but one.
template <class Rule, class T>
class ScalarReader {
 public:
  using Row = Scalars<Rule, T>;
  static_assert(sizeof(Row) == (n_common + Rule::n_scalars + 1) * sizeof(T), "a row, member by member");

  explicit ScalarReader(const ScalarBlock<T>& block) : block_(block), rows_{Row(block.row), Row(block.row)} {}
  const Row& operator()(int64_t step) {
    char* const row = reinterpret_cast<char*>(&rows_[step % 2]);
    for (int64_t j = 0; j < block_.n_varying; ++j)
      std::memcpy(row + block_.varying[j] * sizeof(T), block_.values + step * block_.n_varying + j, sizeof(T));
    return rows_[step % 2];
  }

 private:
  const ScalarBlock<T> block_;
  Row rows_[2];
};

// Columns taken out of the table: copied side by side, to fill vectors, in memory that is reused.
template <class T>
struct Columns {
  std::vector<int64_t> number;                          // which columns
  std::vector<T> w, slots[max_slots], unit, gradients;  // (columns, width), as all that follows
  std::vector<double> mark, average;

  void reserve(int64_t n, int64_t width, int n_slots, bool has_units, bool has_marks, bool averaging) {
    n = std::max(n, int64_t(number.size()));
    // Another way of owing may need marks later.
    if (has_marks && int64_t(mark.size()) < n * width) mark.resize(n * width);
    if (int64_t(number.size()) == n) return;
    for (auto* values : {&w, &gradients}) values->resize(n * width);
    if (has_units) unit.resize(n * width);
    for (int j = 0; j < n_slots; ++j) slots[j].resize(n * width);
    if (averaging) average.resize(n * width);
    number.resize(n);  // The last: its size tells that all have theirs.
  }
  std::array<T*, 1 + max_slots> runs() { return {w.data(), slots[0].data(), slots[1].data(), slots[2].data()}; }
  Run<T> run(bool has_units) {
    return {w.data(), {slots[0].data(), slots[1].data(), slots[2].data()}, has_units ? unit.data() : nullptr};
  }
};

template <class Rule, class T>
class RuleTable final : public LinearTable<T> {
  using Driver = RuleDriver<Rule, T>;
  using Row = Scalars<Rule, T>;
  using Paths = AveragedPaths<Rule, T>;
  static constexpr int n_slots = Rule::n_slots;
  // The scalars of owed steps take no more memory than this.
  static constexpr int64_t record_bytes = 16 << 20;
  // Scaled weights are brought back to their size once the product of all factors is below this.
  static constexpr double smallest_decay = sizeof(T) == 4 ? 1e-20 : 1e-150;
  // Workers, one of which may be ahead of another by all of their steps, read each other's scaled weights: these must be
  // about the same.
  static constexpr double smallest_shared_decay = 0.5;
  // What L1 takes from a weight is the difference of two sums over steps, whose rounding grows with them: at some part of
  // a usual weight they begin anew.
  static constexpr double largest_threshold = 1.0 / 16;
  // A table beyond this is not found in the second level of a usual cache.
  static constexpr int64_t cache_bytes = 1 << 20;
  // Whether what the columns of a row owe by the record is paid as their vectors are filled. (Adam and its kin, and SGD
  // with a momentum in float64, are faster with all columns of the row filled before.)
  static constexpr bool may_pay_in_vectors = std::is_same_v<Rule, Adagrad>;
  // Columns that are taken out together when all are visited.
  static constexpr int64_t chunk = 512;

 public:
  RuleTable(int64_t n_columns, int64_t width, bool has_units, bool averaging, int64_t row_width)
      : n_columns_(n_columns), width_(width), row_width_(row_width), has_units_(has_units),
        averaging_(averaging) {}

  void load(const T* w, const T* const* slots, const double* average, const T* unit,
            const T* last_row) override {
    keep_row(Row(last_row));
    load(w, slots, average, unit, owing_for({last_row, nullptr, nullptr, 1, 0, row_width_}));
  }

  void load(const T* w, const T* const* slots, const double* average, const T* unit, Owing owing) {
    lay_out(owing);
    units_.forget();
    for (int64_t c = 0; c < n_columns_; ++c) {
      T* const record = at(c);
      const int64_t i = c * width_;
      if (stores_weight()) std::copy_n(w + i, width_, record);
      for (int j = 0; j < n_slots; ++j)
        std::copy_n(slots[j] + i, width_, record + (int(stores_weight()) + j) * width_);
      if (averaging_) std::memcpy(record + layout_.average, average + i, width_ * sizeof(double));
      if (has_units_) record[layout_.unit] = unit[c];
      if (has_units_) largest_unit_ = larger(largest_unit_, effective(unit[c]));
    }
    start_account();
    const int64_t n = n_columns_ * width_;
    rest_.intercept.assign(w + n, w + n + width_);
    for (int j = 0; j < n_slots; ++j) rest_.slots[j].assign(slots[j] + n, slots[j] + n + width_);
    if (averaging_) rest_.average.assign(average + n, average + n + width_);
  }

  void store(T* w, T* const* slots, double* average, T* unit, bool last) override {
    settle();
    visit_all([&](int64_t first, int64_t n) {
      if (w) std::copy_n(taken_.w.data(), n * width_, w + first * width_);
      for (int j = 0; j < n_slots; ++j)
        if (slots[j]) std::copy_n(taken_.slots[j].data(), n * width_, slots[j] + first * width_);
      for (int64_t c = first; c < first + n; ++c) {
        if (average) std::memcpy(average + c * width_, at(c) + layout_.average, width_ * sizeof(double));
        if (unit) unit[c] = at(c)[layout_.unit];
      }
      if (last) records_.discard((first + n) * layout_.size);
    });
    const int64_t n = n_columns_ * width_;
    if (w) std::copy_n(rest_.intercept.data(), width_, w + n);
    for (int j = 0; j < n_slots; ++j)
      if (slots[j]) std::copy_n(rest_.slots[j].data(), width_, slots[j] + n);
    if (average) std::copy_n(rest_.average.data(), width_, average + n);
  }

  void settle() override {
    const bool owes_average = keeps_paths() && !paths_.is_empty();
    if (layout_.owing == Owing::derived && !owes_average) return;
    if (layout_.owing == Owing::recorded && now_ == 0) return;
    keep_account();
    visit_all([&](int64_t, int64_t n) { put(n, 0.0); });
    start_account();
  }

  PenaltySums penalty_sums() override {
    // Paying other debts would save the next steps nothing.
    const bool settles = layout_.owing == Owing::recorded && now_ > 0;
    if (settles) keep_account();
    PenaltySums sums{0, 0, 0, true};
    visit_all([&](int64_t, int64_t n) {
      if (settles) put(n, 0.0);
      const T* const w = taken_.w.data();
      sums.absolute += lane_sum<double>(n * width_, [=](int64_t i) SKOPTIM_INLINE { return absolute(double(w[i])); });
      sums.squares += lane_dot<double>(w, w, n * width_);
      if (width_ == 1) return;
      for (int64_t c = 0; c < n; ++c) sums.norms += math::sqrt(dot(w + c * width_, w + c * width_, width_));
    });
    if (settles) start_account();
    if (width_ == 1) sums.norms = sums.absolute;
    sums.finite = std::isfinite(sums.squares);
    for (const T w : rest_.intercept) sums.finite = sums.finite && std::isfinite(w);
    return sums;
  }

  double train(const Task<T>& task) override {
    begin_block(task);
    return train_own(task);
  }

  bool share(const Task<T>& task, int64_t n_workers) override {
    if (averaging_ || n_workers < 2) return false;
    workers_.clear();
    begin_block(task);
    // Workers keep nothing.
    visit_entries(task.x, task.order, 0, task.n_samples, [&](int64_t, int64_t column, T) { keep_columns(&column, 1); });
    if (scales(layout_.owing)) {
      // No worker can bring all weights back to their size while others train.
      const double decay = decay_of(task.scalars);
      if (decay < smallest_shared_decay) return false;
      if (rest_.decay * decay < smallest_decay) settle();
    }
    for (int64_t i = 0; i < n_workers; ++i) {
      workers_.emplace_back(new RuleTable(*this, i, n_workers));
      workers_.back()->reserve(task);
    }
    return true;
  }

  double train_share(const Task<T>& task, int64_t worker) override { return workers_[worker]->train_own(task); }

  void join() override {
    const RuleTable& worker = *workers_.front();
    rest_.decay = worker.rest_.decay;
    rest_.threshold = worker.rest_.threshold;
    now_ = worker.now_;
    keep_row(*worker.in_force_);
    workers_.clear();
  }

  bool finite() override {
    // Nought times a number is nought if the number is finite.
    const auto is_finite = [](const T* x, int64_t n) SKOPTIM_INLINE {
      return lane_sum<T>(n, [=](int64_t i) SKOPTIM_INLINE { return x[i] * T(0); }) == T(0);
    };
    bool finite = is_finite(rest_.intercept.data(), width_);
    const int64_t n = layout_.unit;
    const bool only_some = kept_.records.visit_changed(records_.data(), [&](const T* record) {
      for (int64_t i = 0; i < n; ++i) finite &= std::isfinite(record[i]);
    });
    if (only_some) return finite;
    if (n == layout_.size) return finite && is_finite(records_.data(), n_columns_ * n);
    for (int64_t column = 0; column < n_columns_; ++column)
      for (int64_t i = 0; i < n; ++i) finite &= std::isfinite(at(column)[i]);
    return finite;
  }

  double observe(const Matrix<T>& x, const int64_t* rows, int64_t first, int64_t n) override {
    if constexpr (Rule::contains_penalty) {
      if (!has_units_) return 0.0;
      if (layout_.owing == Owing::recorded) settle();
      if (units_.is_empty()) {
        units_.resize(n_columns_);
        for (int64_t c = 0; c < n_columns_; ++c) read_unit(c);
      }
      units_.observe(x, rows, first, n);
      learn_units(units_.changed(), units_.n_changed());
      return mean_squared_norm(x, rows, first, n, units_.data());
    }
    return 0.0;
  }

  void keep() override {
    kept_.records.begin(n_columns_, layout_.size);
    kept_.rest = rest_;
    kept_.layout = layout_;
    kept_.now = now_;
    kept_.sums = paths_.sums();
  }

  void undo() override {
    kept_.records.put_back(records_);
    if (kept_.account) {
      record_ = std::move(kept_.record);
      paths_ = std::move(kept_.paths);
    }
    rest_ = kept_.rest;
    layout_ = kept_.layout;
    now_ = kept_.now;
    in_force_ = &rest_.row;
    if (!units_.is_empty())
      for (int64_t j = 0; j < units_.n_changed(); ++j) read_unit(units_.changed()[j]);
    record_.truncate(now_);
    paths_.go_back(kept_.sums);
    forget();
  }

  void forget() override {
    kept_.records.end();
    kept_.record = Record<Rule, T>();
    kept_.paths = Paths();
    kept_.account = false;
  }

 private:
  // A worker on the columns and intercepts of another table, with an account of its own.
  RuleTable(RuleTable& owner, int64_t first_step, int64_t stride)
      : n_columns_(owner.n_columns_), width_(owner.width_), row_width_(owner.row_width_), has_units_(owner.has_units_),
        averaging_(false), layout_(owner.layout_), records_(owner.records_.borrow()),
        outgrows_cache_(owner.outgrows_cache_), now_(owner.now_), shared_(&owner.rest_), steps_(owner.steps_),
        first_step_(first_step), stride_(stride) {
    rest_.decay = owner.rest_.decay;
    rest_.threshold = owner.rest_.threshold;
    keep_row(*owner.in_force_);
  }

  void begin_block(const Task<T>& task) {
    change_owing(task);
    if (layout_.owing == Owing::thresholded && rest_.threshold * rest_.decay > largest_threshold) settle();
    const int64_t n_entries = task.x.n_stored() / std::max<int64_t>(task.x.n_rows, 1) * task.n_samples;
    if (KeptRecords<T>::prefers_all(n_entries, records_)) kept_.records.keep_all(records_);
    if (layout_.owing != Owing::recorded) return;
    if (record_.bytes() > record_bytes) settle();
    record_.append(task.scalars, averaging_);
  }

  // (Not inlined: `train` and `train_share` have one copy.)
  [[gnu::noinline]] double train_own(const Task<T>& task) {
    reserve(task);
    double loss = 0;
    choose([&](auto single, auto owing) { loss = train_steps<single(), owing()>(task); });
    return loss;
  }

  // The factor by which a block of steps without gradients multiplies weights.
  double decay_of(const ScalarBlock<T>& block) const {
    double decay = 1.0;
    if constexpr (std::is_same_v<Rule, SGD>) {
      ScalarReader<Rule, T> rows(block);
      for (int64_t t = 0; t < block.n_steps; ++t) {
        const Row& row = rows(t);
        decay *= Idle<SGD>::one_step(row.common, row.own).factor;
      }
    }
    return decay;
  }

  // Where in a record what lies, and how steps are owed. A record is: w (unless derived) and the slots,
  // each a run of `width`; the unit of the column; its mark; the sums of its averaged weights.
  struct Layout {
    Owing owing = Owing::recorded;
    int64_t size = 0, unit = 0, mark = 0, average = 0;
  };

  // Everything beside the records.
  struct Rest {
    std::vector<T> intercept, slots[max_slots];
    std::vector<double> average;
    Row row;  // the scalars of the last step taken
    double decay = 1.0, threshold = 0.0;
  };

  // What was there before a block; the account, if it was begun anew since.
  struct Kept {
    KeptRecords<T> records;
    bool account = false;
    Record<Rule, T> record;
    Paths paths;
    typename Paths::Sums sums;
    Rest rest;
    Layout layout;
    int64_t now = 0;
  };

  // Rows whose losses are to be summed, and their scores.
  struct Later {
    static constexpr int room = 32;
    int64_t n = 0, rows[room];
    T scores[room * fills_vectors];
  };

  T* at(int64_t column) { return records_.data() + column * layout_.size; }
  const T* at(int64_t column) const { return records_.data() + column * layout_.size; }
  bool is_worker() const { return shared_ != &rest_; }
  bool stores_weight() const { return stores_weights(layout_.owing); }

  // Whether averages, if there are any, are kept as `AveragedPaths` does.
  static constexpr bool has_paths(Owing owing) { return Paths::holds && owing != Owing::recorded; }
  bool keeps_paths() const { return averaging_ && has_paths(layout_.owing); }

  // Adds `times` what they hold of the columns taken out, as these lie in the table.
  void add_paths(double times, int64_t n, Marks marks) {
    if constexpr (Paths::holds)
      if (averaging_ && !paths_.is_empty())
        paths_.add(times, taken_.run(has_units_), n * width_, marks, taken_.average.data());
  }

  void lay_out(Owing owing) {
    constexpr int64_t of_double = sizeof(double) / sizeof(T);
    keep_account();
    layout_.owing = owing;
    layout_.unit = (int(stores_weight()) + n_slots) * width_;
    layout_.mark = layout_.unit + has_units_;
    layout_.average = layout_.mark + (has_marks(owing) ? of_double : 0);
    layout_.size = layout_.average + (averaging_ ? of_double * width_ : 0);
    records_ = Memory<T>(n_columns_ * layout_.size + KeptRecords<T>::at_once);
    outgrows_cache_ = n_columns_ * layout_.size * int64_t(sizeof(T)) > cache_bytes;
  }

  // Copies the scalars in force, which `train_steps` holds.
  void keep_row(const Row& row) {
    rest_.row = row;
    in_force_ = &rest_.row;
  }

  // All marks are zero from here on.
  void start_account() {
    rest_.decay = 1.0;
    rest_.threshold = 0.0;
    record_.truncate(0);
    now_ = 0;
    paths_.begin(largest_unit_);
  }

  // The cheapest way in which these steps can be owed.
  Owing owing_for(const ScalarBlock<T>& block) const {
    Owing owing = Owing::derived;
    ScalarReader<Rule, T> rows(block);
    for (int64_t t = 0; t < (block.n_varying ? block.n_steps : 1); ++t)
      owing = std::max(owing, cheapest_owing<Rule>(rows(t), averaging_));
    return owing;
  }

  // Lays the table out anew where a block needs another way of owing.
  void change_owing(const Task<T>& task) {
    if (layout_.owing == Owing::recorded) return;
    const Owing needed = owing_for(task.scalars);
    if (needed <= layout_.owing) return;
    keep_account();
    const int64_t size = n_columns_ * width_ + width_;
    std::vector<T> values[1 + max_slots], unit(has_units_ ? n_columns_ : 0);
    std::vector<double> average(averaging_ ? size : 0);
    for (int j = 0; j <= n_slots; ++j) values[j].resize(size);
    T* slots[max_slots] = {values[1].data(), values[2].data(), values[3].data()};
    T* const units = has_units_ ? unit.data() : nullptr;
    double* const averages = averaging_ ? average.data() : nullptr;
    store(values[0].data(), slots, averages, units, true);
    load(values[0].data(), slots, averages, units, needed);
  }

  // Taking columns out, with their weights paid up to now, and putting them back. Of tables that scale,
  // weights come and go as they are stored.

  void take(int64_t n) {
    choose([&](auto single, auto owing) { take<single(), owing()>(n); });
  }

  template <bool single, Owing owing>
  void take(int64_t n) {
    constexpr bool stored = stores_weights(owing);
    const int64_t width = single ? 1 : width_;
    const int64_t* const number = taken_.number.data();
    const T* const records = records_.data();
    copy_out<stored + n_slots>(records, layout_.size, number, n, width, taken_.runs().data() + !stored);
    if (has_marks(owing))
      spread<mark_at<T>>(records + layout_.mark, layout_.size, number, n, width, taken_.mark.data());
    if (has_units_)
      spread<unit_at<T>>(records + layout_.unit, layout_.size, number, n, width, taken_.unit.data());
    if (averaging_)
      for (int64_t e = 0; e < n; ++e)
        std::memcpy(&taken_.average[e * width], at(number[e]) + layout_.average, width * sizeof(double));
    if constexpr (has_paths(owing)) add_paths(1.0, n, {has_marks(owing) ? taken_.mark.data() : nullptr});
    pay_taken<owing>(n);
  }

  void put(int64_t n, double mark) {
    choose([&](auto single, auto owing) { put<single(), owing()>(n, mark); });
  }

  template <bool single, Owing owing>
  void put(int64_t n, double mark) {
    constexpr bool stored = stores_weights(owing);
    const int64_t width = single ? 1 : width_;
    const int64_t* const number = taken_.number.data();
    copy_back<stored + n_slots>(taken_.runs().data() + !stored, n, width, records_.data(), layout_.size, number);
    if (has_marks(owing))
      for (int64_t e = 0; e < n; ++e) set_mark(at(number[e]) + layout_.mark, mark, is_worker());
    if (averaging_)
      for (int64_t e = 0; e < n; ++e)
        std::memcpy(at(number[e]) + layout_.average, &taken_.average[e * width], width * sizeof(double));
  }

  // Calls visit with whether there is one output, and with the way of owing, known when compiling.
  template <class Visit>
  void choose(Visit visit) {
    width_ == 1 ? choose(visit, std::true_type{}) : choose(visit, std::false_type{});
  }
  template <class Visit, class Single>
  void choose(Visit visit, Single single) {
    if constexpr (Rule::contains_penalty)
      if (layout_.owing == Owing::derived)
        return visit(single, std::integral_constant<Owing, Owing::derived>{});
    if constexpr (std::is_same_v<Rule, SGD>) {
      if (layout_.owing == Owing::scaled)
        return visit(single, std::integral_constant<Owing, Owing::scaled>{});
      if (layout_.owing == Owing::thresholded)
        return visit(single, std::integral_constant<Owing, Owing::thresholded>{});
    }
    visit(single, std::integral_constant<Owing, Owing::recorded>{});
  }

  template <Owing owing>
  void pay_taken(int64_t n) {
    const Run<T> run = taken_.run(has_units_);
    if (owing == Owing::derived) return Driver::derive_run(run, n * width_, *in_force_);
    if (owing == Owing::scaled) return;
    if (owing == Owing::thresholded) return threshold(n * width_);
    const OwnDebts<Rule, T> debts(*steps_, now_);
    if (!debts.are_any()) return;
    // With many coefficients in a column, its debt is the same for them all, and they fill vectors.
    if (width_ < fills_vectors && debts.have_form()) {
      left_.resize(std::max<size_t>(left_.size(), n * width_));
      return debts.pay(run, taken_.mark.data(), n * width_, left_.data());
    }
    const Steps<T> steps = steps_->steps();
    for (int64_t i = 0; i < n * width_; i += width_) {
      const int64_t from = int64_t(taken_.mark[i]);
      if (from < now_)
        Driver::pay_run(run.from(i), has_units_ ? taken_.unit[i] : T(1),
                        averaging_ ? &taken_.average[i] : nullptr, width_, steps, from, now_);
    }
  }

  void threshold(int64_t n) {
    const double threshold = rest_.threshold;
    const double* const mark = taken_.mark.data();
    T* const w = taken_.w.data();
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) w[i] = soft_threshold(w[i], owed_amount<T>(threshold, mark[i]));
  }

  // Calls visit(first, n) with all columns taken out, some at a time.
  template <class Visit>
  void visit_all(Visit visit) {
    taken_.reserve(chunk, width_, n_slots, has_units_, has_marks(layout_.owing), averaging_);
    for (int64_t first = 0; first < n_columns_; first += chunk) {
      const int64_t n = std::min(chunk, n_columns_ - first);
      std::iota(taken_.number.begin(), taken_.number.begin() + n, first);
      take(n);
      if (scales(layout_.owing))
        for (int64_t i = 0; i < n * width_; ++i) taken_.w[i] *= T(rest_.decay);
      visit(first, n);
    }
  }

  // Training.

  void reserve(const Task<T>& task) {
    const int64_t touched = std::min(task.longest_row * task.batch_size, task.x.n_stored());
    later_.n = 0;
    if (width_ == 1) vectors_.resize(std::max(int64_t(vectors_.size()), task.longest_row / lanes<T> + 1));
    taken_.reserve(std::min(n_columns_, touched), width_, n_slots, has_units_, has_marks(layout_.owing), averaging_);
    sums_.resize(width_ + lanes<T>);  // (Parts of outputs may share some.)
    for (auto* values : {&scores_, &derivatives_})
      values->resize(std::max(task.batch_size * width_, fills_vectors));
    bias_gradient_.resize(width_);
    if (task.batch_size > 1) batch_.reserve(task.x, task.batch_size, touched);
  }

  template <bool single, Owing owing>
  double train_steps(const Task<T>& task) {
    double loss = 0;
    if constexpr (owing == Owing::recorded && may_pay_in_vectors)
      pays_in_vectors_ = OwnDebts<Rule, T>(*steps_, now_).have_form();
    ScalarReader<Rule, T> rows(task.scalars);
    int64_t own = first_step_;
    for (int64_t step = 0; step < task.scalars.n_steps; ++step) {
      const Row& row = rows(step);
      if (step != own) {
        count_step<owing>(row, 0);  // Another worker takes it.
        continue;
      }
      own += stride_;
      if (rest_.decay < smallest_decay && !is_worker()) settle();
      if constexpr (has_paths(owing))
        if (averaging_ && !paths_.suits(row, rest_.decay, largest_unit_)) settle();
      const int64_t begin = step * task.batch_size, n = std::min(task.batch_size, task.n_samples - begin);
      loss += task.batch_size == 1 ? train_row<single, owing>(task, begin, row)
                                   : train_batch<single, owing>(task, begin, n, row);
      if constexpr (has_paths(owing))
        if (averaging_) paths_.count(row, rest_.decay, rest_.threshold);
    }
    keep_row(*in_force_);
    return loss + losses_left(task);
  }

  // A batch of one row: its columns are all different, and its values are their inputs.
  template <bool single, Owing owing>
  double train_row(const Task<T>& task, int64_t place, const Row& now) {
    prefetch(task, place, stride_);
    const bool in_place = !single && trains_in_place<owing>(task, now);
    if (outgrows_cache_ && !in_place) prefetch_records(task, place);
    if constexpr (single && (owing != Owing::recorded || may_pay_in_vectors))
      if (is_plain(task, now) && (owing != Owing::recorded || pays_in_vectors_))
        return train_in_vectors<owing>(task, place, now);
    const T* x;
    const int64_t n = read_row(task.x, task.order[place], taken_.number.data(), &x);
    keep_columns(taken_.number.data(), n);
    if (in_place) {
      if constexpr (owing == Owing::recorded)
        return train_recorded_in_place(task, place, x, n, now);
      else
        return with_parts<owing>([&](auto columns, const auto& parts) SKOPTIM_INLINE {
          return train_in_parts<owing>(columns, parts, task, place, x, n, now);
        });
    }
    take<single, owing>(n);
    const T* const w = taken_.w.data();
    if (single) {
      scores_[0] = lane_dot<T>(x, w, n);
    } else {
      weighted_sum(x, w, n, width_, scores_.data());
    }
    count_step<owing>(now, 1);
    const double loss = single ? loss_of_one(task, place) : loss_of(task, place, 1);
    if (any_derivative(1)) {
      if (single) {
        const T d = derivatives_[0];
        update_taken<owing>(x, d * clipping(task, x, n, d), n, now);
      } else {
        T* const g = taken_.gradients.data();
        outer_product(x, derivatives_.data(), n, width_, g);
        update_taken<owing>(g, clipping(task, g, n * width_, T(1)), n, now);
      }
      put<single, owing>(n, mark<owing>());
    }
    update_intercept<single>(task, now);
    return loss;
  }

  // Whether what a column holds for all outputs fills vectors, and is trained where it lies.
  template <Owing owing>
  bool trains_in_place(const Task<T>& task, const Row& now) const {
    if (width_ < fills_vectors || averaging_) return false;
    return owing == Owing::recorded ? !(now.common.group_l1 > T(0)) : is_plain(task, now);
  }
  // Whether a step is nothing but the rule and the penalty, and weights are not bounded by the step before, either.
  bool is_plain(const Task<T>& task, const Row& now) const {
    const Common<T>& c = now.common;
    return !averaging_ && !(task.clip_norm < SKOPTIM_INFINITY) && !(c.clip_value < T(SKOPTIM_INFINITY)) &&
           !is_boxed(c) && !is_boxed(in_force_->common) && !(c.group_l1 > T(0));
  }
  // The same for one output.
  template <Owing owing>
  double train_in_vectors(const Task<T>& task, int64_t place, const Row& now) {
    if constexpr (Rule::contains_penalty)
      if (has_units_) return train_in_vectors<owing, true>(task, place, now);
    return train_in_vectors<owing, false>(task, place, now);
  }
  template <Owing owing, bool has_units>
  double train_in_vectors(const Task<T>& task, int64_t place, const Row& now) {
    return task.x.wide ? train_in_vectors<owing, has_units, int64_t>(task, place, now)
                       : train_in_vectors<owing, has_units, int32_t>(task, place, now);
  }
  template <Owing owing, bool has_units, class Index>
  double train_in_vectors(const Task<T>& task, int64_t place, const Row& now) {
    using Narrow = NarrowColumns<Rule, T, owing, has_units>;
    using Vectors = ColumnsOfVector<Rule, T>;
    const RowInVectors<Index, T> row(task.x, task.order[place]);
    keep_columns(row.columns(), row.size());
    const auto weigh = [&](bool owes, auto pay) SKOPTIM_INLINE {
      return Narrow::weigh(row, records_.data(), *in_force_, vectors_.data(), owes, pay);
    };
    if constexpr (owing == Owing::recorded) {
      const OwnDebts<Rule, T> debts(*steps_, now_);
      scores_[0] = weigh(debts.are_any(), [&](Vectors& c, const double* mark) SKOPTIM_INLINE {
        T left[lanes<T>];
        debts.pay(c.run(), mark, lanes<T>, left);
      });
    } else {
      scores_[0] = weigh(true, [threshold = rest_.threshold](Vectors& c, const double* mark) SKOPTIM_INLINE {
        each_lane<lanes<T>>([&](int i) SKOPTIM_INLINE {
          c.w[i] = soft_threshold(c.w[i], owed_amount<T>(threshold, mark[i]));
        });
      });
    }
    count_step<owing>(now, 1);
    const double loss = loss_of_one(task, place);
    const T d = derivatives_[0];
    const auto step = [&](auto extras, const Row& scalars, T factor) SKOPTIM_INLINE {
      Narrow::template step<extras()>(row, records_.data(), scalars, factor, mark<owing>(), is_worker(),
                                      vectors_.data());
    };
    if (d != T(0)) {
      if constexpr (owing == Owing::derived)
        step(with<Extras::none>{}, now, d);
      else if constexpr (scales(owing))
        step(with<has_marks(owing) ? Extras::lasso : Extras::none>{}, scaled_, d * scaled_gradient_);
      else
        choose_extras(now.common, [&](auto extras) SKOPTIM_INLINE { step(extras, now, d); });
    }
    update_intercept<true>(task, now);
    return loss;
  }

  // Calls visit with how columns of many outputs are trained, and with the parts of these.
  template <Owing owing, class Visit>
  double with_parts(Visit visit) {
    constexpr int few = std::min(int(fills_vectors), lanes<T>);
    return width_ < lanes<T> ? with_parts<owing, few>(visit) : with_parts<owing, lanes<T>>(visit);
  }
  template <Owing owing, int size, class Visit>
  double with_parts(Visit visit) {
    const Parts<size> parts(width_);
    if constexpr (Rule::contains_penalty)
      if (has_units_) return visit(WideColumns<Rule, T, owing, true, size>{}, parts);
    return visit(WideColumns<Rule, T, owing, false, size>{}, parts);
  }

  // A row of many outputs whose columns are not recorded.
  template <Owing owing, class Wide, int size>
  double train_in_parts(Wide, const Parts<size>& parts, const Task<T>& task, int64_t place, const T* x, int64_t n,
                        const Row& now) {
    const int64_t* const number = taken_.number.data();
    T* const w = taken_.w.data();
    T* const sums = sums_.data();
    std::fill_n(sums, parts.padded(), T(0));
    Row in_force = *in_force_;
    for (int64_t e = 0; e < n; ++e) {
      if (e + columns_ahead < n) prefetch_record(at(number[e + columns_ahead]));
      Wide::weigh(parts, at(number[e]), width_, x[e], in_force, rest_.threshold, w + e * width_, sums);
    }
    prefetch_first_records(task, place + stride_);
    parts.each([=](int64_t, int64_t from) { return sums + from; },
               [this](int64_t first, int64_t, const T* from) { std::copy_n(from, size, &scores_[first]); });
    count_step<owing>(now, 1);
    const double loss = loss_of(task, place, 1);
    const T* const d = derivatives_.data();
    if (any_derivative(1)) {
      Row step = scales(owing) ? scaled_ : now;
      const T factor = scales(owing) ? scaled_gradient_ : T(1);
      for (int64_t e = 0; e < n; ++e)
        Wide::step(parts, at(number[e]), width_, factor * x[e], step, mark<owing>(), is_worker(), w + e * width_, d);
    }
    update_intercept<false>(task, now);
    return loss;
  }

  // The same where columns are paid by the record: only the weights are copied.
  double train_recorded_in_place(const Task<T>& task, int64_t place, const T* x, int64_t n, const Row& now) {
    const int64_t* const number = taken_.number.data();
    T* const w = taken_.w.data();
    std::fill_n(scores_.data(), width_, T(0));
    for (int64_t e = 0; e < n; ++e) {
      if (e + columns_ahead < n) prefetch_record(at(number[e + columns_ahead]));
      pay_in_place(at(number[e]), w + e * width_);
      add_scaled(scores_.data(), w + e * width_, x[e], width_);
    }
    prefetch_first_records(task, place + stride_);
    count_step<Owing::recorded>(now, 1);
    const double loss = loss_of(task, place, 1);
    const T* const d = derivatives_.data();
    if (any_derivative(1)) {
      const T factor = clipping(task, d, width_, T(math::sqrt(dot(x, x, n))));
      Row step = now;
      for (int64_t e = 0; e < n; ++e) step_in_place(at(number[e]), d, factor * x[e], step);
    }
    update_intercept<false>(task, now);
    return loss;
  }

  // Pays a column what it owes by the record, and copies its weights.
  void pay_in_place(T* record, T* w) {
    const int64_t from = int64_t(mark_at(record + layout_.mark));
    if (from < now_)
      Driver::pay_run(run_of(record, record), has_units_ ? unit_at(record + layout_.unit) : T(1), nullptr, width_,
                      steps_->steps(), from, now_);
    // (Another worker may have paid more.)
    if (from < now_ || !is_worker()) set_mark(record + layout_.mark, double(now_), false);
    copy_run(record, w, width_);
  }

  // A step of a column with gradient factor * g; the unit in `step` is set.
  void step_in_place(T* record, const T* g, T factor, Row& step) {
    if constexpr (Rule::contains_penalty)
      if (has_units_) step.own[Rule::unit] = unit_at(record + layout_.unit);
    Driver::update_run(run_of(record, record), g, factor, width_, step);
    set_mark(record + layout_.mark, mark<Owing::recorded>(), is_worker());
  }

  // Of wide records each is fetched ahead: while a row is visited, and the first ones of the next while it is stepped.
  static constexpr int64_t columns_ahead = 20;
  void prefetch_first_records(const Task<T>& task, int64_t place) const {
    if (place >= task.n_samples) return;
    const int64_t row = task.order[place];
    task.x.wide ? prefetch_first_records<int64_t>(task.x, row) : prefetch_first_records<int32_t>(task.x, row);
  }
  template <class Index>
  [[gnu::always_inline]] inline void prefetch_first_records(const Matrix<T>& x, int64_t row) const {
    const Index* const indptr = static_cast<const Index*>(x.indptr);
    const int64_t begin = int64_t(indptr[row]), end = std::min(begin + columns_ahead, int64_t(indptr[row + 1]));
    for (int64_t e = begin; e < end; ++e) prefetch_record(at(int64_t(static_cast<const Index*>(x.indices)[e])));
  }
  [[gnu::always_inline]] inline void prefetch_record(const T* record) const {
    for (int64_t i = 0; i < layout_.size; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(record + i, 1);
  }

  Run<T> run_of(T* record, T* w) const {
    Run<T> run{w, {}, nullptr};
    for (int j = 0; j < n_slots; ++j) run.slots[j] = record + (int(stores_weight()) + j) * width_;
    return run;
  }

  void read_unit(int64_t column) { units_.data()[column] = at(column)[layout_.unit]; }

  // Lets some columns, all different, have the units of `units_`; their state stands for the same weights in these.
  void learn_units(const int64_t* columns, int64_t n_columns) {
    if constexpr (Rule::contains_penalty) {
      if (n_columns == 0) return;
      taken_.reserve(chunk, width_, n_slots, true, has_marks(layout_.owing), averaging_);
      const T* const units = units_.data();
      for (int64_t first = 0; first < n_columns; first += chunk) {
        const int64_t n = std::min(chunk, n_columns - first);
        int64_t* const number = taken_.number.data();
        std::copy_n(columns + first, n, number);
        for (int64_t e = 0; e < n; ++e) prefetch_record(at(number[e]));
        keep_columns(number, n);
        take(n);
        T* const learned = taken_.gradients.data();  // (No gradients are there yet.)
        spread<unit_at<T>>(units, 1, number, n, width_, learned);
        Driver::change_units(taken_.run(true), learned, n * width_, *in_force_);
        taken_.unit.swap(taken_.gradients);
        if (keeps_paths()) add_paths(-1.0, n, {});
        put(n, 0.0);
        for (int64_t e = 0; e < n; ++e) {
          at(number[e])[layout_.unit] = units[number[e]];
          largest_unit_ = larger(largest_unit_, effective(units[number[e]]));
        }
      }
    }
  }

  // What the next but one row will touch; its indices were prefetched before.
  [[gnu::always_inline]] inline void prefetch_records(const Task<T>& task, int64_t place) {
    place += 2 * stride_;
    if (place >= task.n_samples) return;
    const int64_t size = layout_.size;
    const bool straddles = (size & (size - 1)) != 0;  // the lines of the cache
    const T* const records = records_.data();
    visit_entries(task.x, task.order + place, 0, 1, [=](int64_t, int64_t column, T) {
      const T* const record = records + column * size;
      for (int64_t i = 0; i < size; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(record + i, 1, 2);
      if (straddles) __builtin_prefetch(record + size - 1, 1, 2);
    });
  }

  template <Owing owing>
  double train_batch_in_place(const Task<T>& task, int64_t begin, int64_t n, int64_t n_touched, const Row& now) {
    if constexpr (owing == Owing::recorded)
      return train_batch_in_place<owing>(
          task, begin, n, n_touched, now, [this](T* record, T* w) SKOPTIM_INLINE { pay_in_place(record, w); },
          [this](T* record, const T*, const T* g, T factor, Row& step)
              SKOPTIM_INLINE { step_in_place(record, g, factor, step); });
    else
      return with_parts<owing>([&](auto wide, const auto& parts) SKOPTIM_INLINE {
        using Wide = decltype(wide);
        Row in_force = *in_force_;
        return train_batch_in_place<owing>(
            task, begin, n, n_touched, now,
            [&](const T* record, T* w) SKOPTIM_INLINE {
              Wide::weights(parts, record, width_, in_force, rest_.threshold, w);
            },
            [&](T* record, const T* w, const T* g, T factor, Row& step) SKOPTIM_INLINE {
              Wide::step(parts, record, width_, factor, step, mark<owing>(), is_worker(), w, g);
            });
      });
  }

  // The same with weigh(record, w), which writes the weights of a column, and step(record, w, g, factor, scalars).
  template <Owing owing, class Weigh, class Step>
  double train_batch_in_place(const Task<T>& task, int64_t begin, int64_t n, int64_t n_touched, const Row& now,
                              Weigh weigh, Step step) {
    const int64_t* const number = taken_.number.data();
    T* const w = taken_.w.data();
    const auto each_touched = [=](auto visit) SKOPTIM_INLINE {
      for (int64_t e = 0; e < n_touched; ++e) {
        if (e + columns_ahead < n_touched) prefetch_record(at(number[e + columns_ahead]));
        visit(at(number[e]), e * width_);
      }
    };
    each_touched([=](T* record, int64_t i) SKOPTIM_INLINE { weigh(record, w + i); });
    batch_.multiply(w, width_, scores_.data());
    count_step<owing>(now, n);
    const double loss = loss_of(task, begin, n);
    if (any_derivative(n)) {
      T* const g = taken_.gradients.data();
      batch_.gradient(derivatives_.data(), width_, n_touched, g);
      Row scalars = scales(owing) ? scaled_ : now;
      const T factor = clipping(task, g, n_touched * width_, T(1)) * (scales(owing) ? scaled_gradient_ : T(1));
      each_touched([&](T* record, int64_t i) SKOPTIM_INLINE { step(record, w + i, g + i, factor, scalars); });
    }
    update_intercept<false>(task, now);
    return loss;
  }

  template <bool single, Owing owing>
  double train_batch(const Task<T>& task, int64_t begin, int64_t n, const Row& now) {
    const int64_t width = single ? 1 : width_;
    const int64_t n_touched =
        batch_.read(task, begin, n, outgrows_cache_ ? records_.data() : nullptr, layout_.size);
    std::copy_n(batch_.columns(), n_touched, taken_.number.data());
    keep_columns(taken_.number.data(), n_touched);
    if constexpr (!single)
      if (trains_in_place<owing>(task, now)) return train_batch_in_place<owing>(task, begin, n, n_touched, now);
    take<single, owing>(n_touched);
    batch_.multiply(taken_.w.data(), width, scores_.data());
    count_step<owing>(now, n);
    const double loss = loss_of(task, begin, n);
    if (any_derivative(n)) {
      T* const g = taken_.gradients.data();
      batch_.gradient(derivatives_.data(), width, n_touched, g);
      update_taken<owing>(g, clipping(task, g, n_touched * width, T(1)), n_touched, now);
      put<single, owing>(n_touched, mark<owing>());
    }
    update_intercept<single>(task, now);
    return loss;
  }

  // Derivatives of the mean loss over n samples, from scores without the intercepts; returns their loss. Losses of
  // single rows of few outputs are summed later, many at once, out of the way of the next row: returned are those that
  // are summed now, if any.
  double loss_of(const Task<T>& task, int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      add_scaled(&scores_[i * width_], shared_->intercept.data(), T(1), width_);
    if (n == 1 && width_ < fills_vectors && task.loss->slopes) {
      const int64_t row = task.order[begin];
      task.loss->slopes(scores_.data(), width_, task.targets, row, task.weights, task.loss_parameter,
                        derivatives_.data());
      std::copy_n(derivatives_.data(), width_, bias_gradient_.data());
      return loss_later(task, row);
    }
    const double loss =
        task.loss->batch(scores_.data(), n, width_, task.targets, task.order + begin, 0, task.weights,
                         task.loss_parameter, T(1) / T(n), derivatives_.data());
    column_sums(derivatives_.data(), n, width_, false, bias_gradient_.data());
    return loss;
  }

  // The same for one row and one output.
  double loss_of_one(const Task<T>& task, int64_t place) {
    const int64_t row = task.order[place];
    scores_[0] += shared_->intercept[0];
    derivatives_[0] = bias_gradient_[0] =
        task.loss->slope(scores_[0], task.targets, row, task.weights, task.loss_parameter);
    return loss_later(task, row);
  }

  double loss_later(const Task<T>& task, int64_t row) {
    for (int64_t k = 0; k < width_; ++k) later_.scores[later_.n * width_ + k] = scores_[k];
    later_.rows[later_.n] = row;
    return ++later_.n < Later::room ? 0.0 : losses_left(task);
  }

  // The sum of the losses that have not been summed.
  double losses_left(const Task<T>& task) {
    const int64_t n = std::exchange(later_.n, 0);
    return task.loss->batch(later_.scores, n, width_, task.targets, later_.rows, 0, task.weights, task.loss_parameter,
                            T(1), nullptr);
  }

  // Without a gradient the step of the columns is an idle one: it is owed like any other.
  bool any_derivative(int64_t n) const {
    for (int64_t i = 0; i < n * width_; ++i)
      if (derivatives_[i] != T(0)) return true;
    return false;
  }

  // The factor that bounds the norm of the whole gradient, `scale` times g and the intercepts'; these
  // are multiplied by it at once.
  T clipping(const Task<T>& task, const T* g, int64_t n, T scale) {
    if (!(task.clip_norm < SKOPTIM_INFINITY)) return T(1);
    double norm = double(scale) * scale * dot(g, g, n);
    if (task.fit_intercept) norm += dot(bias_gradient_.data(), bias_gradient_.data(), width_);
    norm = math::sqrt(norm);
    if (!(norm > task.clip_norm)) return T(1);
    const T factor = T(task.clip_norm / norm);
    for (T& bias : bias_gradient_) bias *= factor;
    return factor;
  }

  // One step of the columns taken out, with gradient factor * g.
  template <Owing owing>
  void update_taken(const T* g, T factor, int64_t n, const Row& now) {
    const Run<T> run = taken_.run(has_units_);
    const int64_t size = n * width_;
    if constexpr (owing == Owing::derived)
      Driver::advance_run(run, g, factor, size, now);
    else if constexpr (scales(owing))
      Driver::update_run(run, g, factor * scaled_gradient_, size, scaled_);
    else
      Driver::update_run(run, g, factor, size, now);
    if (now.common.group_l1 > T(0))
      for (int64_t e = 0; e < n; ++e) Driver::shrink_group(run.w + e * width_, width_, now);
    if constexpr (has_paths(owing))
      add_paths(-1.0, n, {nullptr, mark<owing>()});
    else if (averaging_)
      Driver::add_to_average(taken_.average.data(), run.w, size, now.common);
  }

  template <bool single>
  void update_intercept(const Task<T>& task, const Row& penalised) {
    if (!task.fit_intercept) {
      if (averaging_) Driver::add_to_average(rest_.average.data(), rest_.intercept.data(), width_, penalised.common);
      return;
    }
    Row now = penalised;
    now.common = unpenalised(now.common);
    if (single && !averaging_) {
      T s[slot_storage<Rule>] = {};
      for (int j = 0; j < n_slots; ++j) s[j] = shared_->slots[j][0];
      update<Rule>(shared_->intercept[0], bias_gradient_[0], s, now.common, now.own);
      for (int j = 0; j < n_slots; ++j) shared_->slots[j][0] = s[j];
      return;
    }
    Run<T> run{shared_->intercept.data(), {}, nullptr};
    for (int j = 0; j < n_slots; ++j) run.slots[j] = shared_->slots[j].data();
    Driver::update_run(run, bias_gradient_.data(), T(1), width_, now);
    if (averaging_) Driver::add_to_average(rest_.average.data(), run.w, width_, now.common);
  }

  // From here on columns owe a step, but for those that are put back with the mark. The scores of the
  // n samples were computed from stored weights.
  template <Owing owing>
  void count_step(const Row& now, int64_t n) {
    in_force_ = &now;
    if constexpr (owing == Owing::recorded) ++now_;
    if constexpr (scales(owing)) {
      for (int64_t i = 0; i < n * width_; ++i) scores_[i] *= T(rest_.decay);
      const UniformStep step = Idle<Rule>::one_step(now.common, now.own);
      rest_.decay *= step.factor;
      const double amount = step.amount / rest_.decay;
      rest_.threshold += amount;
      // The same step for weights as they are stored.
      const T rate = now.common.learning_rate;
      scaled_gradient_ = T(step.gradient / rest_.decay);
      scaled_ = now;
      scaled_.common = unpenalised(now.common);
      scaled_.common.clip_value *= scaled_gradient_;
      if (rate > T(0)) scaled_.common.l1 = T(amount / rate);
    }
  }
  template <Owing owing>
  double mark() const { return owing == Owing::recorded ? double(now_) : rest_.threshold; }

  template <class Index>
  void keep_columns(const Index* columns, int64_t n) {
    kept_.records.keep(columns, n, records_.data());
  }

  // Before the account is begun anew.
  void keep_account() {
    kept_.records.keep_all(records_);
    if (!kept_.records.is_keeping() || kept_.account) return;
    kept_.record = record_;
    kept_.paths = paths_;
    kept_.account = true;
  }

  const int64_t n_columns_, width_, row_width_;
  const bool has_units_, averaging_;
  Layout layout_;
  Memory<T> records_;
  ColumnUnits<T> units_;  // empty while nothing needs it
  bool outgrows_cache_ = false;
  Rest rest_;
  const Row* in_force_ = nullptr;  // the scalars of the last step taken
  Row scaled_;  // those of the step under way, for weights as they are stored
  T scaled_gradient_ = T(1);
  Record<Rule, T> record_;
  Paths paths_;  // what averaged weights add up to, if `keeps_paths`
  T largest_unit_ = T(1);  // that there has been
  int64_t now_ = 0;  // steps of the record that were taken
  Columns<T> taken_;
  std::vector<ColumnsOfVector<Rule, T>> vectors_;
  bool pays_in_vectors_ = false;
  std::vector<T> sums_;  // scores of a row, by parts
  NumberedBatch<T> batch_;
  std::vector<T> left_;
  std::vector<T> scores_, derivatives_, bias_gradient_;
  Later later_;
  Kept kept_;
  Rest* const shared_ = &rest_;                  // whose intercepts are trained
  const Record<Rule, T>* const steps_ = &record_;  // what is owed
  const int64_t first_step_ = 0, stride_ = 1;
  std::vector<std::unique_ptr<RuleTable>> workers_;
};

template <class Rule, class T>
LinearTable<T>* make_table(int64_t n_columns, int64_t width, bool has_units, bool averaging,
                           int64_t row_width) {
  return new RuleTable<Rule, T>(n_columns, width, has_units, averaging, row_width);
}

SKOPTIM_END
