// AVX-512 helpers that linear_ce_cpu_avx512.cpp and linear_ce_pack_cpu_avx512.cpp share.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operand inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "linear_ce.h"
#include "vec.h"

namespace ds_train {
namespace {

using vec::F;

// Two columns of 16 tokens as bf16: the first in the lower half.
inline __m512i to_bf16(F first, F second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// a's and b's 16 tokens side by side: lane t = (a_t, b_t).
inline __m512i interleave(__m512i pair) {
  const __m512i order =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, pair);
}

}  // namespace
}  // namespace ds_train
