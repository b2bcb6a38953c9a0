// The row kernel for x86-64 with AVX-512. See rows_impl.h and slab_impl.h.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
#if defined(__x86_64__)
#define DS_TRAIN_ROWS ds_train_rows_avx512
#define DS_TRAIN_SLAB ds_train_slab_avx512
#define DS_TRAIN_SLABS_END ds_train_slabs_end_avx512
#include "slab_impl.h"
#endif
