// The score of Fourier integral attention and its gradient on a tile of queries and keys, vectorised and multi-threaded.
//
// score(i, j) = sum over components c of ln |sinc(u_c)|, with u_c = |a_ic - b_jc| in one channel, or in CHANNELS of them
// (2: the pairs that RoPE rotates). Three decisions (Nguyen et al. 2022, arXiv:2206.00206, has the formula):
//
// - A logarithm belongs to a pair, not to a component: components are multiplied, and after eight of them the product's
//   exponent is put aside, so nothing underflows whatever the width.
// - Where every |u| of eight components in a block is below 3, and mostly it is, sinc is (1 - u^2 / pi^2), multiplied, times
//   what is the power of two of a polynomial, added. Elsewhere |sin u| comes from u less the nearest multiple of pi, and products of sines and of u are kept apart.
// - The gradient's factor h(u) = (cot u - 1/u) / u has its first pole at pi; times pi^2 - u^2 it is a polynomial below 3.
//
// Tiles are [rows][columns] with unit stride over columns; keys are [channels][columns]. GCC's and Clang's vector types.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

namespace {

constexpr int ROWS = 4;            // queries that share the keys that are loaded
constexpr int GROUP = 8;           // components between two looks at the exponent
constexpr float NEAR = 3.0f;       // below it the polynomials of u^2 hold
constexpr float PI_HIGH = 3.140625f, PI_LOW = 9.675025939941e-4f, PI_LAST = 1.50995802e-7f;  // their sum is pi
constexpr float HALF_PI = 1.57079637f, INVERSE_PI = 0.318309886184f, PI_SQUARE = 9.86960440109f;
constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

inline vec all(float x) { return x - vec{}; }
inline vec load(const float* p) {
    vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }
inline float sum(vec x) {
    for (int half = LANES / 2; half; half /= 2) {
        vec y{};
        for (int n = 0; n < half; ++n) y[n] = x[n + half];
        x += y;
    }
    return x[0];
}

// Rows that start where a vector may be loaded at once.
template <typename T>
struct Aligned {
    using value_type = T;
    T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
using Row = std::vector<float, Aligned<float>>;

// log2 of sinc(u) / (1 - w / pi^2), for |u| < 3, w = u^2, to w * 2e-8; small where u is, so sums of it stay exact.
inline vec rest_near(vec w) {
    vec p = -5.12127690051e-9f * w - 1.37019804979e-7f;
    p = p * w - 8.73568883222e-6f;
    p = p * w - 6.09562126939e-4f;
    return (p * w - 9.42736168592e-2f) * w;
}

// sin(r) / r for |r| <= pi / 2, w = r^2, to 4e-9.
inline vec sine(vec w) {
    vec p = 2.60496086309e-6f * w - 1.98089539653e-4f;
    p = p * w + 8.33304933101e-3f;
    p = p * w - 0.166666579133f;
    return p * w + 1.0f;
}

// cos(r) for |r| <= pi / 2, w = r^2, to 2e-10.
inline vec cosine(vec w) {
    vec p = -2.60491889505e-7f * w + 2.4760028073e-5f;
    p = p * w - 1.38883587169e-3f;
    p = p * w + 4.16666360387e-2f;
    p = p * w - 0.499999993522f;
    return p * w + 1.0f;
}

// h(u) (pi^2 - w) for |u| < 3, w = u^2, to 3e-7 (of 3.3).
inline vec slope_near(vec w) {
    vec p = 3.36178494382e-8f * w + 4.4461515981e-7f;
    p = p * w + 2.86184935116e-5f;
    p = p * w + 1.33194119183e-3f;
    p = p * w + 0.114010539413f;
    return p * w - 3.28986835293f;
}

// u less the nearest multiple of pi; `multiple` is that of pi. Beyond 1e7 floats are farther apart than the waves of a
// sine, and there is no such thing: then it is some number that a remainder can be, so that sinc is still small.
inline vec reduced(vec u, vec& multiple) {
    multiple = (u * INVERSE_PI + MAGIC) - MAGIC;
    vec r = u - multiple * PI_HIGH;
    r = r - multiple * PI_LOW - multiple * PI_LAST;
    r = r > HALF_PI ? all(HALF_PI) : r;
    return r < -HALF_PI ? all(-HALF_PI) : r;
}

// 1 / x to a unit in the last place or two; a division would take as long as all the rest.
inline vec inverse(vec x) {
#if defined(__AVX512F__)
    const vec y = (vec)_mm512_rcp14_ps((__m512)x);
#elif defined(__AVX__)
    const vec y = (vec)_mm256_rcp_ps((__m256)x);
#else
    return 1.0f / x;
#endif
#if defined(__AVX__)
    return y * (2.0f - x * y);
#endif
}

inline vec root(vec x) {
    vec y;
    for (int n = 0; n < LANES; ++n) y[n] = std::sqrt(x[n]);
    return y;
}

// Put the exponent of |x| aside; x keeps a mantissa in [1, 2). Zero gives 2^-127.
inline void aside(vec& x, ivec& exponent, int sign) {
    const ivec bits = (ivec)x & 0x7fffffff;
    exponent += sign * ((bits >> 23) - 127);
    x = (vec)((bits & 0x007fffff) | 0x3f800000);
}

// log2 of x in (1/2, 2).
inline vec log2_near(vec x) {
    const ivec high = x > 1.41421356f, low = x < 0.70710678f;
    x = high ? x * 0.5f : (low ? x * 2.0f : x);
    const vec whole = high ? all(1.0f) : (low ? all(-1.0f) : all(0.0f));
    const vec t = (x - 1.0f) / (x + 1.0f), w = t * t;
    vec p = w * (1.0f / 9) + 1.0f / 7;
    p = p * w + 0.2f;
    p = p * w + 1.0f / 3;
    p = p * w + 1.0f;
    return whole + p * t * 2.88539008178f;
}

// u^2 of a component, and the differences that it is made of.
template <int CHANNELS>
inline vec square(const float* q, const float* k, long stride, vec (&apart)[CHANNELS]) {
    vec w{};
    for (int n = 0; n < CHANNELS; ++n) {
        apart[n] = q[n] - load(k + n * stride);
        w = n ? w + apart[n] * apart[n] : apart[n] * apart[n];
    }
    return w;
}

template <int CHANNELS>
inline vec distance(vec w, const vec (&apart)[CHANNELS]) {
    return CHANNELS == 1 ? apart[0] : root(w);
}

// What a thread works with: the keys of a tile, their range, and what says that one of them is no number.
struct Keys {
    Row values, low, high, taint;
    long stride = 0;

    void pack(const float* k, long k_channel, long channels, long columns) {
        stride = (columns + LANES - 1) / LANES * LANES;
        values.assign(channels * stride, 0.0f);
        low.resize(channels);
        high.resize(channels);
        taint.assign(stride, 0.0f);
        for (long c = 0; c < channels; ++c) {
            const float* from = k + c * k_channel;
            float* to = values.data() + c * stride;
            float least = from[0], most = from[0];
            std::fill(to + columns, to + stride, from[columns - 1]);  // lanes that no one reads, but that are computed
            for (long j = 0; j < columns; ++j) {
                to[j] = from[j];
                least = std::min(least, from[j]);
                most = std::max(most, from[j]);
                taint[j] += 0.0f * from[j];
            }
            low[c] = least;
            high[c] = most;
        }
    }

    // Whether all |u| between some rows and these keys are below NEAR in components first to last; not with a NaN.
    template <int CHANNELS>
    bool near(const float* const* q, int rows, long first, long last) const {
        for (long c = first; c < last; ++c) {
            float square = 0;
            for (int n = 0; n < CHANNELS; ++n) {
                const long d = c * CHANNELS + n;
                float most = 0;
                for (int i = 0; i < rows; ++i) {
                    most = std::max(most, std::max(q[i][d] - low[d], high[d] - q[i][d]));
                    if (!std::isfinite(q[i][d])) return false;
                }
                square += most * most;
            }
            if (!(square < NEAR * NEAR)) return false;
        }
        return true;
    }
};

// One group of components multiplied into `over` (and `under`, where something is divided).
template <int CHANNELS, int N, bool CLOSE>
inline void multiply(const float* const* q, const Keys& keys, long j, long first, long last, vec* over, vec* under,
                     ivec* exponent, vec* rest) {
    vec part[N] = {};  // added to what is large once, not eight times
    if (!CLOSE)
        for (int i = 0; i < N; ++i) aside(over[i], exponent[i], 1);
    for (long c = first; c < last; ++c) {
        const float* k = keys.values.data() + c * CHANNELS * keys.stride + j;
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            vec apart[CHANNELS];
            const vec w = square<CHANNELS>(q[i] + c * CHANNELS, k, keys.stride, apart);
            if (CLOSE) {
                over[i] *= 1.0f - w * (1.0f / PI_SQUARE);
                part[i] += rest_near(w);
            } else {
                vec multiple;
                const vec u = distance<CHANNELS>(w, apart), r = reduced(u, multiple), s = sine(r * r);
                const ivec at_home = multiple == 0.0f;  // r is u, and sin(r) / u the polynomial, at 0 too
                over[i] *= at_home ? s : s * r;
                under[i] *= at_home ? all(1.0f) : u;
            }
        }
        if (!CLOSE && (c - first) % 4 == 3)
            for (int i = 0; i < N; ++i) aside(over[i], exponent[i], 1), aside(under[i], exponent[i], -1);
    }
    for (int i = 0; i < N; ++i) {
        rest[i] += part[i];
        // Close factors are above 0.08: 32 of them, after a mantissa, are still a float.
        if (!CLOSE || first / GROUP % 4 == 3) aside(over[i], exponent[i], 1);
        if (!CLOSE) aside(under[i], exponent[i], -1);
    }
}

// out[i][j] += rate[i] * log2 of the product over all components, for N rows.
template <int CHANNELS, int N>
void score_rows(float* const* out, const float* const* q, const Keys& keys, long components, long columns) {
    const long groups = (components + GROUP - 1) / GROUP;
    bool close[1024];
    const bool known = groups <= 1024;
    for (long g = 0; known && g < groups; ++g)
        close[g] = keys.near<CHANNELS>(q, N, g * GROUP, std::min((g + 1) * GROUP, components));
    float rate[N];
    for (int i = 0; i < N; ++i) {
        rate[i] = q[i][components * CHANNELS];
        for (long d = 0; d < components * CHANNELS; ++d) rate[i] += 0.0f * q[i][d];
    }
    for (long j = 0; j < columns; j += LANES) {
        vec over[N], under[N], rest[N];
        ivec exponent[N];
        for (int i = 0; i < N; ++i) over[i] = under[i] = all(1.0f), rest[i] = vec{}, exponent[i] = ivec{};
        for (long g = 0; g < groups; ++g) {
            const long first = g * GROUP, last = std::min(first + GROUP, components);
            if (known && close[g])
                multiply<CHANNELS, N, true>(q, keys, j, first, last, over, under, exponent, rest);
            else
                multiply<CHANNELS, N, false>(q, keys, j, first, last, over, under, exponent, rest);
        }
        for (int i = 0; i < N; ++i) {
            aside(over[i], exponent[i], 1);
            const vec logarithm = log2_near(over[i] / under[i]) + rest[i] + __builtin_convertvector(exponent[i], vec);
            const vec value = rate[i] * (logarithm + load(keys.taint.data() + j));
            if (j + LANES <= columns)
                store(out[i] + j, load(out[i] + j) + value);
            else
                for (long n = 0; j + n < columns; ++n) out[i][j + n] += value[n];
        }
    }
}

// Gradients of N rows and of all keys in one component, given that of the score, times the rate.
template <int CHANNELS, int N, bool CLOSE>
inline void slope_component(const float* const* tilt, const float* const* q, float* const* dq, const float* k, float* dk,
                            long stride, long channel) {
    vec pull[N][CHANNELS] = {};
    const float* row[N];
    const float* push[N];
    for (int i = 0; i < N; ++i) row[i] = q[i] + channel, push[i] = tilt[i];
    for (long j = 0; j < stride; j += LANES) {
        vec total[CHANNELS] = {};
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            vec apart[CHANNELS], h;
            const vec w = square<CHANNELS>(row[i], k + j, stride, apart);
            if (CLOSE) {
                h = slope_near(w) * inverse(PI_SQUARE - w);
            } else {
                vec multiple;
                const vec u = distance<CHANNELS>(w, apart), r = reduced(u, multiple), v = r * r;
                vec s = sine(v) * r;
                const ivec zero = (s < 1e-9f) & (s > -1e-9f), at_home = multiple == 0.0f;
                s = zero ? all(1e-9f) : s;
                h = (at_home ? slope_near(v) : u * cosine(v) - s) / (at_home ? PI_SQUARE - v : w * s);
            }
            const vec x = load(push[i] + j) * h;
            for (int n = 0; n < CHANNELS; ++n) {
                pull[i][n] += x * apart[n];
                total[n] += x * apart[n];
            }
        }
        for (int n = 0; n < CHANNELS; ++n) store(dk + n * stride + j, load(dk + n * stride + j) - total[n]);
    }
    for (int i = 0; i < N; ++i)
        for (int n = 0; n < CHANNELS; ++n) dq[i][channel + n] += sum(pull[i][n]);
}

// The same in components first to last.
template <int CHANNELS, int N>
void slope_rows(const float* const* tilt, const float* const* q, float* const* dq, const Keys& keys, float* dk,
                long first, long last) {
    for (long c = first; c < last; ++c) {
        const float* k = keys.values.data() + c * CHANNELS * keys.stride;
        float* back = dk + (c - first) * CHANNELS * keys.stride;
        if (keys.near<CHANNELS>(q, N, c, c + 1))
            slope_component<CHANNELS, N, true>(tilt, q, dq, k, back, keys.stride, c * CHANNELS);
        else
            slope_component<CHANNELS, N, false>(tilt, q, dq, k, back, keys.stride, c * CHANNELS);
    }
}

template <int CHANNELS>
void score(float* out, const float* q, const float* k, const long* shape, const long* strides, int threads) {
    const long batch = shape[0], rows = shape[1], columns = shape[2], channels = shape[3];
    const long pieces = std::max(1L, std::min((4L * threads + batch - 1) / batch, (rows + 31) / 32));
    const long each = ((rows + pieces - 1) / pieces + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
    for (long b = 0; b < batch; ++b)
        for (long piece = 0; piece < pieces; ++piece) {
            static thread_local Keys keys;
            const long stop = std::min((piece + 1) * each, rows);
            if (piece * each < stop) keys.pack(k + b * strides[4], strides[5], channels, columns);
            for (long i = piece * each; i < stop; i += ROWS) {
                const int n = std::min<long>(ROWS, stop - i);
                float* o[ROWS];
                const float* a[ROWS];
                for (int m = 0; m < n; ++m) {
                    o[m] = out + b * strides[0] + (i + m) * strides[1];
                    a[m] = q + b * strides[2] + (i + m) * strides[3];
                }
                if (n == ROWS)
                    score_rows<CHANNELS, ROWS>(o, a, keys, channels / CHANNELS, columns);
                else
                    for (int m = 0; m < n; ++m) score_rows<CHANNELS, 1>(o + m, a + m, keys, channels / CHANNELS, columns);
            }
        }
}

template <int CHANNELS>
void slope(const float* tilt, const float* q, const float* k, float* dq, float* dk, const long* shape,
           const long* strides, int threads) {
    const long batch = shape[0], rows = shape[1], columns = shape[2], channels = shape[3];
    const long components = channels / CHANNELS;
    const long pieces = std::max(1L, std::min((4L * threads + batch - 1) / batch, (components + 3) / 4));
    const long each = (components + pieces - 1) / pieces;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
    for (long b = 0; b < batch; ++b)
        for (long piece = 0; piece < pieces; ++piece) {
            static thread_local Keys keys;
            static thread_local Row pushed, pulled;
            const long first = piece * each, last = std::min(first + each, components);
            if (first >= last) continue;
            keys.pack(k + b * strides[4], strides[5], channels, columns);
            pulled.assign((last - first) * CHANNELS * keys.stride, 0.0f);
            pushed.assign(ROWS * keys.stride, 0.0f);
            for (long i = 0; i < rows; i += ROWS) {
                const int n = std::min<long>(ROWS, rows - i);
                const float *a[ROWS], *t[ROWS];
                float* d[ROWS];
                for (int m = 0; m < n; ++m) {
                    a[m] = q + b * strides[2] + (i + m) * strides[3];
                    d[m] = dq + b * strides[6] + (i + m) * strides[7];
                    t[m] = pushed.data() + m * keys.stride;
                    const float* from = tilt + b * strides[0] + (i + m) * strides[1];
                    for (long j = 0; j < columns; ++j) pushed[m * keys.stride + j] = from[j] * a[m][channels];
                }
                if (n == ROWS)
                    slope_rows<CHANNELS, ROWS>(t, a, d, keys, pulled.data(), first, last);
                else
                    for (int m = 0; m < n; ++m)
                        slope_rows<CHANNELS, 1>(t + m, a + m, d + m, keys, pulled.data(), first, last);
            }
            for (long c = first * CHANNELS; c < last * CHANNELS; ++c) {
                const float* from = pulled.data() + (c - first * CHANNELS) * keys.stride;
                float* to = dk + b * strides[8] + c * strides[9];
                for (long j = 0; j < columns; ++j) to[j] += from[j];
            }
        }
}

}  // namespace

// out [batch, rows, columns] += rate * log2 |product of sinc|.
//   q [batch, rows, channels + 1], the last channel is the rate; k [batch, channels, columns].
//   shape: batch, rows, columns, channels. strides: of out (batch, row), of q (batch, row), of k (batch, channel).
extern "C" void zoo_fourier_score(float* out, const float* q, const float* k, const long* shape, const long* strides,
                                  int pairs, int threads) {
    (pairs ? score<2> : score<1>)(out, q, k, shape, strides, threads);
}

// Adds to dq [batch, rows, channels + 1] and dk [batch, channels, columns] what the gradient `tilt` of the score, in
// natural units, makes of them; the rate's own gradient is left to the caller.
//   strides: as above with tilt for out, then of dq (batch, row) and of dk (batch, channel).
extern "C" void zoo_fourier_slope(const float* tilt, const float* q, const float* k, float* dq, float* dk,
                                  const long* shape, const long* strides, int pairs, int threads) {
    (pairs ? slope<2> : slope<1>)(tilt, q, k, dq, dk, shape, strides, threads);
}
