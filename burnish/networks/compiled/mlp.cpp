// The pass of a small MLP without gradients, float32, in blocks of rows that stay in a core's cache from the first
// layer to the last, and a denoising chain of such passes. Compiled and called by mlp.py; layouts are described
// there.
//
// A product holds TILE_ROWS x WIDTH sums in registers. Every number is summed in the same order whatever the number
// of rows, blocks and threads, so the result of a row depends on that row alone.
//
// Where a product and a sum are rounded once, together, `fused` says so; everything else is rounded operation by
// operation (-ffp-contract=off). A compiler that chooses does so in one instance of a template and not in another, by
// its tuning. So every compiler gives the same bits, and every instruction set that has fused operations, too.
//
// Where the processor has arithmetic for float16 (AVX-512 FP16), the products between hidden layers can be done in it,
// twice as fast.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16, TILE_ROWS = 12;
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
constexpr int LANES = 8, TILE_ROWS = 6;
#elif defined(__aarch64__)
#include <arm_neon.h>
constexpr int LANES = 4, TILE_ROWS = 6;
#else
constexpr int LANES = 4, TILE_ROWS = 6;
#endif
constexpr int VECTORS = 2, WIDTH = VECTORS * LANES;
constexpr long BLOCK_ROWS = 96;

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

enum Activation { RELU, MISH };

static inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
static inline Vector all(float x) { return x - Vector{}; }  // -0 stays -0
static inline Vector at_least(Vector x, float bound) { return x > bound ? x : all(bound); }

// a b + c, rounded once; where there is no such operation, twice
static inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// e^x for x <= 88, 0 below -87: 2^n e^r with |r| <= log(2) / 2, Cephes' polynomial (relative error 2e-7)
static inline Vector exponential(Vector x) {
    const float round = 12582912.f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
    x = at_least(x, -87.f);
    Vector shifted = fused(x, all(1.44269504088896341f), all(round));
    Vector n = shifted - round;
    Vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
    Vector p = fused(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + 1.f;
    Integers power = ((Integers)shifted << 23) + 0x3f800000;
    return p * (Vector)power;
}

// NaN stays NaN
static inline Vector relu(Vector x) { return x < 0.f ? Vector{} : x; }

// x tanh(log(1 + e^x)) = x n / (n + 2), n = y^2 + 2 y, y = e^x; beyond 30 float32 cannot tell it from x
static inline Vector mish(Vector x) {
    Vector y = exponential(x > 30.f ? all(30.f) : x);
    Vector n = fused(y, y, 2.f * y);
    return x * (n / (n + 2.f));
}

struct Matrix {  // row-major; stride 0: one row for all
    float* data;
    long stride;
    float* row(long i) const { return data + i * stride; }
    Matrix below(long i) const { return {row(i), stride}; }
};

struct Float32 {
    typedef float Number;
    static constexpr int PANEL = WIDTH;

    static void put(float* to, Vector numbers) { store(to, numbers); }

    // out (ROWS x PANEL) = from (ROWS x PANEL) + a (ROWS x n_in) * panel (n_in x PANEL), for its first USED vectors
    template <int ROWS, int USED>
    static inline void tile(Matrix a, long n_in, const float* panel, Matrix from, Matrix out) {
        Vector sum[ROWS][USED];
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < USED; j++) sum[i][j] = load(from.row(i) + j * LANES);
        for (long k = 0; k < n_in; k++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < USED; j++)
                    sum[i][j] = fused(all(a.row(i)[k]), load(panel + k * PANEL + j * LANES), sum[i][j]);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < USED; j++) store(out.row(i) + j * LANES, sum[i][j]);
    }
};

#if defined(__AVX512FP16__) && defined(__AVX512F__)
struct Float16 {
    typedef _Float16 Number;
    typedef Number Wide __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
    typedef int32_t Word __attribute__((may_alias));
    static constexpr int PANEL = 2 * WIDTH;
    static constexpr long SUMMED = 64;  // so many products are added up in float16, then their sum in float32

    static inline Wide fused(Wide a, Wide b, Wide c) {
        return (Wide)_mm512_fmadd_ph((__m512h)a, (__m512h)b, (__m512h)c);
    }

    // a's numbers are stored twice each, in the memory of a float: so a vector of them is filled by a load alone
    static void put(float* to, Vector numbers) {
        const Integers bits = (Integers)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtxps_ph((__m512)numbers));
        store(to, (Vector)(bits << 16 | bits));
    }

    template <int ROWS, int USED>
    static inline void tile(Matrix a, long n_in, const Number* panel, Matrix from, Matrix out) {
        for (long start = 0; start < n_in; start += SUMMED) {
            Wide sum[ROWS][USED] = {};
            for (long k = start; k < std::min(n_in, start + SUMMED); k++)
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < USED; j++)
                        sum[i][j] = fused((Wide)(Integers{} + reinterpret_cast<const Word*>(a.row(i))[k]),
                                          *reinterpret_cast<const Wide*>(panel + k * PANEL + j * 2 * LANES), sum[i][j]);
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < USED; j++) {
                    const float* before = (start ? out : from).row(i) + j * 2 * LANES;
                    float* after = out.row(i) + j * 2 * LANES;
                    const __m512i both = (__m512i)sum[i][j];
                    const __m256i parts[] = {_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1)};
                    for (int part = 0; part < 2; part++, before += LANES, after += LANES)
                        store(after, load(before) + (Vector)_mm512_cvtxph_ps((__m256h)parts[part]));
                }
        }
    }
};
constexpr bool HAS_FLOAT16 = true;
#else
typedef Float32 Float16;  // never used
constexpr bool HAS_FLOAT16 = false;
#endif

template <class Kind, int USED, int ROWS>
static inline void some_rows(long rows, Matrix a, long n_in, const typename Kind::Number* panel, Matrix from,
                             Matrix out) {
    if (rows == ROWS) return Kind::template tile<ROWS, USED>(a, n_in, panel, from, out);
    if constexpr (ROWS > 1) some_rows<Kind, USED, ROWS - 1>(rows, a, n_in, panel, from, out);
}

template <class Kind, int USED>
static void panel_product(Matrix a, long rows, long n_in, const typename Kind::Number* panel, Matrix from, Matrix out) {
    for (long r = 0, n; r < rows; r += n) {
        const long left = rows - r;
        n = std::min<long>(left, TILE_ROWS);
        // the last two alike: 4 rows are too few sums to keep the processor busy (8 and 8 instead of 12 and 4)
        if (left > n && left < 2 * TILE_ROWS && left > 8) n = (left + 1) / 2;
        some_rows<Kind, USED, TILE_ROWS>(n, a.below(r), n_in, panel, from.below(r), out.below(r));
    }
}

// out (rows x n_out, in memory for whole panels) = from (of its size) + a (rows x n_in) * packed (panels x n_in x PANEL)
template <class Kind>
static void product(Matrix a, long rows, long n_in, const typename Kind::Number* packed, long n_out, Matrix from,
                    Matrix out) {
    constexpr int P = Kind::PANEL;
    for (long p = 0; p < n_out; p += P, packed += n_in * P, from.data += P, out.data += P)
        (n_out - p > P / 2 ? panel_product<Kind, VECTORS> : panel_product<Kind, VECTORS / 2>)(a, rows, n_in, packed,
                                                                                            from, out);
}

struct Network {
    const float *first, *hidden, *bias, *last, *last_bias;  // if half, the first half of each hidden one is its float16
    long n_in, dim, n_hidden, n_out;
    int residual, layer_norm, activation, half;
};

// to (rows x columns) += numbers (of its size)
static void add(Matrix to, long rows, long columns, Matrix numbers) {
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < columns; j += LANES) store(to.row(r) + j, load(to.row(r) + j) + load(numbers.row(r) + j));
}

// A row's sum in so many parts, whatever a vector's length, and the parts' sum from the first to the last.
constexpr int SUMS = 16, SUM_VECTORS = SUMS / LANES;

template <class Term>
static inline float sum_over(long n, Term term) {
    Vector sums[SUM_VECTORS] = {};
    for (long j = 0; j < n; j += SUMS)
        for (int i = 0; i < SUM_VECTORS && j + i * LANES < n; i++) sums[i] = term(j + i * LANES, sums[i]);
    float total = 0;
    for (int i = 0; i < SUMS; i++) total += sums[i / LANES][i % LANES];
    return total;
}

// to = activation(x) or activation(layer_norm(x)), for a product of this kind
template <class Kind>
static void activate(const Network& net, Matrix x, long rows, Matrix to) {
    for (long r = 0; r < rows; r++) {
        float mean = 0, scale = 1;
        if (net.layer_norm) {
            const float* row = x.row(r);
            mean = sum_over(net.dim, [=](long j, Vector sum) { return sum + load(row + j); }) / net.dim;
            const float squares = sum_over(net.dim, [=](long j, Vector sum) {
                const Vector difference = load(row + j) - mean;
                return fused(difference, difference, sum);
            });
            scale = 1 / std::sqrt(squares / net.dim + 1e-5f);
        }
        for (long j = 0; j < net.dim; j += LANES) {
            Vector v = load(x.row(r) + j);
            if (net.layer_norm) v = (v - mean) * scale;
            Kind::put(to.row(r) + j, net.activation == RELU ? relu(v) : mish(v));
        }
    }
}

// out = from + hidden layer l's weights * act(x); a is memory of its size
template <class Kind>
static void hidden(const Network& net, long l, long rows, Matrix x, Matrix a, Matrix from, Matrix out) {
    const auto weights = reinterpret_cast<const typename Kind::Number*>(net.hidden + l * net.dim * net.dim);
    activate<Kind>(net, x, rows, a);
    product<Kind>(a, rows, net.dim, weights, net.dim, from, out);
}

// From the first layer's sums in h (rows x dim) to the last layer's in out; a and b are memory of h's size.
static void layers(const Network& net, long rows, Matrix h, Matrix a, Matrix b, Matrix out) {
    for (long l = 0; l < net.n_hidden; l++) {
        const Matrix bias{const_cast<float*>(net.bias) + l * net.dim, 0};
        Matrix x = h, from = bias, to = h;  // h = W act(h) + bias
        if (net.residual && l % 2 == 0) to = b;  // b = W1 act(h) + bias
        if (net.residual && l % 2) {  // h = h + W2 act(b) + bias
            add(h, rows, net.dim, bias);
            x = b, from = h;
        }
        (net.half ? hidden<Float16> : hidden<Float32>)(net, l, rows, x, a, from, to);
    }
    activate<Float32>(net, h, rows, a);
    const Matrix bias{const_cast<float*>(net.last_bias), 0};
    product<Float32>(a, rows, net.dim, net.last, net.n_out, bias, out);
}

extern "C" int burnish_panel_width() { return WIDTH; }
extern "C" int burnish_has_float16() { return HAS_FLOAT16; }

template <class Kind>
static void pack(const float* weight, long n_in, long n_out, long in_stride, long out_stride,
                 typename Kind::Number* panels) {
    constexpr int P = Kind::PANEL;
    for (long p = 0; p < n_out; p += P, panels += n_in * P)
        for (long part = p; part < p + P; part += LANES)  // a vector is gathered at a time
            for (long k = 0; k < n_in; k++) {
                typename Kind::Number* to = panels + k * P + part - p;
                const float* from = weight + k * in_stride + part * out_stride;
                if (part + LANES <= n_out)
                    for (long j = 0; j < LANES; j++) to[j] = from[j * out_stride];
                else
                    for (long j = 0; j < LANES; j++) to[j] = part + j < n_out ? from[j * out_stride] : 0.f;
            }
}

// panels (n_out / PANEL, rounded up, x n_in x PANEL) of weight (n_in x n_out by its strides), zero behind n_out
extern "C" void burnish_pack(const float* weight, long n_in, long n_out, long in_stride, long out_stride, void* panels,
                             int half) {
    if (half)
        pack<Float16>(weight, n_in, n_out, in_stride, out_stride, static_cast<Float16::Number*>(panels));
    else
        pack<Float32>(weight, n_in, n_out, in_stride, out_stride, static_cast<float*>(panels));
}

// Another number for other contents of `count` arrays, with overwhelming probability; for contents that differ in one
// word always.
extern "C" uint64_t burnish_digest(const uint32_t* const* arrays, const long* sizes, long count) {
    constexpr long COLUMNS = 128;
    uint64_t digest = 0;
    for (long a = 0; a < count; a++) {
        const uint32_t* words = arrays[a];
        const long n = sizes[a];
        uint32_t columns[COLUMNS] = {};
        for (long i = 0; i < n; i += COLUMNS)
            for (long j = 0; j < std::min(COLUMNS, n - i); j++) {
                uint32_t mixed = (columns[j] ^ words[i + j]) * 0x9e3779b1u;
                columns[j] = mixed << 13 | mixed >> 19;  // else changes of a sign, the highest bit, would cancel in pairs
            }
        digest += n;
        for (uint32_t column : columns) digest = (digest ^ column) * 0x9e3779b97f4a7c15u, digest ^= digest >> 29;
    }
    return digest;
}

// What a thread works with on a block of rows. Kept: fresh pages would cost as much as a small product.
struct Memory {
    Matrix h, a, b, out;
};

static Memory memory_for(const Network& net, long rows) {
    static thread_local std::vector<float> memory;
    const long padded_out = (net.n_out + WIDTH - 1) / WIDTH * WIDTH;
    memory.resize(std::max<size_t>(memory.size(), rows * (3 * net.dim + padded_out)));
    const Matrix h{memory.data(), net.dim}, a{h.row(rows), net.dim}, b{a.row(rows), net.dim};
    return {h, a, b, {b.row(rows), padded_out}};
}

static long block_size(long rows, int threads) {
    return std::max(1L, std::min(BLOCK_ROWS, (rows + threads - 1) / threads));
}

// memory.out (n x n_out) of x (n x n_in), rows start .. start + n of all; given and repeat as below, shift (dim numbers,
// or null) is added to every row of given
static void pass(const Network& net, const float* x, long start, long n, const float* given, long repeat,
                 const float* shift, const Memory& memory) {
    const Matrix h = memory.h;
    for (long r = 0; r < n; r++) {
        const float* row = given + (start + r) / repeat * net.dim;
        std::copy(row, row + net.dim, h.row(r));
    }
    if (shift) add(h, n, net.dim, {const_cast<float*>(shift), 0});
    product<Float32>({const_cast<float*>(x), net.n_in}, n, net.n_in, net.first, net.dim, h, h);
    layers(net, n, h, memory.a, memory.b, memory.out);
}

// out (rows x n_out) for x (rows x n_in). The first layer's sum is first x + given, with one row of given (dim numbers)
// for every `repeat` rows of x.
extern "C" void burnish_mlp(const Network* network, const float* x, long rows, const float* given, long repeat,
                            float* out, int threads) {
    const Network net = *network;
    const long size = block_size(rows, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows > size)
    for (long start = 0; start < rows; start += size) {
        const long n = std::min(size, rows - start);
        const Memory memory = memory_for(net, size);
        pass(net, x + start * net.n_in, start, n, given, repeat, nullptr, memory);
        for (long r = 0; r < n; r++)
            std::copy(memory.out.row(r), memory.out.row(r) + net.n_out, out + (start + r) * net.n_out);
    }
}

struct Transition {
    float from_x, from_output, divisor, clip;  // x0 = (from_x x - from_output output) / divisor, within +-clip
    float coef_x0, coef_x;                     // mean = coef_x0 x0 + coef_x x
};

// next (n numbers) = mean + noise, rounded operation by operation, as torch does it.
static void transition(const Transition& t, long n, const float* output, const float* x, const float* noise,
                       float* mean, float* next) {
    for (long j = 0; j < n; j++) {
        float x0 = (t.from_x * x[j] - t.from_output * output[j]) / t.divisor;
        x0 = x0 < -t.clip ? -t.clip : x0;  // NaN stays NaN
        x0 = x0 > t.clip ? t.clip : x0;
        const float m = t.coef_x0 * x0 + t.coef_x * x[j];
        if (mean) mean[j] = m;
        next[j] = m + noise[j];
    }
}

// Transitions of a chain, noisiest first: x (rows x n_in) becomes next by the network's output at x, with a row of
// shifts (dim numbers) and of noise (rows x n_in) for each. x has `kept` = 1: the start, and memory for what follows
// each transition; 0: the start, which is replaced. mean: rows x n_in for each transition, or null. `given` as above.
extern "C" void burnish_chain(const Network* network, const Transition* transitions, long n_transitions, long rows,
                              const float* given, long repeat, const float* shifts, const float* noise, float* x,
                              int kept, float* mean, int threads) {
    const Network net = *network;
    const long size = block_size(rows, threads), step = rows * net.n_in;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows > size)
    for (long start = 0; start < rows; start += size) {
        const long n = std::min(size, rows - start), at = start * net.n_in;
        const Memory memory = memory_for(net, size);
        for (long i = 0; i < n_transitions; i++) {
            float *now = x + kept * i * step + at, *next = now + kept * step;
            pass(net, now, start, n, given, repeat, shifts + i * net.dim, memory);
            for (long r = 0; r < n; r++) {
                const long j = r * net.n_in;
                transition(transitions[i], net.n_in, memory.out.row(r), now + j, noise + i * step + at + j,
                           mean ? mean + i * step + at + j : nullptr, next + j);
            }
        }
    }
}
