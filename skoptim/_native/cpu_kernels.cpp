// One instruction set's table of kernels. Compiled once per instruction set, with
// SKOPTIM_ARCH naming it; cpu_module.cpp chooses among the tables when the module is imported.
#include "cpu_linear.hpp"
#include "cpu_table.hpp"

SKOPTIM_BEGIN

template <class T>
const Kernels<T>& kernels() {
  static constexpr Kernels<T> table{
      RuleList<T>::entries, RuleList<T>::size,
      LossList<T>::entries, LossList<T>::size,
      ActivationList<T>::entries, ActivationList<T>::size,
      train_flat<T>, observe<T>, gather_rows<T>, csr_matmul<T>, touch<T>, csr_gradient<T>, dropout<T>,
      column_sums<T>, dot<T>, prox_flat<T>, prox_groups<T>};
  return table;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

SKOPTIM_END
