// The kernels, written once with the compiler's vector types and compiled for each instruction set.
// The including file defines PTL_KERNELS (the table's name), PTL_NAME and PTL_BYTES (a vector's
// size), and sets the compiler's target around this file.

namespace {

using namespace ptl;

constexpr int LANES = PTL_BYTES / 4;
constexpr int64_t LINE = 64;       // bytes of a cache line
constexpr int64_t ROWS_AHEAD = 8;  // prefetched; 2 to 12 measured the same
typedef float Float __attribute__((vector_size(PTL_BYTES)));
typedef int32_t Int __attribute__((vector_size(PTL_BYTES)));
typedef uint32_t Unsigned __attribute__((vector_size(PTL_BYTES)));

template <typename To, typename From>
inline To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename Vector>
inline Vector read(const void *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

// A scalar minus a zero vector: the compiler's vector types broadcast it.
inline Float broadcast(float value) { return value - Float{}; }

// 2 * LANES values, the step of the loops below: one vector of bfloat16 makes two of float.
struct Pair {
    Float first, second;
};

constexpr int STEP = 2 * LANES;

// A type of element has: load, STEP elements to a pair of floats; rounded, to the nearest value of
// the type, still as float; store, a rounded pair; sort, see BFloat16.
struct Float32 {
    typedef float Element;
    static Pair load(const Element *from) { return {read<Float>(from), read<Float>(from + LANES)}; }
    static Float rounded(Float value) { return value; }
    static void store(Element *to, Pair pair) {
        std::memcpy(to, &pair.first, sizeof pair.first);
        std::memcpy(to + LANES, &pair.second, sizeof pair.second);
    }
    static void sort(float *) {}
};

// A pair holds the elements at even places, then those at odd ones. 32 bits are two bfloat16, and a
// bfloat16 is the upper half of a float: a shift makes floats of the even places and a mask of the
// odd ones, and nothing moves across lanes.
struct BFloat16 {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "even places are the lower halves");
    typedef uint16_t Element;
    static Pair load(const Element *from) {
        Unsigned raw = read<Unsigned>(from);
        return {bits<Float>(raw << 16), bits<Float>(raw & 0xffff0000u)};
    }
    // To nearest, ties to even. A NaN stays one: it comes from a bfloat16 or from arithmetic, so
    // its low bits are zero and no carry reaches its exponent.
    static Float rounded(Float value) {
        Unsigned raw = bits<Unsigned>(value);
        return bits<Float>((raw + 0x7fffu + ((raw >> 16) & 1u)) & 0xffff0000u);
    }
    static void store(Element *to, Pair pair) {
        Unsigned raw = bits<Unsigned>(pair.first) >> 16 | bits<Unsigned>(pair.second);
        std::memcpy(to, &raw, sizeof raw);
    }
    // Sums over rows were taken pair by pair; bring those of a pair into the order of the columns.
    static void sort(float *sums) {
        float pair[STEP];
        std::memcpy(pair, sums, sizeof pair);
        for (int lane = 0; lane < LANES; lane++) {
            sums[2 * lane] = pair[lane];
            sums[2 * lane + 1] = pair[LANES + lane];
        }
    }
};

// At the end of a row, where fewer than STEP elements are left: the others read as zero, and are
// not written.
template <class T>
inline Pair load_first(const typename T::Element *from, int64_t count) {
    typename T::Element padded[STEP] = {};
    std::memcpy(padded, from, count * sizeof *from);
    return T::load(padded);
}

template <class T>
inline void store_first(typename T::Element *to, Pair pair, int64_t count) {
    typename T::Element padded[STEP];
    T::store(padded, pair);
    std::memcpy(to, padded, count * sizeof *to);
}

// 2^n and n, where n is t rounded to a whole number of at most 127. Beside 1.5 * 2^23 a float has
// no bits for a fraction: adding it rounds t, and leaves n in the low bits. Those become the
// exponent.
inline Float power_of_two(Float t, Float &n) {
    const float magic = 12582912.0f;
    Float shifted = t + magic;
    n = shifted - magic;
    return bits<Float>((bits<Int>(shifted) - bits<int32_t>(magic) + 127) << 23);
}

// exp(x) for x up to 87, as 2^n times a polynomial for the rest. For float to 2 units in the last
// place; for bfloat16 to 1e-5, which its 8 bits do not show. Below -87 it is exp(-87); the
// comparison leaves a NaN as it is.
template <class T>
inline Float exponential(Float x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    Float t = x * 1.44269504f, n;
    Float power = power_of_two(t, n);
    if (std::is_same<T, BFloat16>::value) {  // 2^(t - n)
        Float f = t - n;
        Float p = 0.00966636837f * f + 0.0559219755f;
        p = p * f + 0.240223497f;
        p = p * f + 0.693121016f;
        return (p * f + 1.0f) * power;
    }
    // x - n ln 2, with ln 2 in two parts (Cody and Waite): the first has few bits, so that its
    // product with n is exact. The coefficients are those of Cephes' expf.
    Float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * power;
}

template <class T>
inline Float sigmoid(Float x) {
    Float share = 1.0f / (1.0f + exponential<T>(-x));
    return x < -87.0f ? broadcast(0.0f) : share;  // there -x is beyond the exponential's range
}

constexpr float GELU_SCALE = 1.5957691216f;  // 2 sqrt(2 / pi): 0.5 (1 + tanh(y)) is sigmoid(2 y)
constexpr float GELU_CUBIC = 0.044715f;

template <class T, Activation A>
inline Float activate(Float x) {
    if (A == NONE) return x;
    Float argument = A == SILU ? x : GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    return x * sigmoid<T>(argument);
}

// The activation and its derivative. Both activations are x s(u), s the sigmoid: u = x for SiLU,
// and for GELU u = GELU_SCALE (x + GELU_CUBIC x^3). The derivative is s + s (1 - s) x du/dx.
template <class T, Activation A>
inline void activate_with_slope(Float x, Float &value, Float &slope) {
    if (A == NONE) {
        value = x;
        slope = broadcast(1.0f);
        return;
    }
    Float s = sigmoid<T>(A == SILU ? x : GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    Float inner = A == SILU ? x : GELU_SCALE * (x + 3 * GELU_CUBIC * x * x * x);  // x du/dx
    Float bend = s * (1.0f - s);
    value = x * s;
    // Where the sigmoid saturates the cube in inner may be infinite, and 0 * inf is NaN.
    slope = s + (bend == 0.0f ? broadcast(0.0f) : bend * inner);
}

// The sums over rows of a pair's columns. NUM: 0 no statistics, 1 squares, 2 all four.
template <int NUM>
struct Sums {
    Pair square, sum, absolute, maximum;

    void load(const ForwardTile &tile, int64_t column) {
        if (NUM >= 1) square = Float32::load(tile.square + column);
        if (NUM >= 2) {
            sum = Float32::load(tile.sum + column);
            absolute = Float32::load(tile.absolute + column);
            maximum = Float32::load(tile.maximum + column);
        }
    }

    void store(const ForwardTile &tile, int64_t column) const {
        if (NUM >= 1) Float32::store(tile.square + column, square);
        if (NUM >= 2) {
            Float32::store(tile.sum + column, sum);
            Float32::store(tile.absolute + column, absolute);
            Float32::store(tile.maximum + column, maximum);
        }
    }

    void add(Pair value) {
        add(value.first, square.first, sum.first, absolute.first, maximum.first);
        add(value.second, square.second, sum.second, absolute.second, maximum.second);
    }

    static void add(Float value, Float &square, Float &sum, Float &absolute, Float &maximum) {
        if (NUM >= 1) square += value * value;
        if (NUM >= 2) {
            Float magnitude = bits<Float>(bits<Unsigned>(value) & 0x7fffffffu);
            sum += value;
            absolute += magnitude;
            // Drops a NaN, which the sum of magnitudes keeps; api.cpp brings it back.
            maximum = magnitude > maximum ? magnitude : maximum;
        }
    }
};

template <class T, Activation A>
inline Pair activate_times(Pair gate, Pair up) {
    return {T::rounded(activate<T, A>(gate.first) * up.first),
            T::rounded(activate<T, A>(gate.second) * up.second)};
}

// ROWS rows together: a pair's sums are loaded and stored once for all of them.
template <class T, Activation A, int NUM, int ROWS>
inline void forward_rows(const ForwardTile &tile, int64_t row) {
    typedef typename T::Element Element;
    const Element *gate = static_cast<const Element *>(tile.gate) + row * tile.gate_stride;
    const Element *up = static_cast<const Element *>(tile.up) + row * tile.up_stride;
    Element *out = static_cast<Element *>(tile.out) + row * tile.out_stride;
    Sums<NUM> sums;
    int64_t column = 0;
    for (; column + STEP <= tile.columns; column += STEP) {
        sums.load(tile, column);
        for (int each = 0; each < ROWS; each++) {
            Pair value = activate_times<T, A>(T::load(gate + each * tile.gate_stride + column),
                                              T::load(up + each * tile.up_stride + column));
            T::store(out + each * tile.out_stride + column, value);
            sums.add(value);
        }
        sums.store(tile, column);
    }
    if (int64_t count = tile.columns - column) {  // sums are loaded whole: their memory is padded
        sums.load(tile, column);
        for (int each = 0; each < ROWS; each++) {
            Pair value =
                activate_times<T, A>(load_first<T>(gate + each * tile.gate_stride + column, count),
                                     load_first<T>(up + each * tile.up_stride + column, count));
            store_first<T>(out + each * tile.out_stride + column, value, count);
            sums.add(value);
        }
        sums.store(tile, column);
    }
}

// Four rows at a time where all of them count; otherwise one by one, and a row that does not count
// gets its output without statistics.
template <class T, Activation A, int NUM>
inline void forward_all_rows(const ForwardTile &tile) {
    constexpr int ROWS = NUM ? 4 : 1;
    int64_t row = 0;
    while (row < tile.rows) {
        bool together = row + ROWS <= tile.rows;
        for (int each = 0; together && tile.mask && each < ROWS; each++)
            together = tile.mask[row + each];
        if (together) {
            forward_rows<T, A, NUM, ROWS>(tile, row);
            row += ROWS;
        } else {
            if (tile.mask && !tile.mask[row]) forward_rows<T, A, 0, 1>(tile, row);
            else forward_rows<T, A, NUM, 1>(tile, row);
            row++;
        }
    }
}

template <class T, Activation A>
void forward_tile(const ForwardTile &tile) {
    if (!tile.square) return forward_all_rows<T, A, 0>(tile);
    if (!tile.sum) forward_all_rows<T, A, 1>(tile);
    else forward_all_rows<T, A, 2>(tile);
    for (float *sums : {tile.square, tile.sum, tile.absolute, tile.maximum})
        for (int64_t column = 0; sums && column < tile.columns; column += STEP)
            T::sort(sums + column);
}

template <class T, Activation A>
inline void gradients(Float grad, Float gate, Float up, Float &to_gate, Float &to_up) {
    Float value, slope;
    activate_with_slope<T, A>(gate, value, slope);
    to_gate = T::rounded(grad * up * slope);
    to_up = T::rounded(grad * value);
}

template <class T, Activation A>
void backward_tile(const BackwardTile &tile) {
    typedef typename T::Element Element;
    for (int64_t row = 0; row < tile.rows; row++) {
        const Element *grad = static_cast<const Element *>(tile.grad) + row * tile.grad_stride;
        const Element *gate = static_cast<const Element *>(tile.gate) + row * tile.gate_stride;
        const Element *up = static_cast<const Element *>(tile.up) + row * tile.up_stride;
        Element *grad_gate = static_cast<Element *>(tile.grad_gate) + row * tile.grad_gate_stride;
        Element *grad_up = static_cast<Element *>(tile.grad_up) + row * tile.grad_up_stride;
        for (int64_t column = 0; column < tile.columns; column += STEP) {
            int64_t count = tile.columns - column;
            bool whole = count >= STEP;
            Pair g = whole ? T::load(grad + column) : load_first<T>(grad + column, count);
            Pair x = whole ? T::load(gate + column) : load_first<T>(gate + column, count);
            Pair u = whole ? T::load(up + column) : load_first<T>(up + column, count);
            Pair to_gate, to_up;
            gradients<T, A>(g.first, x.first, u.first, to_gate.first, to_up.first);
            gradients<T, A>(g.second, x.second, u.second, to_gate.second, to_up.second);
            if (whole) {
                T::store(grad_gate + column, to_gate);
                T::store(grad_up + column, to_up);
            } else {
                store_first<T>(grad_gate + column, to_gate, count);
                store_first<T>(grad_up + column, to_up, count);
            }
        }
    }
}

inline double total(Float value) {
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += value[lane];
    return sum;
}

template <class T>
void residual_tile(const ResidualTile &tile) {
    typedef typename T::Element Element;
    for (int64_t row = 0; row < tile.rows; row++) {
        if (tile.mask && !tile.mask[row]) continue;
        const Element *before =
            static_cast<const Element *>(tile.before) + row * tile.before_stride;
        const Element *after = static_cast<const Element *>(tile.after) + row * tile.after_stride;
        Float change = {}, dot = {}, norm_before = {}, norm_after = {};
        auto add = [&](Float b, Float a) {
            change += (a - b) * (a - b);
            dot += a * b;
            norm_before += b * b;
            norm_after += a * a;
        };
        for (int64_t column = 0; column < tile.columns; column += STEP) {
            int64_t count = tile.columns - column;
            Pair b =
                count >= STEP ? T::load(before + column) : load_first<T>(before + column, count);
            Pair a = count >= STEP ? T::load(after + column) : load_first<T>(after + column, count);
            add(b.first, a.first);
            add(b.second, a.second);
        }
        double squared = total(change), product = total(norm_before) * total(norm_after);
        tile.sums[0] += std::sqrt(squared);
        tile.sums[1] += squared;
        // A zero vector has no direction: its cosine counts as 0. NaN comes through.
        tile.sums[2] += product == 0 ? 0 : total(dot) / std::sqrt(product);
    }
}

// A non-temporal store of a vector, past the caches; ``to`` is aligned to its size.
inline void stream(char *to, Float vector) {
#if !defined(__SSE2__)
    std::memcpy(to, &vector, sizeof vector);
#elif PTL_BYTES == 64
    _mm512_stream_ps(reinterpret_cast<float *>(to), vector);
#elif PTL_BYTES == 32
    _mm256_stream_ps(reinterpret_cast<float *>(to), vector);
#else
    _mm_stream_ps(reinterpret_cast<float *>(to), vector);
#endif
}

// Copy with non-temporal stores of whole cache lines: a line that is written whole need not be read
// from memory first. What is before the first and after the last whole line is copied as usual.
inline void copy_past_caches(char *to, const char *from, int64_t bytes) {
    const int64_t before = -reinterpret_cast<intptr_t>(to) & (LINE - 1),
                  head = before < bytes ? before : bytes;
    std::memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= LINE; bytes -= LINE, to += LINE, from += LINE)
        for (int64_t part = 0; part < LINE; part += PTL_BYTES)
            stream(to + part, read<Float>(from + part));
    std::memcpy(to, from, bytes);
}

// Where a move is in the numbering of Kernels::move_rows: its tensor, and its number in it.
struct Cursor {
    const RowMoves &moves;
    int64_t tensor, move;
    const int64_t *sources, *destinations;
    char *base;

    Cursor(const RowMoves &all, int64_t index)
        : moves(all), tensor(index / all.max_moves), move(index % all.max_moves) {
        enter();
    }

    void enter() {
        const int64_t layer = tensor % moves.layers;
        sources = moves.sources + layer * moves.max_moves,
        destinations = moves.destinations + layer * moves.max_moves;
        base = static_cast<char *>(moves.tensors[tensor]);
    }

    // There must be a next move.
    void next() {
        if (++move < moves.max_moves) return;
        move = 0, tensor++;
        enter();
    }

    bool is_move() const { return sources[move] >= 0; }
    char *from() const { return base + sources[move] * moves.row_bytes; }
    char *to() const { return base + destinations[move] * moves.row_bytes; }
};

// Past the caches, both rows of a move are prefetched ROWS_AHEAD moves early. The holes too, though
// nothing is read there: each lies in a page of its own, whose address is translated by then.
void move_rows(const RowMoves &moves, int64_t first, int64_t count) {
    Cursor here(moves, first), ahead(moves, first);
    int64_t asked = 0;
    for (int64_t index = 0; index < count; index++) {
        for (; moves.past_caches && asked < count && asked <= index + ROWS_AHEAD; asked++) {
            if (asked) ahead.next();
            if (!ahead.is_move()) continue;
            __builtin_prefetch(ahead.from());
            __builtin_prefetch(ahead.to());
        }
        if (index) here.next();
        if (!here.is_move()) continue;
        if (moves.past_caches) copy_past_caches(here.to(), here.from(), moves.row_bytes);
        else std::memcpy(here.to(), here.from(), moves.row_bytes);
    }
#if defined(__SSE2__)
    _mm_sfence();  // makes what was streamed visible to other threads
#endif
}

template <template <class, Activation> class Run, class Tile>
void choose(const Tile &tile, Dtype dtype, Activation activation) {
    if (dtype == FLOAT32) {
        if (activation == SILU) Run<Float32, SILU>::run(tile);
        else if (activation == GELU_TANH) Run<Float32, GELU_TANH>::run(tile);
        else Run<Float32, NONE>::run(tile);
    } else {
        if (activation == SILU) Run<BFloat16, SILU>::run(tile);
        else if (activation == GELU_TANH) Run<BFloat16, GELU_TANH>::run(tile);
        else Run<BFloat16, NONE>::run(tile);
    }
}

template <class T, Activation A>
struct Forward {
    static void run(const ForwardTile &tile) { forward_tile<T, A>(tile); }
};

template <class T, Activation A>
struct Backward {
    static void run(const BackwardTile &tile) { backward_tile<T, A>(tile); }
};

void forward(const ForwardTile &tile, Dtype dtype, Activation activation) {
    choose<Forward>(tile, dtype, activation);
}

void backward(const BackwardTile &tile, Dtype dtype, Activation activation) {
    choose<Backward>(tile, dtype, activation);
}

void residual(const ResidualTile &tile, Dtype dtype) {
    if (dtype == FLOAT32) residual_tile<Float32>(tile);
    else residual_tile<BFloat16>(tile);
}

}  // namespace

const ptl::Kernels ptl::PTL_KERNELS = {PTL_NAME, forward, backward, residual, move_rows};
