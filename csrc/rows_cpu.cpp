// The row kernel of the CPU: picks the instructions and spreads the rows over torch's threads.
#include <ATen/Parallel.h>

#include "cpu_isa.h"
#include "rows.h"

void ds_train_rows_baseline(const LogitRows &, int64_t begin, int64_t end);
void ds_train_rows_avx2(const LogitRows &, int64_t begin, int64_t end);
void ds_train_rows_avx512(const LogitRows &, int64_t begin, int64_t end);

namespace {

using Kernel = void (*)(const LogitRows &, int64_t, int64_t);

Kernel kernel_for(ds_train::Isa isa) {
#if defined(__x86_64__)
  if (isa >= ds_train::Isa::kAvx512) return ds_train_rows_avx512;
  if (isa >= ds_train::Isa::kAvx2) return ds_train_rows_avx2;
#endif
  (void)isa;
  return ds_train_rows_baseline;
}

}  // namespace

extern "C" int ds_train_rows_cpu(const LogitRows *a) {
  if (a->dtype < DS_TRAIN_FP32 || a->dtype > DS_TRAIN_FP16) return 1;
  if (a->slabs && (a->slab_columns < 1 || a->slab_columns % DS_TRAIN_ROW_BLOCK)) return 1;
  const Kernel kernel = kernel_for(ds_train::cpu_isa());
  const int64_t grain = 32768 / (a->vocab + 1) + 1;  // rows worth a thread
  at::parallel_for(0, a->rows, grain,
                   [&](int64_t begin, int64_t end) { kernel(*a, begin, end); });
  return 0;
}
