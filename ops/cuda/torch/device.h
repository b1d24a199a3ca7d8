// The device of a tensor and PyTorch's current stream on it, for as long as a call lasts.
#pragma once

#include <ATen/core/Tensor.h>

#ifdef CAKDP_CUDA_ON_CPU

#include <cuda_runtime.h>

#define CAKDP_DEVICE CPU

namespace cakdp {

struct CurrentStream {
    explicit CurrentStream(const at::Tensor&) {}
    operator cudaStream_t() const { return nullptr; }
};

}  // namespace cakdp

#else

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#define CAKDP_DEVICE CUDA

namespace cakdp {

class CurrentStream {
  public:
    explicit CurrentStream(const at::Tensor& tensor)
        : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream(tensor.device().index())) {}
    operator cudaStream_t() const { return stream_.stream(); }

  private:
    c10::cuda::CUDAGuard guard_;
    c10::cuda::CUDAStream stream_;
};

}  // namespace cakdp

#endif
