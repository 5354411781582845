#pragma once

// Norms, activations and sums: each chain read and written once.

#include "common.hpp"

namespace {

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

// 0.5 + x · polynomial(x²) for x in (-bound, bound), 0 before and 1 after: what goes from 0 to 1 and is odd about 0.5.
template <int N>
inline float rise(float x, float bound, const float (&coefficients)[N]) {
    const float square = x * x;
    float sum = coefficients[N - 1];
    for (int i = N - 2; i >= 0; --i) sum = sum * square + coefficients[i];
    const float inside = 0.5f + x * sum;
    return x >= bound ? 1.0f : x <= -bound ? 0.0f : inside;
}

// GELU and its slope. In float32 by the exponential; in bfloat16, which has 8 bits, by polynomials of least greatest
// error (linear programming): the normal distribution's function within 2.3e-5, the slope within 1.1e-4.
const float GELU_CURVE[] = {3.988563300e-1f, -6.624081813e-2f, 9.747062229e-3f, -1.085485232e-3f, 8.902479697e-5f,
                            -5.136550511e-6f, 1.940876604e-7f, -4.254271660e-9f, 4.059892570e-11f};

const float SLOPE_CURVE[] = {7.975545985e-1f, -2.646868227e-1f, 5.837940513e-2f, -8.716677731e-3f, 9.176257828e-4f,
                             -6.814054412e-5f, 3.473456468e-6f, -1.149766458e-7f, 2.215130082e-9f, -1.878744700e-11f};

template <typename T>
inline float gelu(float x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return x * rise(x, 4.1f, GELU_CURVE);
    } else {
        float density;
        return x * normal(x, density);
    }
}

template <typename T>
inline float gelu_slope(float x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return rise(x, 4.5f, SLOPE_CURVE);
    } else {
        float density;
        const float share = normal(x, density);
        return share + x * density;
    }
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
            for (int64_t c = 0; c < columns; ++c) store(out[c], gelu<T>(load(in[c]) + bias[c]));
        else
            for (int64_t c = 0; c < columns; ++c) store(out[c], gelu<T>(load(in[c])));
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
                const float g = load(up[c]) * gelu_slope<T>(load(in[c]) + b[c]);
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

// One of the tensors whose squares are summed, a row of the caller's table of int64.
struct Summed {
    const void *x;
    int64_t count, half;
};

template <typename T>
float block_squares(const T *x, int64_t count) {
    float part = 0.0f;
    for (int64_t i = 0; i < count; ++i) part += load(x[i]) * load(x[i]);
    return part;
}

// The sum of all squares, the same for any number of threads.
double squares(const Summed *tensors, int64_t n) {
    std::vector<int64_t> first(n + 1);
    for (int64_t t = 0; t < n; ++t) first[t + 1] = first[t] + (tensors[t].count + CHUNK - 1) / CHUNK;
    std::vector<float> parts(first[n]);
#pragma omp parallel num_threads(team) if (first[n] * CHUNK > SMALL)
    for (int64_t t = 0; t < n; ++t) {
        const Summed &s = tensors[t];
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < s.count; start += CHUNK) {
            const int64_t count = std::min(CHUNK, s.count - start);
            parts[first[t] + start / CHUNK] = s.half ? block_squares(static_cast<const bf16 *>(s.x) + start, count)
                                                    : block_squares(static_cast<const float *>(s.x) + start, count);
        }
    }
    double total = 0.0;
    for (float part : parts) total += part;
    return total;
}

}  // namespace
