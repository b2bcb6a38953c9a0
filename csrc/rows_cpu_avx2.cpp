// The row kernel for x86-64 with AVX2 and FMA. See rows_impl.h.
// flags(x86_64): -mavx2 -mfma
#if defined(__x86_64__)
#define DS_TRAIN_ROWS ds_train_rows_avx2
#include "rows_impl.h"
#endif
