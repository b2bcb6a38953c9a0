// The row kernel for any machine. See rows_impl.h.
#define DS_TRAIN_ROWS ds_train_rows_baseline
#include "rows_impl.h"
