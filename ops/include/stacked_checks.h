// What ops on frames that lie one after another in one tensor refuse on every device.
#pragma once

#include <string>

#include "tensor_checks.h"

namespace cakdp {

// Rows (N, numbers), how many of them belong to each frame (B,), and how errors call the two.
struct StackedRows {
    const at::Tensor &rows, &counts;
    const char *name, *counts_name;
    int64_t numbers = 3;
};

inline void check_stack(const StackedRows& stack) {
    check_shape(stack.rows, {-1, stack.numbers}, stack.name);
    check_shape(stack.counts, {-1}, stack.counts_name);
    check_dtype(stack.counts, at::kLong, stack.counts_name);
    check_alike({stack.rows, stack.counts}, (std::string(stack.name) + " and " + stack.counts_name).c_str(), false);
}

// Two stacks of the same frames.
inline void check_stacks(const StackedRows& first, const StackedRows& second) {
    check_stack(first);
    check_stack(second);
    check_alike({first.rows, second.rows}, (std::string(first.name) + " and " + second.name).c_str());
    check_shape(second.counts, {first.counts.size(0)}, second.counts_name);
}

}  // namespace cakdp
