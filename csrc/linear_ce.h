// What the parts of the fused linear kernel share: the sizes of its blocks, and the functions that
// are compiled for particular instructions (linear_ce_*_avx512.cpp, linear_ce_cpu_amx.cpp). The way
// through the whole operation is in linear_ce_cpu.cpp.
//
// Words: a panel is 32 neighbouring tokens (or 32 neighbouring hidden dimensions); a slab is kSlab
// neighbouring columns of the vocabulary; a group is several slabs. Logits are computed transposed,
// [columns, tokens], so that the lanes of a vector are tokens and nothing is summed across lanes.
#pragma once
#include <cstdint>

namespace ds_train {

constexpr int64_t kPanel = 32;
constexpr int64_t kSlab = 256;
constexpr int64_t kPanelsStored = 4;  // of a slab's gradient at a time, for longer runs in memory

using Bf16 = uint16_t;

// Memory that will be needed, to be brought near while a product computes.
struct Ahead {
  const void *b;  // the next product's B: contiguous
  int64_t b_bytes;
  const void *c;  // its C, if that is added to; or something else
  int64_t c_bytes;
};

// Work that is done between the instructions of a matrix product, a few units at a time: one is
// bound by the tile unit and the second cache, the other by vector arithmetic or by memory.
struct Beside {
  int64_t left = 0;                               // units
  int64_t products = 1;                           // over which they are spread
  void (*some)(Beside &, int64_t units) = nullptr;  // at most so many

  void finish() {
    if (left > 0) some(*this, left);
  }
};

// Where a matrix in blocks of 32 x 32, each in one piece, has its elements: strides of a row within a
// block, of the next block in the same rows, of the next 32 rows.
struct Blocks {
  static constexpr int64_t row = kPanel, step = kPanel * kPanel;
  int64_t panel;
};
inline Blocks blocks_of(int64_t width) { return {kPanel * width}; }

constexpr int64_t kSumLanes = 16;

// Where the bf16 result of a tile goes; null = nowhere.
struct TileOutput {
  Bf16 *by_column;  // [columns, tokens]: A of the product for grad_weight
  Blocks columns;
  Bf16 *by_token;  // [tokens, columns]: A of the product for grad_hidden
  Blocks tokens;
  // Sums over tokens for grad_bias, added up before anything is rounded: [columns, kSumLanes].
  float *column_sums = nullptr;
  const float *coefficient = nullptr;  // of the tile's tokens in those sums; null = 1
};

// Logits of one slab for one panel of tokens, [padded][32] floats.
struct Tile {
  float *z;
  int64_t columns, padded;  // padded: the next multiple of 32
  const float *bias;          // of the slab's columns, or null
  const float *class_weight;  // likewise
  float scale, softcap;
};

// Bias, scale and cap in place; -inf in the columns that aren't there. Per token: the largest
// logit (not below kLowest) and, if wanted, the weighted sum of logits.
void transform_tile(const Tile &, float *max, float *logit_sum);

// e = exp(z - reference) of a tile, rounded to bf16 and written out (times the cap's slope), beside
// the product that makes the next tile. A unit is two columns.
struct Exponentials : Beside {
  Tile tile{};
  TileOutput out{};
  float *sum = nullptr, *shifted = nullptr;  // per token; null = not wanted
  int64_t column = 0;                        // the next one
  alignas(64) float reference[kPanel], even[kPanel], odd[kPanel], weighted[kPanel];
  alignas(64) Bf16 pairs[16][2][32];  // of 32 columns, until they are turned for out.by_token
};

// `reference` comes in as the reference so far and goes out raised to the tile's maximum if that is
// far above. When all is done: per token, the sum of e and, if wanted, of e (z - reference).
void begin_exponentials(Exponentials &, const Tile &, const float *max, float *reference,
                        float *sum, float *shifted, const TileOutput &);

// Panels [columns, 32] of floats, kSlab * 32 apart, side by side to memory, rounded: `dims` in all.
// Whole lines go past the caches, as nobody reads them soon. A unit is a column.
struct PanelStores : Beside {
  Bf16 *out = nullptr;
  int64_t stride = 0, dims = 0;
  const float *c = nullptr;
};
void begin_stores(PanelStores &, Bf16 *out, int64_t stride, const float *c, int64_t columns,
                  int64_t dims);
void fence_stores();  // before anybody else may read them

// C [m, 32] = or += A [m, k] x B. A lies as `blocks` says; B is packed in pairs along k:
// [k/2][32][2]. m and k are multiples of 32. `beside`, if not null, may be done in between, all of it,
// part of it or none; only tiles leave the vector units idle.
using PanelGemm = void (*)(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks,
                           const Bf16 *b, float *c, bool accumulate, const Ahead &ahead,
                           Beside *beside);
void amx_begin();  // by every thread before amx_gemm, and amx_end after
void amx_end();
void amx_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &ahead, Beside *beside);
void fma_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &ahead, Beside *beside);
void dot_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &ahead, Beside *beside);

// Per-token numbers of the final gradient, each an array over tokens.
struct TokenGradients {
  const float *max, *log_sum, *entropy_value;        // statistics
  const float *probability, *logit_sum, *entropy;  // coefficients, see RowGradient
};
void gradient_tile(const Tile &, const TokenGradients &, int64_t first_token, const TileOutput &);

// [columns, tokens] bf16 times a factor per token, in place.
void scale_columns(Bf16 *by_column, const Blocks &, int64_t columns, int64_t tokens,
                   const float *factor);
void add_up_lanes(const float *column_sums, int64_t columns, float *out);  // out [columns]

// A of the logits: rows of x as `blocks` says, rows and dims beyond the end zero up to a multiple of
// 32.
void pack_blocks(const Bf16 *x, int64_t stride, int64_t rows, int64_t dims, const Blocks &blocks,
                 Bf16 *out);
// The same, and B of grad_hidden beside it, in one pass over the weights: `panels` = elements from a
// panel of 32 dims to the next, each [rows/2][32][2]. They come from memory, and the arithmetic of
// the second is done while the first waits for it.
void pack_weight(const Bf16 *x, int64_t stride, int64_t rows, int64_t dims, const Blocks &blocks,
                 Bf16 *out, Bf16 *pairs, int64_t panels);
// B = x^T for the logits: out [dims/2][32 tokens][2], tokens and dims beyond the end zero.
void pack_tokens(const Bf16 *x, int64_t stride, int64_t tokens, int64_t dims, Bf16 *out);
// B = rows of x for the gradients: out [rows/2][32 dims][2], each row times its coefficient if
// given; `rows` and `dims` are what is there, `padded_rows` what is written.
void pack_rows(const Bf16 *x, int64_t stride, int64_t rows, int64_t padded_rows, int64_t dims,
               const float *coefficient, Bf16 *out);

void add_scaled(float *out, const Bf16 *x, float factor, int64_t count);  // out += factor x
void store_bf16(Bf16 *out, const float *x, int64_t count);
void scale_bf16(Bf16 *x, float factor, int64_t count);

}  // namespace ds_train
