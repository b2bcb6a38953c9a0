// The C interface of the fused loss: plain structs over raw pointers, mirrored with ctypes in
// ds_train/ops/structs.py. Nothing here knows torch.
//
// Per supervised token i, over vocabulary columns j (all arithmetic in fp32):
//
//   z_ij = logit_scale * (x_i . w_j + bias_j);   z <- softcap * tanh(z / softcap) if softcap > 0
//   logsumexp_i = log sum_j exp(z_ij)            logprob_i = z_iy - logsumexp_i,  y = labels[i]
//   logit_sum_i = sum_j c_j z_ij                 entropy_i = logsumexp_i - sum_j p_ij z_ij
//   correct_i   = (the first largest column is y)
//
// and, given the gradient of the loss with respect to each of these statistics,
//
//   dz_ij = g_logprob (1[j=y] - p_ij) + (g_logsumexp + g_logsumexp_slope * logsumexp) p_ij
//         + g_logit_sum c_j - g_entropy p_ij (z_ij - logsumexp + entropy)
//
// times (1 - (z/softcap)^2) if capped, times logit_scale. Every feature of the public function
// (weights, smoothing, z-loss, reductions) is made from these coefficients in Python.
//
// A logit of -inf contributes nothing. A row with a NaN, a +inf, nothing but -inf, or a label
// outside [0, vocab) is NaN in its statistics and its gradient, and no memory is read for it that
// isn't there. Rows don't touch each other.
#pragma once
#include <cstdint>

enum DsTrainDtype { DS_TRAIN_FP32 = 0, DS_TRAIN_BF16 = 1, DS_TRAIN_FP16 = 2 };
// Columns that the CPU's row kernel reads at a time; floats of what it knows of a row between slabs.
enum { DS_TRAIN_ROW_BLOCK = 1024, DS_TRAIN_ROW_STATE = 16 };

// Rows of logits: their statistics, and their gradient in their place.
struct LogitRows {
  void *logits;           // [rows, stride]; in: x . w, without bias, scale and cap;
                          // out, if write_gradient: d loss / d (x . w), same dtype
  void *const *slabs;     // null, or what stands in the place of logits: the columns
                          // [k slab_columns, (k + 1) slab_columns) of all rows are at slabs[k],
                          // [rows, stride]. On the CPU only
  const int64_t *labels;  // [rows]
  const float *bias;          // [vocab] or null
  const float *class_weight;  // [vocab] or null (= 1): the c_j
  const float *grad_logprob;  // [rows] or null (= 0), and so the next four
  const float *grad_logsumexp;
  const float *grad_logsumexp_slope;
  const float *grad_logit_sum;
  const float *grad_entropy;
  float *logprob;  // [rows] out or null (= not wanted), and so the next four
  float *logsumexp;
  float *logit_sum;
  float *entropy;
  uint8_t *correct;
  int64_t rows, vocab, stride;  // stride in elements
  int64_t slab_columns;         // a multiple of DS_TRAIN_ROW_BLOCK; unused without slabs
  float logit_scale, softcap;   // softcap 0: none
  int32_t dtype, write_gradient;
};

// Rows of logits of which one slab of columns after the other comes by, on the CPU in fp32. A call for
// each: statistics so far, and exp(z - max) times d z / d (x . w) in the logits' place, 0 for the
// label. Then one for the end: the statistics, and what makes the gradient of x from the sum S over
// slabs of these times w: factor S + target w_y. Neither grad_logit_sum nor grad_entropy.
struct SlabRows {
  LogitRows rows;  // logits: of the slab, with vocab its columns and bias and class_weight its own;
                   // slabs null; in the call for the end without logits
  float *state;    // [rows, DS_TRAIN_ROW_STATE], untouched between the calls
  float *factor;   // [rows] out: of a slab, what S of the slabs before it is to be multiplied by
  float *target;   // [rows] out, at the end if write_gradient
  int64_t first;   // column of the vocabulary that the slab begins with
};

// The whole operation on the CPU in bf16: logits, statistics, gradients of what isn't null.
struct LinearCE {
  LogitRows rows;  // logits and slabs null, stride unused, dtype DS_TRAIN_BF16, rows = supervised tokens
  const void *hidden;  // [rows, dim] bf16, row stride in elements
  int64_t hidden_stride;
  const void *weight;  // [vocab, dim] bf16, row stride in elements
  int64_t weight_stride;
  int64_t dim;
  void *grad_hidden;  // [rows, dim] bf16 contiguous, or null
  void *grad_weight;  // [vocab, dim] contiguous, or null; overwritten
  int32_t grad_weight_dtype;  // DS_TRAIN_BF16 or DS_TRAIN_FP32
  float *grad_bias;           // [vocab] or null; overwritten
  int64_t logits_bytes;  // what may be kept of the logits between the two passes for grad_weight;
                         // the rest is computed again. 0 is allowed.
};

extern "C" {
// 0 = done; anything else: the arguments can't be served here.
int ds_train_rows_cpu(const LogitRows *);
int ds_train_slab_cpu(const SlabRows *);
int ds_train_slabs_end_cpu(const SlabRows *);
int ds_train_linear_ce_cpu(const LinearCE *);
// 1 if ds_train_linear_ce_cpu can run on this machine for logits of this dtype.
int ds_train_linear_ce_cpu_supported(int dtype);
// The instructions that are used: "baseline", "avx2", "avx512", "avx512_bf16" or "amx". DS_TRAIN_CPU_ISA in the
// environment lowers it (read at every call).
const char *ds_train_cpu_isa();

// 0 = done, else a cudaError_t.
int ds_train_rows_cuda(const LogitRows *, int device, void *stream);
const char *ds_train_cuda_error(int error);
}
