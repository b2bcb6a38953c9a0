// Which instructions the CPU kernels may use. The compiler's flags say nothing about it: every file
// that needs more than the baseline asks for it in its first lines, and is entered only from here on.
#include "cpu_isa.h"

#include <cstdlib>
#include <cstring>

#include "rows.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ds_train {
namespace {

const char *const kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__linux__) && defined(__x86_64__)
// Linux keeps the tile registers from a process until it asks for them, once.
bool amx_usable() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_bf16 = d & (1u << 22), has_tiles = d & (1u << 24);
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return has_bf16 && has_tiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool amx_usable() { return false; }
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::kAvx2;
  if (!cpu_has_avx512_bf16()) return Isa::kAvx512;
  return amx_usable() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kBaseline;
#endif
}

// Intel's processors multiply pairs of bf16 more slowly than floats (linear_ce_products_cpu_avx512.cpp).
Isa fastest(Isa has) {
#if defined(__x86_64__)
  if (has == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return has;
}

}  // namespace

bool cpu_has_avx512_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa cpu_isa() {
  static const Isa has = detect(), fast = fastest(has);
  const char *wanted = std::getenv("DS_TRAIN_CPU_ISA");
  if (wanted)
    for (int i = 0; i <= static_cast<int>(has); ++i)
      if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
  return fast;
}

}  // namespace ds_train

extern "C" const char *ds_train_cpu_isa() {
  return ds_train::kNames[static_cast<int>(ds_train::cpu_isa())];
}
