// The row kernel on a GPU: a chunk of logits becomes its statistics and, in place, its gradient.
//
// A row belongs to one block, or to a cluster of blocks where rows are so long that those under way
// would not stay in the L2 cache between the two passes. Rows go from last to first: the GEMM before
// has written the last ones last, and they are still in that cache.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "row_math.h"

namespace ds_train {
namespace {

constexpr int kThreads = 512, kBlocksPerSm = 2, kWarps = kThreads / 32, kMaxCluster = 8;

template <int F> __device__ __forceinline__ State warp_merge(State s, float k) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    State other;
    other.max = __shfl_xor_sync(0xffffffffu, s.max, mask);
    other.sum = __shfl_xor_sync(0xffffffffu, s.sum, mask);
    if constexpr ((F & kMoments) != 0) {
      other.moment = __shfl_xor_sync(0xffffffffu, s.moment, mask);
      other.logit_sum = __shfl_xor_sync(0xffffffffu, s.logit_sum, mask);
    }
    other.tied = __shfl_xor_sync(0xffffffffu, s.tied, mask);
    s = merge<F>(s, other, k);
  }
  return s;
}

// Memory that the blocks of a cluster see of each other; plain, as shared memory can't be initialised.
struct Shared {
  float max, sum, moment, logit_sum;
  int32_t tied;
};

__device__ __forceinline__ State read(const Shared &from) {
  State s;
  s.max = from.max;
  s.sum = from.sum;
  s.moment = from.moment;
  s.logit_sum = from.logit_sum;
  s.tied = from.tied;
  return s;
}

__device__ __forceinline__ void write(Shared &to, const State &s) {
  to = {s.max, s.sum, s.moment, s.logit_sum, s.tied};
}

template <int F> __device__ __forceinline__ State block_merge(State s, float k) {
  __shared__ Shared warps[kWarps];
  const int lane = threadIdx.x % 32;
  s = warp_merge<F>(s, k);
  if (lane == 0) write(warps[threadIdx.x / 32], s);
  __syncthreads();
  return warp_merge<F>(lane < kWarps ? read(warps[lane]) : State{}, k);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// Every block merges all in the order of their ranks. The caller waits for the others before it
// ends, as they may still be reading.
template <int F> __device__ __forceinline__ State cluster_merge(const State &s, float k) {
  __shared__ Shared mine;
  auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) write(mine, s);
  cluster.sync();
  State all = read(*cluster.map_shared_rank(&mine, 0));
  for (unsigned rank = 1; rank < cluster.num_blocks(); ++rank) {
    all = merge<F>(all, read(*cluster.map_shared_rank(&mine, rank)), k);
  }
  cluster.barrier_arrive();
  return all;
}
#endif

template <class E, int F>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    rows_kernel(const __grid_constant__ LogitRows a, const int cluster_size) {
  const int rank = static_cast<int>(blockIdx.x) % cluster_size;
  const int64_t index = a.rows - 1 - blockIdx.x / cluster_size;
  const Row<E, F> row(a, index);
  const int part = rank * kThreads + static_cast<int>(threadIdx.x), parts = cluster_size * kThreads;
  State s = block_merge<F>(scan(row, part, parts), row.k);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_size > 1) s = cluster_merge<F>(s, row.k);
#endif
  const Statistics t = finish(row, s);
  if (part == 0) report(a, index, t);
  if (a.write_gradient) replace(row, gradient(a, index, row, t), t.r, part, parts);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster_size > 1) cooperative_groups::this_cluster().barrier_wait();
#endif
}

// Blocks per row: few enough rows under way that both passes find them in the L2 cache, and all
// multiprocessors busy.
cudaError_t choose_cluster(const LogitRows &a, int device, int64_t row_bytes, int *size) {
  int major = 0, processors = 0, cache = 0;
  *size = 1;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess || major < 9) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  if (error != cudaSuccess) return error;
  const int64_t blocks = static_cast<int64_t>(processors) * kBlocksPerSm;
  const auto under_way = [&] { return a.rows < blocks / *size ? a.rows : blocks / *size; };
  const int64_t room = static_cast<int64_t>(cache) / 5 * 3;
  const auto too_much = [&] { return a.write_gradient && under_way() * row_bytes > room; };
  const auto idle = [&] { return a.rows * *size * 2 <= blocks; };
  const auto long_enough = [&] { return row_bytes >= int64_t(*size) * 2 * kThreads * 16; };
  while (*size < kMaxCluster && long_enough() && (too_much() || idle())) *size *= 2;
  return cudaSuccess;
}

template <class E, int F>
cudaError_t launch(const LogitRows &a, int device, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  int cluster = 1;
  const int64_t row_bytes = a.vocab * int64_t(sizeof(typename E::Storage));
  const cudaError_t error = choose_cluster(a, device, row_bytes, &cluster);
  if (error != cudaSuccess) return error;
  if (a.rows > INT32_MAX / cluster) return cudaErrorInvalidValue;
  config.gridDim = dim3(static_cast<unsigned>(a.rows * cluster));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, rows_kernel<E, F>, a, cluster);
}

// Runs run() with this device as the current one, and leaves no error of ours for others to find.
template <class Run> int on_device(int device, const Run &run) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  int code = error == cudaSuccess ? run() : error;
  error = cudaGetLastError();
  if (code == cudaSuccess) code = error;
  if (before != device) cudaSetDevice(before);
  return code;
}

}  // namespace
}  // namespace ds_train

// 0 if the kernels can be loaded on this device: the driver is new enough, the architecture right.
extern "C" int ds_train_cuda_check(int device) {
  return ds_train::on_device(device, [] {
    cudaFuncAttributes attributes;
    return int(cudaFuncGetAttributes(&attributes, ds_train::rows_kernel<ds_train::Bf16, 0>));
  });
}

extern "C" int ds_train_rows_cuda(const LogitRows *rows, int device, void *stream) {
  const LogitRows &a = *rows;
  if (a.rows == 0) return cudaSuccess;
  if (a.rows < 0 || a.vocab < 1 || a.vocab > 1 << 30 || a.slabs) return cudaErrorInvalidValue;
  const auto run = [&](auto element, auto features) {
    using E = decltype(element);
    constexpr int F = decltype(features)::value;
    return int(ds_train::launch<E, F>(a, device, static_cast<cudaStream_t>(stream)));
  };
  return ds_train::on_device(device, [&] {
    const int code = ds_train::dispatch(a, run);
    return code < 0 ? int(cudaErrorInvalidValue) : code;
  });
}

extern "C" const char *ds_train_cuda_error(int error) {
  return cudaGetErrorName(static_cast<cudaError_t>(error));
}
