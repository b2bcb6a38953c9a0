// The row kernel for any machine. See rows_impl.h and slab_impl.h.
#define DS_TRAIN_ROWS ds_train_rows_baseline
#define DS_TRAIN_SLAB ds_train_slab_baseline
#define DS_TRAIN_SLABS_END ds_train_slabs_end_baseline
#include "slab_impl.h"
