// Element-wise chains of training on a CPU, each read and written once. Plain C++ that the compiler vectorises; no
// library but OpenMP. Compiled on the user's machine by native.py, which also says what every function does; the
// formulas live beside their plain torch counterparts in the Python files of this folder.


#include "adamw.hpp"
#include "attention.hpp"
#include "chains.hpp"
#include "tiled_attention.hpp"
#include "tiled_product.hpp"

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

void chainrule_heads_forward(int32_t half, const void *projected, const uint8_t *mask, int64_t mask_batch, void *out,
                             int64_t batch, int64_t length, int64_t heads, int64_t size, float scale, int32_t level,
                             uint32_t key0, uint32_t key1) {
    const Heads shape{mask, mask_batch, batch, length, heads, size, scale, {level, key0, key1}};
    BOTH(heads_forward(IN(float, projected), AS(float, out), shape),
         heads_forward(IN(bf16, projected), AS(bf16, out), shape));
}

void chainrule_heads_backward(int32_t half, const void *above, const void *projected, const uint8_t *mask,
                              int64_t mask_batch, void *below, int64_t batch, int64_t length, int64_t heads,
                              int64_t size, float scale, int32_t level, uint32_t key0, uint32_t key1) {
    const Heads shape{mask, mask_batch, batch, length, heads, size, scale, {level, key0, key1}};
    BOTH(heads_backward(IN(float, above), IN(float, projected), AS(float, below), shape),
         heads_backward(IN(bf16, above), IN(bf16, projected), AS(bf16, below), shape));
}

// Whether this process may use tiles, and the kernels that are made of them; without tiles they are never called.
#ifdef HAS_TILES
int32_t chainrule_tiles() { return tiles_granted(); }
#define TILED(CALL) CALL
#else
int32_t chainrule_tiles() { return 0; }
#define TILED(CALL) (void)0
#endif

void chainrule_tiled_forward(const void *query, const void *key, const void *value, void *out, void *softmaxes,
                             const int64_t *sizes, const uint8_t *mask, float scale, int32_t level, uint32_t key0, uint32_t key1) {
    TILED(tiled_forward(IN(bf16, query), IN(bf16, key), IN(bf16, value), AS(bf16, out),
                        AS(Softmax, softmaxes), tiled_heads(sizes, mask, scale, {level, key0, key1})));
}

void chainrule_tiled_backward(const void *above, const void *query, const void *key, const void *value, void *dquery,
                              void *dkey, void *dvalue, const void *softmaxes, const int64_t *sizes, const uint8_t *mask, float scale,
                              int32_t level, uint32_t key0, uint32_t key1) {
    TILED(tiled_backward(IN(bf16, above), IN(bf16, query), IN(bf16, key), IN(bf16, value), AS(bf16, dquery),
                         AS(bf16, dkey), AS(bf16, dvalue), IN(Softmax, softmaxes), tiled_heads(sizes, mask, scale, {level, key0, key1})));
}

void chainrule_weight_gradient(const void *g, const void *x, void *dw, float *sums, int64_t rows, int64_t outputs,
                               int64_t inputs) {
    TILED(weight_gradient(IN(bf16, g), IN(bf16, x), AS(bf16, dw), sums, rows, outputs, inputs));
}

void chainrule_product(const void *x, const void *w, const void *more_x, const void *more_w, const float *bias,
                       const void *before, const void *plus, void *y, void *after, int64_t rows, int64_t inputs,
                       int64_t outputs, int64_t more, int32_t across) {
    TILED(product({IN(bf16, x), IN(bf16, w), IN(bf16, more_x), IN(bf16, more_w), bias, IN(bf16, before),
                   IN(bf16, plus), AS(bf16, y), AS(bf16, after), rows, inputs, outputs, more, across}));
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

double chainrule_squares(const int64_t *tensors, int64_t n) {
    return squares(reinterpret_cast<const Summed *>(tensors), n);
}

void chainrule_adam(const int64_t *tensors, const float *numbers, int64_t n, float factor) {
    adam(reinterpret_cast<const Updated *>(tensors), reinterpret_cast<const Adam *>(numbers), n, factor);
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

