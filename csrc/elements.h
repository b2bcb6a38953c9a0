// Elements of a row in memory (fp32, bf16, fp16), sixteen bytes at a time, and the few operations
// that a GPU does with an instruction of its own. Compiled by nvcc, and by a C++ compiler for tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HD __host__ __device__ __forceinline__
#else
#define HD inline
#endif

#ifdef __CUDA_ARCH__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

namespace ds_train {

// 2^x; results under 2^-126 may be 0
HD float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

HD float divide_fast(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// a * b + c * d, rounded the same whichever product comes first
HD float symmetric_sum(float a, float b, float c, float d) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(a, b), __fmul_rn(c, d));
#else
  const float first = a * b, second = c * d;
  return first + second;
#endif
}

template <class To, class From> HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  memcpy(static_cast<void *>(&to), &from, sizeof(to));
  return to;
}

struct alignas(16) Vector {
  uint32_t word[4];
};

struct Fp32 {
  using Storage = uint32_t;
  static constexpr int kPerWord = 1;
  HD static void unpack(uint32_t word, float *x) { x[0] = bits<float>(word); }
  HD static uint32_t pack(const float *x) { return bits<uint32_t>(x[0]); }
};

struct Bf16 {
  using Storage = uint16_t;
  static constexpr int kPerWord = 2;
  HD static void unpack(uint32_t word, float *x) {
    x[0] = bits<float>(word << 16);
    x[1] = bits<float>(word & 0xffff0000u);
  }
  HD static uint32_t pack(const float *x) {
#ifdef __CUDA_ARCH__
    return bits<uint32_t>(__floats2bfloat162_rn(x[0], x[1]));
#else
    return rounded(x[0]) | rounded(x[1]) << 16;
#endif
  }
  HD static uint32_t rounded(float x) {  // to nearest, ties to even
    const uint32_t all = bits<uint32_t>(x);
    return x == x ? (all + 0x7fffu + (all >> 16 & 1u)) >> 16 : 0x7fc0u;
  }
};

struct Fp16 {
  using Storage = uint16_t;
  static constexpr int kPerWord = 2;
  HD static void unpack(uint32_t word, float *x) {
#ifdef __CUDACC__
    const float2 two = __half22float2(bits<__half2>(word));
    x[0] = two.x;
    x[1] = two.y;
#else
    x[0] = static_cast<float>(bits<_Float16>(static_cast<uint16_t>(word)));
    x[1] = static_cast<float>(bits<_Float16>(static_cast<uint16_t>(word >> 16)));
#endif
  }
  HD static uint32_t pack(const float *x) {
#ifdef __CUDACC__
    return bits<uint32_t>(__floats2half2_rn(x[0], x[1]));
#else
    const uint32_t low = bits<uint16_t>(static_cast<_Float16>(x[0]));
    return low | uint32_t(bits<uint16_t>(static_cast<_Float16>(x[1]))) << 16;
#endif
  }
};

template <class E> struct Elements {
  using Storage = typename E::Storage;
  static constexpr int kPerVector = 4 * E::kPerWord;

  HD static void unpack(const Vector &vector, float *x) {
    UNROLL
    for (int i = 0; i < 4; ++i) E::unpack(vector.word[i], x + i * E::kPerWord);
  }
  HD static Vector pack(const float *x) {
    Vector vector;
    UNROLL
    for (int i = 0; i < 4; ++i) vector.word[i] = E::pack(x + i * E::kPerWord);
    return vector;
  }
  HD static float load_one(const Storage *address) {
    float x[2];
#ifdef __CUDA_ARCH__
    E::unpack(__ldcg(address), x);
#else
    E::unpack(*address, x);
#endif
    return x[0];
  }
  HD static void store_one(Storage *address, float value) {
    const float x[2] = {value, 0.0f};
    *address = static_cast<Storage>(E::pack(x));
  }
};

// logits are read from the L2 cache, where the second reading finds them again, ...
HD Vector load_vector(const void *address) {
#ifdef __CUDA_ARCH__
  return bits<Vector>(__ldcg(static_cast<const uint4 *>(address)));
#else
  Vector vector;
  memcpy(&vector, address, sizeof(vector));
  return vector;
#endif
}

// ... and a gradient makes room first, before any logits that are still to be read again
HD void store_vector(void *address, const Vector &vector) {
#ifdef __CUDA_ARCH__
  __stcs(static_cast<uint4 *>(address), bits<uint4>(vector));
#else
  memcpy(address, &vector, sizeof(vector));
#endif
}

}  // namespace ds_train
