#pragma once

// Attention: rotary positions, softmax with mask and dropout.

#include "common.hpp"

namespace {

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

// The scores of one row become their exponentials over the greatest one's; returns one over their sum. Scores from
// `keys` up to `wide`, a multiple of 16, are there to fill whole vectors.
inline float exponentials(float *s, int64_t keys, int64_t wide) {
    const float top = greatest(s, wide);
    for (int64_t c = 0; c < wide; ++c) s[c] = exp_negative(s[c] - top);
    return 1.0f / (sum_of(s, wide) - static_cast<float>(wide - keys) * s[wide - 1]);
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
            const float share = exponentials(s, keys, wide);
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

// Attention of short rows, head by head, without a tensor of scores: what one head needs stays in the processor's
// cache, in float32. `projected` is (batch, length, 3, heads, size): queries, keys, values; `mask` a byte per key.
struct Heads {
    const uint8_t *mask;
    int64_t mask_batch, batch, length, heads, size;
    float scale;
    Dropout dropout;

    int64_t wide() const { return Row::whole(length); }
    int64_t deep() const { return Row::whole(size); }
};

const int64_t BLOCK = 8;  // queries, or keys, that share each load of the other side

inline Lanes all(float x) { return Lanes{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

// c = a · b for BLOCK rows of c, `wide` columns, a multiple of 16. a[r][k] is at r · a_row + k · a_column.
inline void multiply(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                     int64_t c_row, int64_t inner, int64_t wide) {
    for (int64_t j = 0; j < wide; j += 16) {
        Lanes sums[BLOCK] = {};
        for (int64_t k = 0; k < inner; ++k) {
            const Lanes right = *reinterpret_cast<const Lanes *>(b + k * b_row + j);
            for (int64_t r = 0; r < BLOCK; ++r) sums[r] += all(a[r * a_row + k * a_column]) * right;
        }
        for (int64_t r = 0; r < BLOCK; ++r) *reinterpret_cast<Lanes *>(c + r * c_row + j) = sums[r];
    }
}

// One head's rows as float32: whole blocks of rows, whole vectors of columns, zeros where there are none.
struct HeadRows {
    int64_t width;
    Zeros values;

    HeadRows(int64_t rows, int64_t width) : width(width), values((rows + BLOCK - 1) / BLOCK * BLOCK * width) {}

    float *row(int64_t r) { return values.start + r * width; }

    template <typename T>
    void read(const T *from, int64_t stride, int64_t rows, int64_t columns, float factor = 1.0f) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) row(r)[c] = load(from[r * stride + c]) * factor;
    }

    template <typename T>
    void read_transposed(const T *from, int64_t stride, int64_t rows, int64_t columns) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) row(c)[r] = load(from[r * stride + c]);
    }
};

template <typename T>
void write_rows(T *to, int64_t stride, const float *from, int64_t width, int64_t rows, int64_t columns, float factor) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) store(to[r * stride + c], from[r * width + c] * factor);
}

// The softmax of one query's scores, before dropout; the columns that fill the last vector become 0.
inline void head_softmax(float *s, const Heads &shape, int64_t b) {
    const int64_t length = shape.length, wide = shape.wide();
    for (int64_t c = length; c < wide; ++c) s[c] = -3.0e38f;
    if (shape.mask) {
        const uint8_t *seen = shape.mask + b * shape.mask_batch;
        for (int64_t c = 0; c < length; ++c) s[c] = seen[c] ? s[c] : -3.0e38f;
    }
    const float share = exponentials(s, length, wide);
    for (int64_t c = 0; c < length; ++c) s[c] *= share;
    for (int64_t c = length; c < wide; ++c) s[c] = 0.0f;
}

template <typename T>
void heads_forward(const T *projected, T *out, const Heads &shape) {
    const int64_t length = shape.length, size = shape.size, wide = shape.wide(), deep = shape.deep();
    const int64_t stride = 3 * shape.heads * size, pairs = shape.batch * shape.heads;
#pragma omp parallel num_threads(team) if (pairs * length * length > SMALL)
    {
        HeadRows queries(length, deep), keys(deep, wide), values(length, deep), scores(BLOCK, wide), result(BLOCK, deep);
        Row scratch(length);
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t b = pair / shape.heads, h = pair % shape.heads;
            const T *from = projected + b * length * stride + h * size;
            queries.read(from, stride, length, size, shape.scale);
            keys.read_transposed(from + shape.heads * size, stride, length, size);
            values.read(from + 2 * shape.heads * size, stride, length, size);
            for (int64_t first = 0; first < length; first += BLOCK) {
                const int64_t rows = std::min(BLOCK, length - first);
                multiply(queries.row(first), deep, 1, keys.row(0), wide, scores.row(0), wide, size, wide);
                for (int64_t r = 0; r < rows; ++r) {
                    float *s = scores.row(r);
                    head_softmax(s, shape, b);
                    if (shape.dropout.level) {
                        const float *factors = scratch.factors.data();
                        shape.dropout.row(pair * length + first + r, length, scratch.words.data(), scratch.factors.data());
                        for (int64_t c = 0; c < length; ++c) s[c] *= factors[c];
                    }
                }
                multiply(scores.row(0), wide, 1, values.row(0), deep, result.row(0), deep, length, deep);
                T *to = out + ((b * length + first) * shape.heads + h) * size;
                write_rows(to, shape.heads * size, result.row(0), deep, rows, size, 1.0f);
            }
        }
    }
}

template <typename T>
void heads_backward(const T *above, const T *projected, T *below, const Heads &shape) {
    const int64_t length = shape.length, size = shape.size, wide = shape.wide(), deep = shape.deep();
    const int64_t width = shape.heads * size, stride = 3 * width, pairs = shape.batch * shape.heads;
#pragma omp parallel num_threads(team) if (pairs * length * length > SMALL)
    {
        HeadRows queries(length, deep), keys(length, deep), given(length, deep), result(BLOCK, deep);
        HeadRows keys_across(deep, wide), values_across(deep, wide), dropped(length, wide), scores(length, wide);
        HeadRows inner(BLOCK, wide);
        Row scratch(length);
        float *factors = scratch.factors.data();
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t b = pair / shape.heads, h = pair % shape.heads;
            const T *from = projected + b * length * stride + h * size;
            T *to = below + b * length * stride + h * size;
            queries.read(from, stride, length, size, shape.scale);
            keys.read(from + width, stride, length, size);
            keys_across.read_transposed(from + width, stride, length, size);
            values_across.read_transposed(from + 2 * width, stride, length, size);
            given.read(above + b * length * width + h * size, width, length, size);
            for (int64_t first = 0; first < length; first += BLOCK) {
                const int64_t rows = std::min(BLOCK, length - first);
                multiply(queries.row(first), deep, 1, keys_across.row(0), wide, scores.row(first), wide, size, wide);
                multiply(given.row(first), deep, 1, values_across.row(0), wide, inner.row(0), wide, size, wide);
                for (int64_t r = 0; r < rows; ++r) {
                    float *s = scores.row(first + r), *g = inner.row(r), *d = dropped.row(first + r), total = 0.0f;
                    head_softmax(s, shape, b);
                    if (shape.dropout.level) {
                        shape.dropout.row(pair * length + first + r, length, scratch.words.data(), factors);
                        for (int64_t c = 0; c < length; ++c) g[c] *= factors[c];
                    }
                    for (int64_t c = 0; c < length; ++c) d[c] = s[c] * factors[c];
                    for (int64_t c = 0; c < wide; ++c) total += s[c] * g[c];
                    for (int64_t c = 0; c < wide; ++c) s[c] *= g[c] - total;
                }
                multiply(scores.row(first), wide, 1, keys.row(0), deep, result.row(0), deep, length, deep);
                write_rows(to + first * stride, stride, result.row(0), deep, rows, size, shape.scale);
            }
            for (int64_t first = 0; first < length; first += BLOCK) {
                const int64_t rows = std::min(BLOCK, length - first);
                multiply(scores.row(0) + first, 1, wide, queries.row(0), deep, result.row(0), deep, length, deep);
                write_rows(to + first * stride + width, stride, result.row(0), deep, rows, size, 1.0f);
                multiply(dropped.row(0) + first, 1, wide, given.row(0), deep, result.row(0), deep, length, deep);
                write_rows(to + first * stride + 2 * width, stride, result.row(0), deep, rows, size, 1.0f);
            }
        }
    }
}

}  // namespace
