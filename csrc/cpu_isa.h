// Which instructions the CPU kernels may use on this machine.
#pragma once

namespace ds_train {

// Each includes the ones before it. kAvx512Bf16: products of pairs of bf16 are the faster ones.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// What is fastest on this CPU, or what DS_TRAIN_CPU_ISA in the environment names, if the CPU has it.
Isa cpu_isa();

// AVX-512 with bf16, whatever the environment says.
bool cpu_has_avx512_bf16();

}  // namespace ds_train
