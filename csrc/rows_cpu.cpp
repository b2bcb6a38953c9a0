// The row kernels of the CPU: pick the instructions and spread the rows over torch's threads.
#include <ATen/Parallel.h>

#include "cpu_isa.h"
#include "rows.h"

#define DS_TRAIN_DECLARE(isa)                                              \
  void ds_train_rows_##isa(const LogitRows &, int64_t begin, int64_t end); \
  void ds_train_slab_##isa(const SlabRows &, int64_t begin, int64_t end);  \
  void ds_train_slabs_end_##isa(const SlabRows &, int64_t begin, int64_t end);
DS_TRAIN_DECLARE(baseline)
DS_TRAIN_DECLARE(avx2)
DS_TRAIN_DECLARE(avx512)

namespace {

struct Kernels {
  void (*rows)(const LogitRows &, int64_t, int64_t);
  void (*slab)(const SlabRows &, int64_t, int64_t);
  void (*slabs_end)(const SlabRows &, int64_t, int64_t);
};
#define DS_TRAIN_KERNELS(isa) {ds_train_rows_##isa, ds_train_slab_##isa, ds_train_slabs_end_##isa}

Kernels kernels() {
#if defined(__x86_64__)
  const ds_train::Isa isa = ds_train::cpu_isa();
  if (isa >= ds_train::Isa::kAvx512) return DS_TRAIN_KERNELS(avx512);
  if (isa >= ds_train::Isa::kAvx2) return DS_TRAIN_KERNELS(avx2);
#endif
  return DS_TRAIN_KERNELS(baseline);
}

template <class Arguments>
int spread(void (*kernel)(const Arguments &, int64_t, int64_t), const Arguments &a,
           const LogitRows &rows) {
  const int64_t grain = 32768 / (rows.vocab + 1) + 1;  // rows worth a thread
  at::parallel_for(0, rows.rows, grain,
                   [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return 0;
}

bool is_slab(const SlabRows &a) {
  const LogitRows &rows = a.rows;
  return rows.dtype == DS_TRAIN_FP32 && !rows.slabs && !rows.grad_logit_sum && !rows.grad_entropy;
}

}  // namespace

extern "C" int ds_train_rows_cpu(const LogitRows *a) {
  if (a->dtype < DS_TRAIN_FP32 || a->dtype > DS_TRAIN_FP16) return 1;
  if (a->slabs && (a->slab_columns < 1 || a->slab_columns % DS_TRAIN_ROW_BLOCK)) return 1;
  return spread(kernels().rows, *a, *a);
}

extern "C" int ds_train_slab_cpu(const SlabRows *a) {
  return is_slab(*a) ? spread(kernels().slab, *a, a->rows) : 1;
}

extern "C" int ds_train_slabs_end_cpu(const SlabRows *a) {
  return is_slab(*a) ? spread(kernels().slabs_end, *a, a->rows) : 1;
}
