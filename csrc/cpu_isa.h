// Which instructions the CPU kernels may use on this machine.
#pragma once

namespace ds_train {

enum class Isa { kBaseline, kAvx2, kAvx512, kAmx };  // each includes the ones before it

// What the CPU has, or less if DS_TRAIN_CPU_ISA in the environment says so.
Isa cpu_isa();

// AVX-512 with bf16 (part of what kAmx needs), whatever the environment says.
bool cpu_has_avx512_bf16();

}  // namespace ds_train
