// Vectors of floats for whatever instructions this file is compiled for, and the functions on them
// that the loss needs. Plain GCC/Clang vector types, so the same source serves every machine.
//
// Everything is `static inline` in an unnamed namespace: the including files are compiled with
// different flags, and no symbol of one may end up in another.
#pragma once
#include <cstdint>
#include <cstring>

namespace {
namespace vec {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));
typedef uint16_t H __attribute__((vector_size(kLanes * 2)));

#define VEC_INLINE __attribute__((always_inline)) static inline

VEC_INLINE F load(const float *p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

VEC_INLINE void store(float *p, F v) { std::memcpy(p, &v, sizeof v); }

VEC_INLINE F set(float x) { return F{} + x; }

// a where a > b, else b: with the data in b, a NaN in it stays.
VEC_INLINE F max_keep(F a, F b) { return a > b ? a : b; }

VEC_INLINE float sum(F v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

VEC_INLINE float max(F v) {
  float top = v[0];
  for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
}

// 2^k for whole k in [-126, 127], given k + 1.5 * 2^23 (the sum that rounded it).
VEC_INLINE F power_of_two(F rounded) {
  return (F)(((I)rounded << 23) + (I)(U{} + 0x3f800000u));
}

// exp, relative error below 2e-7. 0 below -87 and for -inf; at most exp(88) above; NaN stays.
// x = k ln 2 + r with |r| <= ln(2)/2; a polynomial of degree 6 for exp(r).
VEC_INLINE F exp(F x) {
  const F high = set(88.0f);
  F t = x > high ? high : x;
  const F magic = set(12582912.0f);  // 1.5 * 2^23
  F rounded = t * 1.44269504088896341f + magic;
  F k = rounded - magic;
  F r = t - k * 0.693359375f;  // ln 2 in two parts, the first with few bits
  r = r - k * -2.12194440e-4f;
  F p = set(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  F result = p * power_of_two(rounded);
  return t < set(-87.0f) ? F{} : result;
}

// tanh, relative error below 4e-7; NaN stays.
VEC_INLINE F tanh(F x) {
  F size = (F)((I)x & 0x7fffffff);
  F far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  far = (F)((I)far | ((I)x & (I)(U{} + 0x80000000u)));
  // Near 0: x times a polynomial in x^2 (the Taylor series, whose next term is below 2e-9 here).
  F s = x * x;
  F p = set(-0.0088632355f);
  p = p * s + 0.021869488f;
  p = p * s - 0.053968254f;
  p = p * s + 0.13333333f;
  p = p * s - 0.33333333f;
  return size < set(0.3f) ? x + x * s * p : far;
}

VEC_INLINE F from_bf16(const uint16_t *p) {
  H h;
  std::memcpy(&h, p, sizeof h);
  return (F)(__builtin_convertvector(h, U) << 16);
}

// To the nearest, ties to even; NaN stays NaN.
VEC_INLINE void to_bf16(uint16_t *p, F v) {
  U u = (U)v;
  U nearest = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  U quiet = (u >> 16) | 0x40u;
  U bits = v == v ? nearest : quiet;
  H h = __builtin_convertvector(bits, H);
  std::memcpy(p, &h, sizeof h);
}

// fp16 by whole-number arithmetic: a shift puts exponent and fraction in place, a multiplication
// corrects the exponent and normalises what was subnormal; infinities and NaN are put right after.
VEC_INLINE F from_fp16(const uint16_t *p) {
  H h;
  std::memcpy(&h, p, sizeof h);
  U u = __builtin_convertvector(h, U);
  U body = (u & 0x7fffu) << 13;
  F scaled = (F)body * 0x1p112f;
  U bits = body >= 0x0f800000u ? (U)scaled | 0x7f800000u : (U)scaled;
  return (F)(bits | (u & 0x8000u) << 16);
}

VEC_INLINE void to_fp16(uint16_t *p, F v) {
  U sign = (U)v & 0x80000000u;
  U u = (U)v ^ sign;
  // Subnormal results: adding 0.5 shifts the fraction to its place, rounded by the addition itself.
  U tiny = (U)((F)u + 0.5f) - 0x3f000000u;
  U normal = (u + 0xc8000fffu + ((u >> 13) & 1u)) >> 13;
  U bits = u < 0x38800000u ? tiny : normal;
  bits = u >= 0x47800000u ? U{} + 0x7c00u : bits;
  bits = u > 0x7f800000u ? U{} + 0x7e00u : bits;
  H h = __builtin_convertvector(bits | (sign >> 16), H);
  std::memcpy(p, &h, sizeof h);
}

}  // namespace vec
}  // namespace
