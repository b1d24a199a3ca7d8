// The order in which features compete for a maximum.
#pragma once

#include "host_device.h"

namespace cakdp {

// Whether a value takes the place of the largest so far: of equal ones the first stays, and a NaN beats everything.
template <typename T>
CAKDP_HOST_DEVICE inline bool exceeds(T value, T best) {
    return value > best || (value != value && best == best);
}

}  // namespace cakdp
