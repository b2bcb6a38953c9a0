// The row kernel for x86-64 with AVX-512. See rows_impl.h.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
#if defined(__x86_64__)
#define DS_TRAIN_ROWS ds_train_rows_avx512
#include "rows_impl.h"
#endif
