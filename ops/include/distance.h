// Distances whose products and sums are rounded one by one: every device gets the same number, to the last bit, so all
// choose the same points, and a bound computed in the same way never exceeds the distance it bounds.
#pragma once

#include "host_device.h"

namespace cakdp {

#ifdef __CUDA_ARCH__

__device__ inline float squared_length(float x, float y, float z) {
    return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

__device__ inline double squared_length(double x, double y, double z) {
    return __dadd_rn(__dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y)), __dmul_rn(z, z));
}

#else

// The host compiler must not contract these (-ffp-contract=off).
template <typename T>
inline T squared_length(T x, T y, T z) {
    return x * x + y * y + z * z;
}

#endif

// How far a value lies outside an interval, 0 inside.
template <typename T>
CAKDP_HOST_DEVICE inline T gap(T low, T high, T value) {
    const T below = low - value, above = value - high;
    const T outside = below < above ? above : below;
    return outside < 0 ? T(0) : outside;
}

}  // namespace cakdp
