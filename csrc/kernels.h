// What each instruction set implements. A tile is a block of rows and columns that one thread works
// on.
#pragma once

#include <cstdint>

namespace ptl {

// The same codes as in ptl_kernels/cpu.py.
enum Dtype { FLOAT32 = 0, BFLOAT16 = 1 };
enum Activation { SILU = 0, GELU_TANH = 1, NONE = 2 };

// Strides count elements between rows; columns are contiguous. Statistics are float sums over the
// tile's rows, one a column, in memory padded to whole pairs of vectors; a null pointer leaves one
// out (absolute and maximum come with sum). A null mask counts every row.
struct ForwardTile {
    const void *gate, *up;
    void *out;
    int64_t gate_stride, up_stride, out_stride, rows, columns;
    const uint8_t *mask;
    float *square, *sum, *absolute, *maximum;
};

struct BackwardTile {
    const void *grad, *gate, *up;
    void *grad_gate, *grad_up;
    int64_t grad_stride, gate_stride, up_stride, grad_gate_stride, grad_up_stride, rows, columns;
};

// sums[3] += {sum ||after - before||, sum ||after - before||^2, sum cosine(before, after)} over the
// tile's rows.
struct ResidualTile {
    const void *before, *after;
    int64_t before_stride, after_stride, rows, columns;
    const uint8_t *mask;
    double *sums;
};

// Rows to copy within contiguous tensors: those of tensor t are sources[l, i] -> destinations[l, i]
// with l = t % layers and i < max_moves, where neither is -1. No row is both a source and a
// destination. past_caches: with streaming stores, for more bytes than the caches could keep.
struct RowMoves {
    void *const *tensors;
    int64_t row_bytes;
    const int64_t *sources, *destinations;
    int64_t layers, max_moves;
    bool past_caches;
};

struct Kernels {
    const char *name;
    void (*forward)(const ForwardTile &, Dtype, Activation);
    void (*backward)(const BackwardTile &, Dtype, Activation);
    void (*residual)(const ResidualTile &, Dtype);
    // Moves first..first + count - 1, counting max_moves for each tensor, padding included.
    void (*move_rows)(const RowMoves &, int64_t first, int64_t count);
};

extern const Kernels AVX512, AVX2, BASELINE;

}  // namespace ptl
