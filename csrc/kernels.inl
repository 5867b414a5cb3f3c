// The kernels, written once with the compiler's vector types and compiled for each instruction set. The including file defines
// PTL_KERNELS (the table's name), PTL_NAME and PTL_BYTES (a vector's size), and sets the compiler's target around this file.

namespace {

using namespace ptl;

constexpr int LANES = PTL_BYTES / 4;
typedef float Float __attribute__((vector_size(PTL_BYTES)));
typedef int32_t Int __attribute__((vector_size(PTL_BYTES)));
typedef uint32_t Unsigned __attribute__((vector_size(PTL_BYTES)));
typedef uint16_t Half __attribute__((vector_size(PTL_BYTES / 2)));

template <typename To, typename From>
inline To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline Float broadcast(float value) { return value - Float{}; }

// A type of element: load LANES of them (the first `count`, where fewer are left), and store them rounded.
struct Float32 {
    typedef float Element;
    static Float load(const Element *from) { return bits<Float>(*reinterpret_cast<const Element(*)[LANES]>(from)); }
    static Float rounded(Float value) { return value; }
    static void store(Element *to, Float value) { std::memcpy(to, &value, sizeof value); }
};

struct BFloat16 {
    typedef uint16_t Element;
    static Float load(const Element *from) {
        Half half;
        std::memcpy(&half, from, sizeof half);
        return bits<Float>(__builtin_convertvector(half, Unsigned) << 16);
    }
    // To nearest, ties to even. A NaN stays one: it comes from a bfloat16 or from arithmetic, so its low bits are zero and no carry
    // reaches its exponent.
    static Float rounded(Float value) {
        Unsigned raw = bits<Unsigned>(value);
        return bits<Float>((raw + 0x7fffu + ((raw >> 16) & 1u)) & 0xffff0000u);
    }
    static void store(Element *to, Float value) {
        Half half = __builtin_convertvector(bits<Unsigned>(value) >> 16, Half);
        std::memcpy(to, &half, sizeof half);
    }
};

template <class T>
inline Float load_first(const typename T::Element *from, int64_t count) {
    typename T::Element padded[LANES] = {};
    std::memcpy(padded, from, count * sizeof *from);
    return T::load(padded);
}

template <class T>
inline void store_first(typename T::Element *to, Float value, int64_t count) {
    typename T::Element padded[LANES];
    T::store(padded, value);
    std::memcpy(to, padded, count * sizeof *to);
}

// exp(x) to 2 units in the last place, for x up to 87: x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial in r. Saturates below
// -87; the comparison leaves a NaN as it is.
inline Float exponential(Float x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold
    Float shifted = x * 1.44269504f + magic;
    Float n = shifted - magic;
    Float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in few bits
    Float p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Int exponent = bits<Int>(shifted) - bits<int32_t>(magic) + 127;
    return p * bits<Float>(exponent << 23);
}

inline Float sigmoid(Float x) {
    Float share = 1.0f / (1.0f + exponential(-x));
    return x < -87.0f ? broadcast(0.0f) : share;  // beyond the exponential's range
}

constexpr float GELU_SCALE = 1.5957691216f;  // 2 sqrt(2 / pi): 0.5 (1 + tanh(y)) is sigmoid(2 y)
constexpr float GELU_CUBIC = 0.044715f;

template <Activation A>
inline Float activate(Float x) {
    if (A == NONE) return x;
    Float argument = A == SILU ? x : GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    return x * sigmoid(argument);
}

template <Activation A>
inline void activate_with_slope(Float x, Float &value, Float &slope) {
    if (A == NONE) {
        value = x;
        slope = broadcast(1.0f);
        return;
    }
    Float s = sigmoid(A == SILU ? x : GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    Float inner = A == SILU ? x : GELU_SCALE * (x + 3 * GELU_CUBIC * x * x * x);  // x times the argument's slope
    Float bend = s * (1.0f - s);
    value = x * s;
    slope = s + (bend == 0.0f ? broadcast(0.0f) : bend * inner);  // inner may be infinite there
}

inline void add_to(float *sums, Float value) {
    Float total = bits<Float>(*reinterpret_cast<float(*)[LANES]>(sums)) + value;
    std::memcpy(sums, &total, sizeof total);
}

inline void raise_to(float *largest, Float value) {
    Float before = bits<Float>(*reinterpret_cast<float(*)[LANES]>(largest));
    Float after = value > before ? value : before;  // drops a NaN, which the sum of magnitudes keeps
    std::memcpy(largest, &after, sizeof after);
}

struct Statistics {
    float *square, *sum, *absolute, *maximum;
    template <int NUM>
    void add(int64_t column, Float value) const {
        if (NUM >= 1) add_to(square + column, value * value);
        if (NUM >= 2) {
            Float magnitude = bits<Float>(bits<Unsigned>(value) & 0x7fffffffu);
            add_to(sum + column, value);
            add_to(absolute + column, magnitude);
            raise_to(maximum + column, magnitude);
        }
    }
};

// NUM: 0 no statistics, 1 squares, 2 all of them.
template <class T, Activation A, int NUM>
inline void forward_row(const typename T::Element *gate, const typename T::Element *up, typename T::Element *out, int64_t columns,
                        const Statistics &statistics) {
    int64_t column = 0;
    for (; column + LANES <= columns; column += LANES) {
        Float value = T::rounded(activate<A>(T::load(gate + column)) * T::load(up + column));
        T::store(out + column, value);
        statistics.add<NUM>(column, value);
    }
    if (int64_t count = columns - column) {
        Float value = T::rounded(activate<A>(load_first<T>(gate + column, count)) * load_first<T>(up + column, count));
        store_first<T>(out + column, value, count);
        statistics.add<NUM>(column, value);  // the sums' memory is padded to whole vectors
    }
}

template <class T, Activation A>
void forward_tile(const ForwardTile &tile) {
    typedef typename T::Element Element;
    const Statistics statistics = {tile.square, tile.sum, tile.absolute, tile.maximum};
    for (int64_t row = 0; row < tile.rows; row++) {
        const Element *gate = static_cast<const Element *>(tile.gate) + row * tile.gate_stride;
        const Element *up = static_cast<const Element *>(tile.up) + row * tile.up_stride;
        Element *out = static_cast<Element *>(tile.out) + row * tile.out_stride;
        if (!tile.square || (tile.mask && !tile.mask[row]))
            forward_row<T, A, 0>(gate, up, out, tile.columns, statistics);
        else if (!tile.sum)
            forward_row<T, A, 1>(gate, up, out, tile.columns, statistics);
        else
            forward_row<T, A, 2>(gate, up, out, tile.columns, statistics);
    }
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
        for (int64_t column = 0; column < tile.columns; column += LANES) {
            int64_t count = tile.columns - column;
            bool whole = count >= LANES;
            Float g = whole ? T::load(grad + column) : load_first<T>(grad + column, count);
            Float x = whole ? T::load(gate + column) : load_first<T>(gate + column, count);
            Float u = whole ? T::load(up + column) : load_first<T>(up + column, count);
            Float value, slope;
            activate_with_slope<A>(x, value, slope);
            Float to_gate = T::rounded(g * u * slope), to_up = T::rounded(g * value);
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
        const Element *before = static_cast<const Element *>(tile.before) + row * tile.before_stride;
        const Element *after = static_cast<const Element *>(tile.after) + row * tile.after_stride;
        Float change = {}, dot = {}, norm_before = {}, norm_after = {};
        for (int64_t column = 0; column < tile.columns; column += LANES) {
            int64_t count = tile.columns - column;
            Float b = count >= LANES ? T::load(before + column) : load_first<T>(before + column, count);
            Float a = count >= LANES ? T::load(after + column) : load_first<T>(after + column, count);
            change += (a - b) * (a - b);
            dot += a * b;
            norm_before += b * b;
            norm_after += a * a;
        }
        double squared = total(change), product = total(norm_before) * total(norm_after);
        tile.sums[0] += std::sqrt(squared);
        tile.sums[1] += squared;
        tile.sums[2] += product == 0 ? 0 : total(dot) / std::sqrt(product);  // a zero vector has no direction; NaN comes through
    }
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

void forward(const ForwardTile &tile, Dtype dtype, Activation activation) { choose<Forward>(tile, dtype, activation); }

void backward(const BackwardTile &tile, Dtype dtype, Activation activation) { choose<Backward>(tile, dtype, activation); }

void residual(const ResidualTile &tile, Dtype dtype) {
    if (dtype == FLOAT32) residual_tile<Float32>(tile);
    else residual_tile<BFloat16>(tile);
}

}  // namespace

const ptl::Kernels ptl::PTL_KERNELS = {PTL_NAME, forward, backward, residual};
