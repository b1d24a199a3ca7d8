// How kernels are started. Only .cu files include this.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace cakdp {

constexpr int kThreads = 256;

// Blocks of kThreads that give every item a thread.
inline dim3 blocks_for(int64_t items) { return dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)); }

__device__ inline int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// Starts a kernel on a stream; nothing where there is no block to run.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream, Arguments... arguments) {
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
#ifdef CAKDP_CUDA_ON_CPU
    run_on_cpu(blocks, threads, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
    kernel<<<blocks, threads, 0, stream>>>(static_cast<Parameters>(arguments)...);
#endif
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA kernel: ") + cudaGetErrorString(error));
}

}  // namespace cakdp
