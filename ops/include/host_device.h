// Marks functions that a kernel may call when the geometry is compiled as device code.
#pragma once

#ifdef __CUDACC__
#define CAKDP_HOST_DEVICE __host__ __device__
#else
#define CAKDP_HOST_DEVICE
#endif
