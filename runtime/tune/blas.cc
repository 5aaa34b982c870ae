#include "runtime/tune/blas.h"

#include <cblas.h>

#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

blasint Narrow(int64_t stride) {
  const blasint narrow = static_cast<blasint>(stride);
  FEWBIT_CHECK(narrow == stride) << "row stride " << stride << " is beyond BLAS";
  return narrow;
}

CBLAS_TRANSPOSE Order(const BlasOperand& operand) {
  return operand.transposed ? CblasTrans : CblasNoTrans;
}

}  // namespace

void Sgemm(int m, int n, int k, float alpha, const BlasOperand& a, const BlasOperand& b, float beta,
           float* c, int64_t c_row_stride) {
  cblas_sgemm(CblasRowMajor, Order(a), Order(b), m, n, k, alpha, a.data, Narrow(a.row_stride),
              b.data, Narrow(b.row_stride), beta, c, Narrow(c_row_stride));
}

bool PrepareBlas() {
  openblas_set_num_threads(1);
  return openblas_get_parallel() == OPENBLAS_THREAD;
}

}  // namespace fewbit::tune
