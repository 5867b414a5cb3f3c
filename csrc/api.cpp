// The C ABI that ptl_kernels.cpu loads, and how work is divided among threads. Nothing here knows
// torch, so one build serves every version of it.
//
// Sums do not depend on the number of threads: rows are cut into splits of a fixed size, one thread
// sums a split in float, and a column's splits are added in double, in their order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels.h"

using namespace ptl;

namespace {

constexpr int64_t SPLIT_ROWS = 64;        // few enough that float sums lose little
constexpr int64_t CHUNK_COLUMNS = 2048;   // 8 KiB of sums: they stay in the first-level cache
constexpr int64_t TOTAL_COLUMNS = 256;    // 8 KiB of four totals in double
constexpr int64_t PADDING = 32;           // the widest pair of vectors, in floats
constexpr int64_t PARALLEL_FROM = 1 << 15;  // elements; for fewer a second thread costs more

// Rows that move are written past the caches where both are at least this long, in bytes: all that
// moves, which then exceeds the caches near a core, and one row.
constexpr int64_t STREAM_FROM = 1 << 19, STREAM_ROW = 256;

// Moves of rows in an OpenMP chunk: all of them in 16 chunks, within these bounds.
constexpr int64_t CHUNKS = 16, FEWEST_MOVES = 16, MOST_MOVES = 256;

const Kernels *kernels() {
#if defined(__x86_64__)
    static const Kernels *chosen =
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq")
            ? &AVX512
        : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &AVX2
                                                                          : &BASELINE;
    return chosen;
#else
    return &BASELINE;
#endif
}

const Kernels *override_kernels = nullptr;

const Kernels *current() { return override_kernels ? override_kernels : kernels(); }

int64_t item_size(Dtype dtype) { return dtype == FLOAT32 ? 4 : 2; }

const char *at(const void *base, int64_t elements, Dtype dtype) {
    return static_cast<const char *>(base) + elements * item_size(dtype);
}

char *at(void *base, int64_t elements, Dtype dtype) {
    return static_cast<char *>(base) + elements * item_size(dtype);
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Compact a matrix from (rows, width) to (rows, columns) within its memory, from the first row on:
// a row's new place ends before its tail begins, so the tail is still whole when holes are filled
// from it, and so are all later rows. ITEM is item_bytes as a constant, for the compiler to turn
// the copies of one element into loads and stores, or 0.
template <int64_t ITEM>
void compact_columns(void *tensor, int64_t rows, int64_t width, int64_t columns, int64_t item_bytes,
                     const int64_t *sources, const int64_t *destinations, int64_t num_moves) {
    const int64_t item = ITEM ? ITEM : item_bytes;
    for (int64_t row = 0; row < rows; row++) {
        const char *from = static_cast<const char *>(tensor) + row * width * item;
        char *to = static_cast<char *>(tensor) + row * columns * item;
        std::memmove(to, from, columns * item);
        for (int64_t move = 0; move < num_moves; move++)
            std::memcpy(to + destinations[move] * item, from + sources[move] * item, item);
    }
}

}  // namespace

extern "C" {

// The name of the instruction set in use.
const char *ptl_instruction_set() { return current()->name; }

// For tests: use "avx512", "avx2", "baseline", or "" for the best. Returns 0, or -1 where the
// processor lacks it.
int ptl_use_instruction_set(const char *name) {
    const Kernels *best = kernels(), *wanted = nullptr;
    if (!*name) return override_kernels = nullptr, 0;
#if defined(__x86_64__)
    const Kernels *known[] = {&BASELINE, &AVX2, &AVX512};
#else
    const Kernels *known[] = {&BASELINE};
#endif
    for (const Kernels *each : known) {
        if (!std::strcmp(each->name, name)) wanted = each;
        if (each == best) break;
    }
    if (!wanted) return -1;
    override_kernels = wanted;
    return 0;
}

// out = activation(gate) * up; and for each column, over the rows that count (mask is 1, or there
// is none): square += out^2, sum += out, absolute += |out|, maximum = max(maximum, |out|). The last
// three come together or not at all; without square there are none. out may be gate or up.
void ptl_gated_activation(const void *gate, const void *up, void *out, int64_t rows,
                          int64_t columns, int64_t gate_stride, int64_t up_stride,
                          int64_t out_stride, int dtype_code, int activation_code,
                          const uint8_t *mask, double *square, double *sum, double *absolute,
                          double *maximum) {
    const Dtype dtype = static_cast<Dtype>(dtype_code);
    const Activation activation = static_cast<Activation>(activation_code);
    const int64_t splits = divide_up(rows, SPLIT_ROWS), chunks = divide_up(columns, CHUNK_COLUMNS);
    const int64_t padded = divide_up(columns, PADDING) * PADDING;
    const int64_t num_statistics = !square ? 0 : sum ? 4 : 1;
    // Not initialised: each thread clears what it sums into, while that is in its cache.
    std::unique_ptr<float[]> partials(new float[num_statistics * splits * padded]);
    const bool parallel = rows * columns >= PARALLEL_FROM;
    const Kernels *run = current();
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
    for (int64_t split = 0; split < splits; split++) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t row = split * SPLIT_ROWS, column = chunk * CHUNK_COLUMNS;
            float *part[4] = {};
            for (int64_t which = 0; which < num_statistics; which++) {
                part[which] = partials.get() + (which * splits + split) * padded + column;
                std::fill_n(part[which], std::min(CHUNK_COLUMNS, padded - column), 0.0f);
            }
            run->forward(
                {at(gate, row * gate_stride + column, dtype),
                 at(up, row * up_stride + column, dtype), at(out, row * out_stride + column, dtype),
                 gate_stride, up_stride, out_stride, std::min(SPLIT_ROWS, rows - row),
                 std::min(CHUNK_COLUMNS, columns - column), mask ? mask + row : nullptr, part[0],
                 part[1], part[2], part[3]},
                dtype, activation);
        }
    }
    double *totals[4] = {square, sum, absolute, maximum};
    const int64_t blocks = divide_up(columns, TOTAL_COLUMNS);
#pragma omp parallel for schedule(static) if (num_statistics * splits * columns >= PARALLEL_FROM)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t start = block * TOTAL_COLUMNS, end = std::min(columns, start + TOTAL_COLUMNS);
        for (int64_t which = 0; which < num_statistics; which++) {
            double *into = totals[which];
            for (int64_t split = 0; split < splits; split++) {
                const float *part = partials.get() + (which * splits + split) * padded;
                if (which < 3) {
                    for (int64_t column = start; column < end; column++)
                        into[column] += part[column];
                } else {
                    for (int64_t column = start; column < end; column++)
                        into[column] = std::max<double>(into[column], part[column]);
                }
            }
        }
        // Maxima drop a NaN; the sum of magnitudes kept it.
        for (int64_t column = start; maximum && column < end; column++)
            if (absolute[column] != absolute[column]) maximum[column] = absolute[column];
    }
}

// grad_gate = grad * up * activation'(gate); grad_up = grad * activation(gate).
void ptl_gated_activation_backward(const void *grad, const void *gate, const void *up,
                                   void *grad_gate, void *grad_up, int64_t rows, int64_t columns,
                                   int64_t grad_stride, int64_t gate_stride, int64_t up_stride,
                                   int64_t grad_gate_stride, int64_t grad_up_stride, int dtype_code,
                                   int activation_code) {
    const Dtype dtype = static_cast<Dtype>(dtype_code);
    const Activation activation = static_cast<Activation>(activation_code);
    const int64_t splits = divide_up(rows, SPLIT_ROWS), chunks = divide_up(columns, CHUNK_COLUMNS);
    const Kernels *run = current();
#pragma omp parallel for collapse(2) schedule(static) if (rows * columns >= PARALLEL_FROM)
    for (int64_t split = 0; split < splits; split++) {
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t row = split * SPLIT_ROWS, column = chunk * CHUNK_COLUMNS;
            run->backward(
                {at(grad, row * grad_stride + column, dtype),
                 at(gate, row * gate_stride + column, dtype),
                 at(up, row * up_stride + column, dtype),
                 at(grad_gate, row * grad_gate_stride + column, dtype),
                 at(grad_up, row * grad_up_stride + column, dtype), grad_stride, gate_stride,
                 up_stride, grad_gate_stride, grad_up_stride, std::min(SPLIT_ROWS, rows - row),
                 std::min(CHUNK_COLUMNS, columns - column)},
                dtype, activation);
        }
    }
}

// sums[3] += {sum ||after - before||, sum ||after - before||^2, sum cosine(before, after)} over the
// rows that count.
void ptl_residual_change(const void *before, const void *after, int64_t rows, int64_t columns,
                         int64_t before_stride, int64_t after_stride, int dtype_code,
                         const uint8_t *mask, double *sums) {
    const Dtype dtype = static_cast<Dtype>(dtype_code);
    const int64_t splits = divide_up(rows, SPLIT_ROWS);
    std::vector<double> partials(splits * 3);
    const Kernels *run = current();
#pragma omp parallel for schedule(static) if (rows * columns >= PARALLEL_FROM)
    for (int64_t split = 0; split < splits; split++) {
        const int64_t row = split * SPLIT_ROWS;
        run->residual({at(before, row * before_stride, dtype), at(after, row * after_stride, dtype),
                       before_stride, after_stride, std::min(SPLIT_ROWS, rows - row), columns,
                       mask ? mask + row : nullptr, partials.data() + split * 3},
                      dtype);
    }
    for (int64_t split = 0; split < splits; split++)
        for (int which = 0; which < 3; which++) sums[which] += partials[split * 3 + which];
}

// Plan the moves that bring layer l's neurons kept[l, :], of ``width``, into its first ``columns``
// places. Those that are there stay; the others fill the holes, both in ascending order. The neuron
// that ends up at place j is order[l, j]. sources and destinations, (layers, max_moves), hold the
// num_moves[l] moves of layer l, then -1. ``stays`` is scratch memory of ``width`` bytes. Returns
// 0, or 1 where a kept index is out of range, or 2 where it comes twice in a layer.
int ptl_hole_filling(const int64_t *kept, int64_t layers, int64_t columns, int64_t width,
                     int64_t max_moves, int64_t *order, int64_t *sources, int64_t *destinations,
                     int64_t *num_moves, uint8_t *stays) {
    for (int64_t layer = 0; layer < layers; layer++) {
        std::fill(stays, stays + width, 0);
        for (int64_t place = 0; place < columns; place++) {
            const int64_t neuron = kept[layer * columns + place];
            if (neuron < 0 || neuron >= width) return 1;
            if (stays[neuron]++) return 2;
        }
        int64_t *from = sources + layer * max_moves, *to = destinations + layer * max_moves,
                moves = 0;
        for (int64_t place = 0, source = columns; place < columns; place++) {
            order[layer * columns + place] = place;
            if (stays[place]) continue;
            // The tail has as many kept neurons as there are holes, so this ends.
            while (!stays[source]) source++;
            order[layer * columns + place] = source;
            from[moves] = source++, to[moves++] = place;
        }
        std::fill(from + moves, from + max_moves, -1);
        std::fill(to + moves, to + max_moves, -1);
        num_moves[layer] = moves;
    }
    return 0;
}

// Copy rows within tensors, as RowMoves (kernels.h) says. Moves are independent, in any order.
void ptl_move_rows(void *const *tensors, int64_t num_tensors, int64_t row_bytes,
                   const int64_t *sources, const int64_t *destinations, int64_t layers,
                   int64_t max_moves) {
    const int64_t num_moves = num_tensors * max_moves, bytes = num_moves * row_bytes;
    const bool past_caches = bytes >= STREAM_FROM && row_bytes >= STREAM_ROW;
    const RowMoves moves = {tensors, row_bytes, sources, destinations,
                            layers, max_moves, past_caches};
    const int64_t chunk = std::min(MOST_MOVES, std::max(FEWEST_MOVES, num_moves / CHUNKS));
    const Kernels *run = current();
#pragma omp parallel for schedule(static) if (bytes >= PARALLEL_FROM)
    for (int64_t first = 0; first < num_moves; first += chunk)
        run->move_rows(moves, first, std::min(chunk, num_moves - first));
}

// In the memory of each contiguous tensor (rows, width) make a contiguous (rows, columns): every
// row becomes its head, with the holes destinations[l, i] filled from its tail's sources[l, i], up
// to the first -1. One thread does a tensor, since its rows must go in order.
void ptl_compact_columns(void *const *tensors, int64_t layers, int64_t rows, int64_t width,
                         int64_t columns, int64_t item_bytes, const int64_t *sources,
                         const int64_t *destinations, int64_t max_moves) {
#pragma omp parallel for schedule(dynamic) if (layers * rows * columns >= PARALLEL_FROM)
    for (int64_t layer = 0; layer < layers; layer++) {
        const int64_t *from = sources + layer * max_moves, *to = destinations + layer * max_moves;
        const int64_t num_moves = std::find(from, from + max_moves, -1) - from;
        switch (item_bytes) {
            case 2:
                compact_columns<2>(tensors[layer], rows, width, columns, item_bytes, from, to,
                                   num_moves);
                break;
            case 4:
                compact_columns<4>(tensors[layer], rows, width, columns, item_bytes, from, to,
                                   num_moves);
                break;
            default:
                compact_columns<0>(tensors[layer], rows, width, columns, item_bytes, from, to,
                                   num_moves);
        }
    }
}

}  // extern "C"
