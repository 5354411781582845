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
