// The row kernel for x86-64 with AVX2 and FMA. See rows_impl.h and slab_impl.h.
// flags(x86_64): -mavx2 -mfma
#if defined(__x86_64__)
#define DS_TRAIN_ROWS ds_train_rows_avx2
#define DS_TRAIN_SLAB ds_train_slab_avx2
#define DS_TRAIN_SLABS_END ds_train_slabs_end_avx2
#include "slab_impl.h"
#endif
