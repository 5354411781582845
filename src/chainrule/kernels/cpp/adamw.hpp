#pragma once

// Updates of AdamW.

#include "common.hpp"

namespace {

struct Adam {
    float rate, beta1, beta2, epsilon, decay, correction1, correction2;
};

inline void adam_one(float &p, float &m, float &v, float g, const Adam &a, float keep, float step, float root) {
    m = m + (1.0f - a.beta1) * (g - m);
    v = a.beta2 * v + (1.0f - a.beta2) * g * g;
    p = p * keep - step * m / (std::sqrt(v) * root + a.epsilon);
}

// One of the tensors of an update, as the caller lays them out in a table of int64: addresses, a size, a flag.
struct Updated {
    float *p, *m, *v;
    const void *g;
    bf16 *compute;  // its copy in bfloat16, or null
    int64_t count, half;  // whether its gradient is in bfloat16
};
static_assert(sizeof(Updated) == 7 * sizeof(int64_t), "a row of the table");

template <typename T>
void adam_block(const Updated &u, const Adam &a, float factor, int64_t start, int64_t end) {
    const float keep = 1.0f - a.rate * a.decay, step = a.rate / a.correction1, root = 1.0f / std::sqrt(a.correction2);
    const T *g = static_cast<const T *>(u.g);
    for (int64_t i = start; i < end; ++i) adam_one(u.p[i], u.m[i], u.v[i], load(g[i]) * factor, a, keep, step, root);
    if (u.compute)
        for (int64_t i = start; i < end; ++i) store(u.compute[i], u.p[i]);
}

// All tensors in one region: most are so small that meeting after each would take longer than their update.
void adam(const Updated *tensors, const Adam *numbers, int64_t n, float factor) {
    int64_t all = 0;
    for (int64_t t = 0; t < n; ++t) all += tensors[t].count;
#pragma omp parallel num_threads(team) if (all > SMALL)
    for (int64_t t = 0; t < n; ++t) {
        const Updated &u = tensors[t];
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < u.count; start += CHUNK) {
            const int64_t end = std::min(u.count, start + CHUNK);
            u.half ? adam_block<bf16>(u, numbers[t], factor, start, end)
                   : adam_block<float>(u, numbers[t], factor, start, end);
        }
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
