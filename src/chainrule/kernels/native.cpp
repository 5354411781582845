// Element-wise chains of training on a CPU, each read and written once. Plain C++ that the compiler vectorises; no
// library but OpenMP. Compiled on the user's machine by native.py, which also says what every function does; the
// formulas live beside their plain torch counterparts in the Python files of this folder.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

inline int64_t thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

int team = 1;  // how many threads work together; said by the caller, who knows what torch uses

// Sums that several threads make, each into a row of its own; added up in the order of the threads, so that the same
// number of threads always gives the same last digit.
struct Sums {
    int64_t width;
    std::vector<float> rows;

    explicit Sums(int64_t width) : width((width + 15) / 16 * 16), rows(this->width * team, 0.0f) {}

    float *mine() { return rows.data() + thread_number() * width; }

    void add(float *target, int64_t from, int64_t count) const {
        if (!target) return;
        for (size_t start = 0; start < rows.size(); start += width)
            for (int64_t c = 0; c < count; ++c) target[c] += rows[start + from + c];
    }
};

struct bf16 {
    uint16_t bits;
};

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float load(float value) { return value; }
inline float load(bf16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
inline void store(float &place, float value) { place = value; }
inline void store(bf16 &place, float value) {  // round to nearest, ties to even
    const uint32_t bits = to_bits(value);
    place.bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// e^x for x <= 0 up to about 3e-7 relative (range reduction to [-ln2/2, ln2/2], Taylor of degree 6). Below -80 it is 0:
// numbers near the smallest ones make float32 products many times slower, and padding would be full of them.
inline float exp_negative(float given) {
    const float x = std::max(given, -80.0f);
    const float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float result = p * from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
    return given < -80.0f ? 0.0f : result;
}

// Standard normal distribution function and density. Abramowitz and Stegun, 7.1.26: error at most 1.5e-7.
inline float normal(float x, float &density) {
    const float z = std::fabs(x) * 0.70710678f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    const float e = exp_negative(-z * z);
    const float tail =
        0.5f * e * t *
        (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    density = 0.39894228f * e;
    return x < 0.0f ? tail : 1.0f - tail;
}

// Four random bytes for the word-th group of four elements.
inline uint32_t random_word(uint32_t word, uint32_t key0, uint32_t key1) {
    uint32_t x = word * 0x9e3779b9u + key0;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x += key1;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

// Dropout of one probability under one key: `level` of 256 elements are dropped.
struct Dropout {
    int32_t level;
    uint32_t key0, key1;

    float scale() const { return 256.0f / static_cast<float>(256 - level); }

    // factors[i] = 0 or the scale, for the `columns` elements of row `row`.
    void row(int64_t row, int64_t columns, uint32_t *words, float *factors) const {
        const int64_t count = (columns + 3) / 4;
        const uint32_t first = static_cast<uint32_t>(row * count);
        for (int64_t i = 0; i < count; ++i) words[i] = random_word(first + static_cast<uint32_t>(i), key0, key1);
        const float kept = scale();
        const uint8_t *bytes = reinterpret_cast<const uint8_t *>(words);
        for (int64_t i = 0; i < columns; ++i) factors[i] = bytes[i] >= level ? kept : 0.0f;
    }
};

// One thread's scratch for rows of `columns` elements.
struct Row {
    std::vector<float> values, factors, other;
    std::vector<uint32_t> words;
    explicit Row(int64_t columns)
        : values(whole(columns)), factors(whole(columns), 1.0f), other(whole(columns)), words((columns + 3) / 4 + 1) {}

    static int64_t whole(int64_t columns) { return (columns + 15) / 16 * 16; }
};

const int64_t SMALL = 16384;  // elements below which threads cost more than they bring

template <typename T>
void norm_forward(const T *x, const float *bias, const T *residual, const float *weight, const float *shift, T *y,
                  T *sum, float *mean, float *deviation, int64_t rows, int64_t columns, float epsilon, int32_t root,
                  Dropout dropout) {
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        Row scratch(columns);
        float *s = scratch.values.data(), *factors = scratch.factors.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const T *in = x + r * columns;
            for (int64_t c = 0; c < columns; ++c) s[c] = load(in[c]);
            if (bias)
                for (int64_t c = 0; c < columns; ++c) s[c] += bias[c];
            if (dropout.level) {
                dropout.row(r, columns, scratch.words.data(), factors);
                for (int64_t c = 0; c < columns; ++c) s[c] *= factors[c];
            }
            if (residual) {
                const T *add = residual + r * columns;
                for (int64_t c = 0; c < columns; ++c) s[c] += load(add[c]);
            }
            if (sum) {  // what backward reads is what the statistics are of
                T *out = sum + r * columns;
                for (int64_t c = 0; c < columns; ++c) {
                    store(out[c], s[c]);
                    s[c] = load(out[c]);
                }
            }
            float total = 0.0f, squares = 0.0f;
            if (!root)
                for (int64_t c = 0; c < columns; ++c) total += s[c];
            const float centre = total / static_cast<float>(columns);
            for (int64_t c = 0; c < columns; ++c) squares += (s[c] - centre) * (s[c] - centre);
            const float scale = 1.0f / std::sqrt(squares / static_cast<float>(columns) + epsilon);
            T *out = y + r * columns;
            if (shift)
                for (int64_t c = 0; c < columns; ++c) store(out[c], (s[c] - centre) * scale * weight[c] + shift[c]);
            else
                for (int64_t c = 0; c < columns; ++c) store(out[c], (s[c] - centre) * scale * weight[c]);
            mean[r] = centre;
            deviation[r] = scale;
        }
    }
}

template <typename T>
void norm_backward(const T *dy, const T *sum, const float *mean, const float *deviation, const float *weight,
                   T *dresidual, T *dx, float *dweight, float *dshift, float *dbias, int64_t rows, int64_t columns,
                   int32_t root, Dropout dropout) {
    Sums sums(3 * columns);
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        Row scratch(columns);
        float *w = sums.mine(), *b = w + columns, *a = b + columns;
        float *g = scratch.values.data(), *factors = scratch.factors.data(), *h = scratch.other.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const T *up = dy + r * columns, *in = sum + r * columns;
            const float centre = mean[r], scale = deviation[r];
            float first = 0.0f, second = 0.0f;
            for (int64_t c = 0; c < columns; ++c) {
                const float d = load(up[c]), n = (load(in[c]) - centre) * scale, dn = d * weight[c];
                h[c] = n;
                g[c] = dn;
                w[c] += d * n;
                b[c] += d;
                first += dn;
                second += dn * n;
            }
            first = root ? 0.0f : first / static_cast<float>(columns);
            second /= static_cast<float>(columns);
            for (int64_t c = 0; c < columns; ++c) g[c] = (g[c] - first - h[c] * second) * scale;
            T *down = dresidual + r * columns;
            for (int64_t c = 0; c < columns; ++c) store(down[c], g[c]);
            if (dropout.level) {
                dropout.row(r, columns, scratch.words.data(), factors);
                for (int64_t c = 0; c < columns; ++c) g[c] *= factors[c];
                T *out = dx + r * columns;
                for (int64_t c = 0; c < columns; ++c) store(out[c], g[c]);
            }
            if (dbias)
                for (int64_t c = 0; c < columns; ++c) a[c] += g[c];
        }
    }
    sums.add(dweight, 0, columns);
    sums.add(dshift, columns, columns);
    sums.add(dbias, 2 * columns, columns);
}

inline float gelu(float x) {
    float density;
    return x * normal(x, density);
}

inline float gelu_slope(float x) {
    float density;
    const float share = normal(x, density);
    return share + x * density;
}

inline float silu(float x) {
    const float e = exp_negative(-std::fabs(x)), s = 1.0f / (1.0f + e);
    return x * (x < 0.0f ? e * s : s);
}

inline float silu_slope(float x) {
    const float e = exp_negative(-std::fabs(x)), s = 1.0f / (1.0f + e), share = x < 0.0f ? e * s : s;
    return share * (1.0f + x * (1.0f - share));
}

template <typename T>
void gelu_forward(const T *x, const float *bias, T *y, int64_t rows, int64_t columns) {
#pragma omp parallel for num_threads(team) schedule(static) if (rows * columns > SMALL)
    for (int64_t r = 0; r < rows; ++r) {
        const T *in = x + r * columns;
        T *out = y + r * columns;
        if (bias)
            for (int64_t c = 0; c < columns; ++c) store(out[c], gelu(load(in[c]) + bias[c]));
        else
            for (int64_t c = 0; c < columns; ++c) store(out[c], gelu(load(in[c])));
    }
}

template <typename T>
void gelu_backward(const T *dy, const T *x, const float *bias, T *dx, float *dbias, int64_t rows, int64_t columns) {
    Sums sums(columns);
    const std::vector<float> none(bias ? 0 : columns, 0.0f);
    const float *b = bias ? bias : none.data();
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        float *a = sums.mine();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const T *up = dy + r * columns, *in = x + r * columns;
            T *out = dx + r * columns;
            for (int64_t c = 0; c < columns; ++c) {
                const float g = load(up[c]) * gelu_slope(load(in[c]) + b[c]);
                store(out[c], g);
                a[c] += g;
            }
        }
    }
    sums.add(dbias, 0, columns);
}

// `gate` and `up` are rows of `columns`, `stride` apart; so are their gradients.
template <typename T>
void gated_forward(const T *gate, const T *up, T *y, int64_t rows, int64_t columns, int64_t stride) {
#pragma omp parallel for num_threads(team) schedule(static) if (rows * columns > SMALL)
    for (int64_t r = 0; r < rows; ++r) {
        const T *g = gate + r * stride, *u = up + r * stride;
        T *out = y + r * columns;
        for (int64_t c = 0; c < columns; ++c) store(out[c], silu(load(g[c])) * load(u[c]));
    }
}

template <typename T>
void gated_backward(const T *dy, const T *gate, const T *up, T *dgate, T *dup, int64_t rows, int64_t columns,
                    int64_t stride) {
#pragma omp parallel for num_threads(team) schedule(static) if (rows * columns > SMALL)
    for (int64_t r = 0; r < rows; ++r) {
        const T *d = dy + r * columns, *g = gate + r * stride, *u = up + r * stride;
        T *dg = dgate + r * stride, *du = dup + r * stride;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) {
            const float above = load(d[c]), x = load(g[c]);
            store(dg[c], above * load(u[c]) * silu_slope(x));
            store(du[c], above * silu(x));
        }
    }
}

// Rotary positions. `rows` holds per (batch, token) all heads of the queries, then of the keys, then of the values;
// q, k and v are (batch, head, token, size). cos and sin are (batch or 1, token, size).
struct Rotary {
    const float *cos, *sin;
    int64_t table_batch, batch, length, heads, key_heads, size;

    int64_t width() const { return (heads + 2 * key_heads) * size; }
    int64_t place(int64_t b, int64_t count, int64_t h, int64_t t) const { return ((b * count + h) * length + t) * size; }
};

template <typename T>
void rotate_forward(const T *rows, T *q, T *k, T *v, const Rotary &shape) {
    const int64_t size = shape.size, half = size / 2, all = shape.heads + shape.key_heads;
#pragma omp parallel for num_threads(team) schedule(static) if (shape.batch * shape.length * shape.width() > SMALL)
    for (int64_t n = 0; n < shape.batch * shape.length; ++n) {
        const int64_t b = n / shape.length, t = n % shape.length;
        const float *cos = shape.cos + b * shape.table_batch + t * size;
        const float *sin = shape.sin + b * shape.table_batch + t * size;
        const T *in = rows + n * shape.width();
        for (int64_t h = 0; h < all; ++h, in += size) {
            T *out = h < shape.heads ? q + shape.place(b, shape.heads, h, t)
                                     : k + shape.place(b, shape.key_heads, h - shape.heads, t);
            for (int64_t c = 0; c < half; ++c) {
                const float low = load(in[c]), high = load(in[c + half]);
                store(out[c], low * cos[c] - high * sin[c]);
                store(out[c + half], high * cos[c + half] + low * sin[c + half]);
            }
        }
        for (int64_t h = 0; h < shape.key_heads; ++h, in += size)
            std::memcpy(v + shape.place(b, shape.key_heads, h, t), in, size * sizeof(T));
    }
}

template <typename T>
void rotate_backward(T *rows, const T *q, const T *k, const T *v, const Rotary &shape) {
    const int64_t size = shape.size, half = size / 2, all = shape.heads + shape.key_heads;
#pragma omp parallel for num_threads(team) schedule(static) if (shape.batch * shape.length * shape.width() > SMALL)
    for (int64_t n = 0; n < shape.batch * shape.length; ++n) {
        const int64_t b = n / shape.length, t = n % shape.length;
        const float *cos = shape.cos + b * shape.table_batch + t * size;
        const float *sin = shape.sin + b * shape.table_batch + t * size;
        T *out = rows + n * shape.width();
        for (int64_t h = 0; h < all; ++h, out += size) {
            const T *in = h < shape.heads ? q + shape.place(b, shape.heads, h, t)
                                          : k + shape.place(b, shape.key_heads, h - shape.heads, t);
            for (int64_t c = 0; c < half; ++c) {
                const float low = load(in[c]), high = load(in[c + half]);
                store(out[c], low * cos[c] + high * sin[c + half]);
                store(out[c + half], high * cos[c + half] - low * sin[c]);
            }
        }
        for (int64_t h = 0; h < shape.key_heads; ++h, out += size)
            std::memcpy(out, v + shape.place(b, shape.key_heads, h, t), size * sizeof(T));
    }
}

// The greatest of `wide` numbers, a multiple of 16. Sixteen at a time: compilers leave a plain maximum scalar.
inline float greatest(const float *values, int64_t wide) {
    float tops[16];
    std::copy(values, values + 16, tops);
    for (int64_t c = 16; c < wide; c += 16)
        for (int64_t lane = 0; lane < 16; ++lane)
            tops[lane] = values[c + lane] > tops[lane] ? values[c + lane] : tops[lane];
    return *std::max_element(tops, tops + 16);
}

// losses[r] = log(sum(exp(logits))) - logits[target]; the logits become their gradient: softmax minus one-hot.
template <typename T>
void cross_entropy(T *logits, const int64_t *targets, float *losses, int64_t rows, int64_t columns) {
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        Row scratch(columns);
        float *s = scratch.values.data();
        const int64_t wide = Row::whole(columns);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            T *row = logits + r * columns;
            for (int64_t c = 0; c < columns; ++c) s[c] = load(row[c]);
            for (int64_t c = columns; c < wide; ++c) s[c] = -3.0e38f;
            const float top = greatest(s, wide), wanted = s[targets[r]];
            float total = 0.0f;
            for (int64_t c = 0; c < columns; ++c) {
                s[c] = exp_negative(s[c] - top);
                total += s[c];
            }
            losses[r] = std::log(total) + top - wanted;
            const float share = 1.0f / total;
            for (int64_t c = 0; c < columns; ++c) store(row[c], s[c] * share);
            store(row[targets[r]], s[targets[r]] * share - 1.0f);
        }
    }
}

// Rows are (batch, head, query); `mask` holds a byte per (batch, query, key), strides in elements, 0 to broadcast.
template <typename T>
void softmax_forward(const T *scores, const uint8_t *mask, int64_t mask_batch, int64_t mask_query, T *weights, T *dropped,
                     int64_t batch, int64_t heads, int64_t queries, int64_t keys, float scale, int32_t causal,
                     Dropout dropout) {
    const int64_t rows = batch * heads * queries;
#pragma omp parallel num_threads(team) if (rows * keys > SMALL)
    {
        Row scratch(keys);
        float *s = scratch.values.data(), *factors = scratch.factors.data();
        const int64_t wide = Row::whole(keys);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t query = r % queries, which = r / queries / heads;
            const T *in = scores + r * keys;
            for (int64_t c = 0; c < keys; ++c) s[c] = load(in[c]) * scale;
            for (int64_t c = keys; c < wide; ++c) s[c] = -3.0e38f;
            if (mask) {
                const uint8_t *seen = mask + which * mask_batch + query * mask_query;
                for (int64_t c = 0; c < keys; ++c) s[c] = seen[c] ? s[c] : -3.0e38f;
            }
            if (causal)
                for (int64_t c = std::max<int64_t>(0, query + 1 + keys - queries); c < keys; ++c) s[c] = -3.0e38f;
            const float top = greatest(s, wide);
            float total = 0.0f;
            for (int64_t c = 0; c < wide; ++c) s[c] = exp_negative(s[c] - top);
            for (int64_t c = 0; c < keys; ++c) total += s[c];
            const float share = 1.0f / total;
            T *out = weights + r * keys;
            for (int64_t c = 0; c < keys; ++c) store(out[c], s[c] * share);
            if (dropout.level) {
                dropout.row(r, keys, scratch.words.data(), factors);
                T *kept = dropped + r * keys;
                for (int64_t c = 0; c < keys; ++c) store(kept[c], s[c] * share * factors[c]);
            }
        }
    }
}

// In place of the gradient of the dropped weights: that of the scores before scaling. `dropped` is made again.
template <typename T>
void softmax_backward(const T *weights, T *gradient, T *dropped, int64_t rows, int64_t keys, float scale,
                      Dropout dropout) {
#pragma omp parallel num_threads(team) if (rows * keys > SMALL)
    {
        Row scratch(keys);
        float *p = scratch.values.data(), *g = scratch.other.data(), *factors = scratch.factors.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const T *in = weights + r * keys;
            T *both = gradient + r * keys;
            for (int64_t c = 0; c < keys; ++c) p[c] = load(in[c]);
            for (int64_t c = 0; c < keys; ++c) g[c] = load(both[c]);
            if (dropout.level) {
                dropout.row(r, keys, scratch.words.data(), factors);
                T *kept = dropped + r * keys;
                for (int64_t c = 0; c < keys; ++c) store(kept[c], p[c] * factors[c]);
                for (int64_t c = 0; c < keys; ++c) g[c] *= factors[c];
            }
            float inner = 0.0f;
            for (int64_t c = 0; c < keys; ++c) inner += p[c] * g[c];
            for (int64_t c = 0; c < keys; ++c) store(both[c], p[c] * (g[c] - inner) * scale);
        }
    }
}

template <typename T>
void dropout_rows(const T *x, T *y, int64_t rows, int64_t columns, Dropout dropout) {
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        Row scratch(columns);
        const float *factors = scratch.factors.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            dropout.row(r, columns, scratch.words.data(), scratch.factors.data());
            for (int64_t c = 0; c < columns; ++c) store(y[r * columns + c], load(x[r * columns + c]) * factors[c]);
        }
    }
}

template <typename T>
void column_sum(const T *x, float *result, int64_t rows, int64_t columns) {
    Sums sums(columns);
#pragma omp parallel num_threads(team) if (rows * columns > SMALL)
    {
        float *a = sums.mine();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) a[c] += load(x[r * columns + c]);
    }
    sums.add(result, 0, columns);
}

// Sums rows of `gradient` that belong together: order[starts[u] .. starts[u + 1]) are those of the u-th result.
template <typename T>
void gather_sum(const T *gradient, const int64_t *order, const int64_t *starts, float *sums, int64_t results,
                int64_t columns) {
#pragma omp parallel for num_threads(team) schedule(dynamic, 16) if (results * columns > SMALL)
    for (int64_t u = 0; u < results; ++u) {
        float *a = sums + u * columns;
        for (int64_t c = 0; c < columns; ++c) a[c] = 0.0f;
        for (int64_t i = starts[u]; i < starts[u + 1]; ++i) {
            const T *row = gradient + order[i] * columns;
            for (int64_t c = 0; c < columns; ++c) a[c] += load(row[c]);
        }
    }
}

template <typename T>
double squares(const T *x, int64_t count) {
    const int64_t size = 4096, blocks = (count + size - 1) / size;
    std::vector<float> parts(blocks);
#pragma omp parallel for num_threads(team) schedule(static) if (count > SMALL)
    for (int64_t block = 0; block < blocks; ++block) {
        float part = 0.0f;
        const int64_t end = std::min(count, (block + 1) * size);
        for (int64_t i = block * size; i < end; ++i) part += load(x[i]) * load(x[i]);
        parts[block] = part;
    }
    double total = 0.0;
    for (float part : parts) total += part;
    return total;
}

struct Adam {
    float rate, beta1, beta2, epsilon, decay, correction1, correction2;
};

inline void adam_one(float &p, float &m, float &v, float g, const Adam &a, float keep, float step, float root) {
    m = m + (1.0f - a.beta1) * (g - m);
    v = a.beta2 * v + (1.0f - a.beta2) * g * g;
    p = p * keep - step * m / (std::sqrt(v) * root + a.epsilon);
}

template <typename T>
void adam(float *p, float *m, float *v, const T *g, bf16 *compute, int64_t count, const Adam a, float factor) {
    const float keep = 1.0f - a.rate * a.decay, step = a.rate / a.correction1, root = 1.0f / std::sqrt(a.correction2);
#pragma omp parallel for num_threads(team) schedule(static) if (count > SMALL)
    for (int64_t start = 0; start < count; start += 4096) {
        const int64_t end = std::min(count, start + 4096);
        for (int64_t i = start; i < end; ++i) adam_one(p[i], m[i], v[i], load(g[i]) * factor, a, keep, step, root);
        if (compute)
            for (int64_t i = start; i < end; ++i) store(compute[i], p[i]);
    }
}

// Rows that had no gradient in the steps (last, now]: the same updates as the dense optimizer's, made late.
// `rates`, `corrections1` and `corrections2` are indexed by the 0-based step.
void adam_late(float *p, float *m, float *v, int32_t *last, const int64_t *rows, int64_t count, int64_t columns,
               int32_t now, const float *rates, const float *corrections1, const float *corrections2, float beta1,
               float beta2, float epsilon, float decay) {
#pragma omp parallel for num_threads(team) schedule(dynamic, 16) if (count * columns > SMALL)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t r = rows ? rows[i] : i;
        const int32_t from = last[r] < 0 ? -last[r] - 1 : last[r];
        const bool still = last[r] < 0;  // negative: this row never had a gradient, its moments are zero
        float *pr = p + r * columns, *mr = m + r * columns, *vr = v + r * columns;
        for (int32_t s = from; s < now; ++s) {
            const float keep = 1.0f - rates[s] * decay;
            if (still) {
                for (int64_t c = 0; c < columns; ++c) pr[c] *= keep;
            } else {
                const float step = rates[s] / corrections1[s], root = 1.0f / std::sqrt(corrections2[s]);
                for (int64_t c = 0; c < columns; ++c) {
                    mr[c] = mr[c] + (1.0f - beta1) * (0.0f - mr[c]);
                    vr[c] = beta2 * vr[c];
                    pr[c] = pr[c] * keep - step * mr[c] / (std::sqrt(vr[c]) * root + epsilon);
                }
            }
        }
        last[r] = still ? -now - 1 : now;
    }
}

void adam_rows(float *p, float *m, float *v, int32_t *last, const float *g, const int64_t *rows, int64_t count,
               int64_t columns, int32_t now, const Adam a, float factor) {
    const float keep = 1.0f - a.rate * a.decay, step = a.rate / a.correction1, root = 1.0f / std::sqrt(a.correction2);
#pragma omp parallel for num_threads(team) schedule(static) if (count * columns > SMALL)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t r = rows[i];
        float *pr = p + r * columns, *mr = m + r * columns, *vr = v + r * columns;
        const float *gr = g + i * columns;
        for (int64_t c = 0; c < columns; ++c) adam_one(pr[c], mr[c], vr[c], gr[c] * factor, a, keep, step, root);
        last[r] = now;
    }
}

}  // namespace

#define BOTH(CALL_FLOAT, CALL_BF16) (half ? (CALL_BF16) : (CALL_FLOAT))
#define AS(T, pointer) static_cast<T *>(pointer)
#define IN(T, pointer) static_cast<const T *>(pointer)

extern "C" {

int32_t chainrule_kernels_version() { return 1; }

void chainrule_threads(int32_t threads) { team = threads; }

void chainrule_norm_forward(int32_t half, const void *x, const float *bias, const void *residual, const float *weight,
                            const float *shift, void *y, void *sum, float *mean, float *deviation, int64_t rows,
                            int64_t columns, float epsilon, int32_t root, int32_t level, uint32_t key0, uint32_t key1) {
    const Dropout d{level, key0, key1};
    BOTH(norm_forward(IN(float, x), bias, IN(float, residual), weight, shift, AS(float, y), AS(float, sum), mean,
                      deviation, rows, columns, epsilon, root, d),
         norm_forward(IN(bf16, x), bias, IN(bf16, residual), weight, shift, AS(bf16, y), AS(bf16, sum), mean, deviation,
                      rows, columns, epsilon, root, d));
}

void chainrule_norm_backward(int32_t half, const void *dy, const void *sum, const float *mean, const float *deviation,
                             const float *weight, void *dresidual, void *dx, float *dweight, float *dshift,
                             float *dbias, int64_t rows, int64_t columns, int32_t root, int32_t level, uint32_t key0,
                             uint32_t key1) {
    const Dropout d{level, key0, key1};
    BOTH(norm_backward(IN(float, dy), IN(float, sum), mean, deviation, weight, AS(float, dresidual), AS(float, dx),
                       dweight, dshift, dbias, rows, columns, root, d),
         norm_backward(IN(bf16, dy), IN(bf16, sum), mean, deviation, weight, AS(bf16, dresidual), AS(bf16, dx), dweight,
                       dshift, dbias, rows, columns, root, d));
}

void chainrule_gelu_forward(int32_t half, const void *x, const float *bias, void *y, int64_t rows, int64_t columns) {
    BOTH(gelu_forward(IN(float, x), bias, AS(float, y), rows, columns),
         gelu_forward(IN(bf16, x), bias, AS(bf16, y), rows, columns));
}

void chainrule_gelu_backward(int32_t half, const void *dy, const void *x, const float *bias, void *dx, float *dbias,
                             int64_t rows, int64_t columns) {
    BOTH(gelu_backward(IN(float, dy), IN(float, x), bias, AS(float, dx), dbias, rows, columns),
         gelu_backward(IN(bf16, dy), IN(bf16, x), bias, AS(bf16, dx), dbias, rows, columns));
}

void chainrule_gated_forward(int32_t half, const void *gate, const void *up, void *y, int64_t rows, int64_t columns,
                             int64_t stride) {
    BOTH(gated_forward(IN(float, gate), IN(float, up), AS(float, y), rows, columns, stride),
         gated_forward(IN(bf16, gate), IN(bf16, up), AS(bf16, y), rows, columns, stride));
}

void chainrule_gated_backward(int32_t half, const void *dy, const void *gate, const void *up, void *dgate, void *dup,
                              int64_t rows, int64_t columns, int64_t stride) {
    BOTH(gated_backward(IN(float, dy), IN(float, gate), IN(float, up), AS(float, dgate), AS(float, dup), rows, columns,
                        stride),
         gated_backward(IN(bf16, dy), IN(bf16, gate), IN(bf16, up), AS(bf16, dgate), AS(bf16, dup), rows, columns,
                        stride));
}

void chainrule_rotate_forward(int32_t half, const void *rows, void *q, void *k, void *v, const float *cos,
                              const float *sin, int64_t table_batch, int64_t batch, int64_t length, int64_t heads,
                              int64_t key_heads, int64_t size) {
    const Rotary shape{cos, sin, table_batch, batch, length, heads, key_heads, size};
    BOTH(rotate_forward(IN(float, rows), AS(float, q), AS(float, k), AS(float, v), shape),
         rotate_forward(IN(bf16, rows), AS(bf16, q), AS(bf16, k), AS(bf16, v), shape));
}

void chainrule_rotate_backward(int32_t half, void *rows, const void *q, const void *k, const void *v, const float *cos,
                               const float *sin, int64_t table_batch, int64_t batch, int64_t length, int64_t heads,
                               int64_t key_heads, int64_t size) {
    const Rotary shape{cos, sin, table_batch, batch, length, heads, key_heads, size};
    BOTH(rotate_backward(AS(float, rows), IN(float, q), IN(float, k), IN(float, v), shape),
         rotate_backward(AS(bf16, rows), IN(bf16, q), IN(bf16, k), IN(bf16, v), shape));
}

void chainrule_cross_entropy(int32_t half, void *logits, const int64_t *targets, float *losses, int64_t rows,
                             int64_t columns) {
    BOTH(cross_entropy(AS(float, logits), targets, losses, rows, columns),
         cross_entropy(AS(bf16, logits), targets, losses, rows, columns));
}

void chainrule_softmax_forward(int32_t half, const void *scores, const uint8_t *mask, int64_t mask_batch,
                               int64_t mask_query, void *weights, void *dropped, int64_t batch, int64_t heads,
                               int64_t queries, int64_t keys, float scale, int32_t causal, int32_t level, uint32_t key0,
                               uint32_t key1) {
    const Dropout d{level, key0, key1};
    BOTH(softmax_forward(IN(float, scores), mask, mask_batch, mask_query, AS(float, weights), AS(float, dropped), batch,
                         heads, queries, keys, scale, causal, d),
         softmax_forward(IN(bf16, scores), mask, mask_batch, mask_query, AS(bf16, weights), AS(bf16, dropped), batch,
                         heads, queries, keys, scale, causal, d));
}

void chainrule_softmax_backward(int32_t half, const void *weights, void *gradient, void *dropped, int64_t rows,
                                int64_t keys, float scale, int32_t level, uint32_t key0, uint32_t key1) {
    const Dropout d{level, key0, key1};
    BOTH(softmax_backward(IN(float, weights), AS(float, gradient), AS(float, dropped), rows, keys, scale, d),
         softmax_backward(IN(bf16, weights), AS(bf16, gradient), AS(bf16, dropped), rows, keys, scale, d));
}

void chainrule_dropout(int32_t half, const void *x, void *y, int64_t rows, int64_t columns, int32_t level,
                       uint32_t key0, uint32_t key1) {
    const Dropout d{level, key0, key1};
    BOTH(dropout_rows(IN(float, x), AS(float, y), rows, columns, d),
         dropout_rows(IN(bf16, x), AS(bf16, y), rows, columns, d));
}

void chainrule_column_sum(int32_t half, const void *x, float *sums, int64_t rows, int64_t columns) {
    BOTH(column_sum(IN(float, x), sums, rows, columns), column_sum(IN(bf16, x), sums, rows, columns));
}

void chainrule_gather_sum(int32_t half, const void *gradient, const int64_t *order, const int64_t *starts, float *sums,
                          int64_t results, int64_t columns) {
    BOTH(gather_sum(IN(float, gradient), order, starts, sums, results, columns),
         gather_sum(IN(bf16, gradient), order, starts, sums, results, columns));
}

double chainrule_squares(int32_t half, const void *x, int64_t count) {
    return BOTH(squares(IN(float, x), count), squares(IN(bf16, x), count));
}

void chainrule_adam(int32_t half, float *p, float *m, float *v, const void *g, void *compute, int64_t count, float rate,
                    float beta1, float beta2, float epsilon, float decay, float correction1, float correction2,
                    float factor) {
    const Adam a{rate, beta1, beta2, epsilon, decay, correction1, correction2};
    BOTH(adam(p, m, v, IN(float, g), AS(bf16, compute), count, a, factor),
         adam(p, m, v, IN(bf16, g), AS(bf16, compute), count, a, factor));
}

void chainrule_adam_rows(float *p, float *m, float *v, int32_t *last, const float *g, const int64_t *rows,
                         int64_t count, int64_t columns, int32_t now, float rate, float beta1, float beta2,
                         float epsilon, float decay, float correction1, float correction2, float factor) {
    adam_rows(p, m, v, last, g, rows, count, columns, now,
              {rate, beta1, beta2, epsilon, decay, correction1, correction2}, factor);
}

void chainrule_adam_late(float *p, float *m, float *v, int32_t *last, const int64_t *rows, int64_t count,
                         int64_t columns, int32_t now, const float *rates, const float *corrections1,
                         const float *corrections2, float beta1, float beta2, float epsilon, float decay) {
    adam_late(p, m, v, last, rows, count, columns, now, rates, corrections1, corrections2, beta1, beta2, epsilon,
              decay);
}
}
