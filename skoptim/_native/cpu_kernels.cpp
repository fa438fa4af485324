// The table of kernels of one instruction set and one type of numbers. Compiled once for each pair, with SKOPTIM_ARCH and
// SKOPTIM_DTYPE naming them; cpu_module.cpp chooses among the tables when the module is imported.
#include <cstddef>

#include "cpu_quasi_newton.hpp"
#include "cpu_table.hpp"
#include "cpu_touched.hpp"

SKOPTIM_BEGIN

static_assert(offsetof(Common<float>, average) == average_scalar * sizeof(float), "kernels.hpp names its place");

template <class Rule, class T>
constexpr RuleKernels<T> rule_kernels(const char* name, const char* cpp_type) {
  return {RuleInfo{name, cpp_type, Rule::n_slots, Rule::n_scalars, n_common + Rule::n_scalars, Rule::uniform,
                   Rule::contains_penalty, Rule::slots, Rule::scalars},
          RuleDriver<Rule, T>::apply,
          RuleDriver<Rule, T>::pay_columns,
          TouchedDriver<Rule, T>::multiply,
          TouchedDriver<Rule, T>::apply,
          running_sums<Rule, T>,
          Fading<Rule>::holds ? n_fading_factors : 0,
          FadingDebts<Rule, T>::fill,
          FadingSeries<Rule, T>::fill,
          debt_in_steps<Rule, T>,
          cost_in_table<Rule, T>,
          rests<Rule, T>,
          averages_in_table<Rule, T>,
          make_table<Rule, T>};
}

#define SKOPTIM_RULE_ENTRY(NAME, ...) rule_kernels<__VA_ARGS__, T>(NAME, #__VA_ARGS__),

template <class T>
struct RuleList {
  static constexpr RuleKernels<T> entries[] = {SKOPTIM_RULES(SKOPTIM_RULE_ENTRY)};
  static constexpr int size = sizeof(entries) / sizeof(entries[0]);
};

template <class T>
const Kernels<T>& kernels() {
  static constexpr Kernels<T> table{
      RuleList<T>::entries, RuleList<T>::size,
      LossList<T>::entries, LossList<T>::size,
      ActivationList<T>::entries, ActivationList<T>::size,
      observe<T>, column_squares<T>, gather_rows<T>, multiply<T>, multiply_left<T>, multiply_right<T>, add_bias<T>,
      csr_matmul<T>, csr_gradient<T>, csr_clear<T>, sort_by_column<T>,
      touched_squared_norm<T>, dropout<T>, column_sums<T>, dot<T>, inverse_hessian_product<T>,
      prox_flat<T>, prox_groups<T>};
  return table;
}

template const Kernels<SKOPTIM_DTYPE>& kernels<SKOPTIM_DTYPE>();

SKOPTIM_END
