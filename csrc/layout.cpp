// Where every member of the C ABI's structs lies, so that the Python side can compare its own mirror
// of them before it passes a pointer. Part of every library.
#include <cstddef>
#include <cstdint>

#include "rows.h"

namespace {

#define ROWS(member) int64_t(offsetof(LogitRows, member))
const int64_t logit_rows[] = {
    ROWS(logits), ROWS(slabs), ROWS(labels), ROWS(bias), ROWS(class_weight), ROWS(grad_logprob),
    ROWS(grad_logsumexp), ROWS(grad_logsumexp_slope), ROWS(grad_logit_sum), ROWS(grad_entropy),
    ROWS(logprob), ROWS(logsumexp), ROWS(logit_sum), ROWS(entropy), ROWS(correct), ROWS(rows),
    ROWS(vocab), ROWS(stride), ROWS(slab_columns), ROWS(logit_scale), ROWS(softcap), ROWS(dtype),
    ROWS(write_gradient), int64_t(sizeof(LogitRows))};

#define SLAB(member) int64_t(offsetof(SlabRows, member))
const int64_t slab_rows[] = {SLAB(rows),   SLAB(state), SLAB(factor),
                             SLAB(target), SLAB(first), int64_t(sizeof(SlabRows))};

#define LINEAR(member) int64_t(offsetof(LinearCE, member))
const int64_t linear_ce[] = {
    LINEAR(rows), LINEAR(hidden), LINEAR(hidden_stride), LINEAR(weight), LINEAR(weight_stride),
    LINEAR(dim), LINEAR(grad_hidden), LINEAR(grad_weight), LINEAR(grad_weight_dtype),
    LINEAR(grad_bias), LINEAR(logits_bytes), int64_t(sizeof(LinearCE))};

}  // namespace

// offset of each member in the order of rows.h, then the size of the whole
extern "C" const int64_t *ds_train_layout_logit_rows() { return logit_rows; }
extern "C" const int64_t *ds_train_layout_slab_rows() { return slab_rows; }
extern "C" const int64_t *ds_train_layout_linear_ce() { return linear_ce; }
