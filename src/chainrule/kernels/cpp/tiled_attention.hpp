#pragma once

// Attention head by head on tiles: scores, softmax and both products of one head stay in the processor's cache.

#include "attention.hpp"
#include "tiles.hpp"

#ifdef HAS_TILES

namespace {

// Where the vector of a head at a token lies, in elements.
struct Strides {
    int64_t batch, head, token;

    int64_t at(int64_t b, int64_t h, int64_t t) const { return b * batch + h * head + t * token; }
};

// `shared` neighbouring heads of queries read one head of keys and values. The mask has a byte per key; strides in bytes.
struct TiledHeads {
    int64_t batch, key_heads, shared, queries, keys, size;
    Strides of_queries, of_keys, of_output, of_dqueries, of_dkeys;  // keys and values alike
    const uint8_t *mask;
    int64_t mask_batch, mask_query;
    float scale;
    int32_t causal;
    Dropout dropout;

    int64_t wide() const { return whole_blocks(keys); }

    // Of the weights of one query, as dropout counts them.
    int64_t row(int64_t b, int64_t head, int64_t query) const { return (b * key_heads * shared + head) * queries + query; }

    // Keys that the queries before `end` may see, in whole blocks.
    int64_t seen_before(int64_t end) const {
        return causal ? std::min(wide(), whole_blocks(std::max<int64_t>(1, end + keys - queries))) : wide();
    }
};

// From the sizes, the strides of the mask, causal, and then the strides of the tensors.
inline TiledHeads tiled_heads(const int64_t *sizes, const uint8_t *mask, float scale, Dropout dropout) {
    const int64_t *n = sizes;
    const auto strides = [n](int from) { return Strides{n[from], n[from + 1], n[from + 2]}; };
    return {n[0],        n[1],        n[2],        n[3],  n[4],  n[5],  strides(9), strides(12), strides(15),
            strides(18), strides(21), mask,        n[6],  n[7],  scale, static_cast<int32_t>(n[8]), dropout};
}

const int64_t TOGETHER = 128;  // queries whose weights are kept until keys and values get their gradients

// `rows` vectors of `size`, and zeros up to `whole` of them.
inline void copy_rows(const bf16 *from, int64_t stride, int64_t rows, int64_t whole, int64_t size, bf16 *to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < size; c += SIDE)
            _mm512_store_si512(to + r * size + c, _mm512_loadu_si512(from + r * stride + c));
    if (whole > rows) std::memset(to + rows * size, 0, (whole - rows) * size * sizeof(bf16));
}

// All heads of one row of the batch lie side by side; reading them in order once is faster than head by head.
inline void fetch(const bf16 *from, const Strides &shape, int64_t heads, int64_t b, int64_t tokens, int64_t size) {
    if (shape.head != size) return;
    for (int64_t t = 0; t < tokens; ++t) {
        const char *row = reinterpret_cast<const char *>(from + shape.at(b, 0, t));
        for (int64_t c = 0; c < heads * size * 2; c += 64) _mm_prefetch(row + c, _MM_HINT_T1);
    }
}

// Rows as the columns of a right side: for each 32 of them the steps along `size`.
inline void pack_rows_as_columns(const bf16 *rows, int64_t count, int64_t size, bf16 *to) {
    for (int64_t r = 0; r < count; r += SIDE)
        for (int64_t c = 0; c < size; c += SIDE, to += PAIR) pack_columns(rows + r * size + c, size, to);
}

// Rows as the terms of a right side: for each 32 columns the steps along the rows, `room` rows apart.
inline void pack_rows_as_terms(const bf16 *rows, int64_t count, int64_t size, int64_t room, bf16 *to,
                               const Interleaving &way) {
    for (int64_t c = 0; c < size; c += SIDE)
        for (int64_t r = 0; r < count; r += SIDE)
            pack_terms(rows + r * size + c, size, to + c * room + r * SIDE, way);
}

const float POWERS[] = {9.99999260e-1f, 6.93121808e-1f, 2.40247459e-1f, 5.59178927e-2f, 9.57008538e-3f};

// 2^x of sixteen numbers of at most 0, within 2.6e-6 of it: the best polynomial of degree 4 on [-1/2, 1/2].
inline __m512 power_of_two(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(POWERS[4]);
    for (int i = 3; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(POWERS[i]));
    return _mm512_scalef_ps(p, n);
}

// What one query may see and keeps: for every key the greatest score it may have, and after dropout a bit of 64 keys.
struct Limits {
    float *most;      // 3e38 where a key may be seen, −3e38 where not
    uint64_t *kept;
    float scale;      // of what is kept

    void see(const TiledHeads &shape, int64_t b, int64_t query) const {
        const int64_t keys = shape.keys, wide = shape.wide();
        const uint8_t *may = shape.mask ? shape.mask + b * shape.mask_batch + query * shape.mask_query : nullptr;
        const int64_t end = shape.causal ? std::min(keys, query + 1 + keys - shape.queries) : keys;
        if (may)
            for (int64_t c = 0; c < keys; ++c) most[c] = may[c] ? 3.0e38f : -3.0e38f;
        else
            for (int64_t c = 0; c < keys; ++c) most[c] = 3.0e38f;
        for (int64_t c = std::max<int64_t>(0, end); c < wide; ++c) most[c] = -3.0e38f;
    }

    // The same elements as `Dropout::row`.
    void drop(const Dropout &dropout, int64_t row, int64_t columns) const {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const uint32_t first = static_cast<uint32_t>(row * ((columns + 3) / 4));
        const __m512i level = _mm512_set1_epi8(static_cast<char>(dropout.level));
        for (int64_t c = 0; c < columns; c += 64) {
            __m512i x = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + c / 4)));
            x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int>(0x9e3779b9u))),
                                 _mm512_set1_epi32(static_cast<int>(dropout.key0)));
            x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
            x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
            x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
            x = _mm512_add_epi32(x, _mm512_set1_epi32(static_cast<int>(dropout.key1)));
            x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int>(0x846ca68bu)));
            x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
            kept[c / 64] = _mm512_cmpge_epu8_mask(x, level);
        }
    }

    __mmask16 bits(int64_t c) const { return static_cast<__mmask16>(kept[c / 64] >> c % 64); }
};

// What a row of scores becomes weights by: 2^(score · factor − top) · share.
struct Softmax {
    float top, share;
};

// A score where it may be seen. `factor` has the logarithm of e to base 2 in it.
inline __m512 seen_score(const float *s, const Limits &limits, __m512 factor, int64_t c) {
    return _mm512_min_ps(_mm512_mul_ps(_mm512_load_ps(s + c), factor), _mm512_load_ps(limits.most + c));
}

// The scores of one query become powers; `seen` columns were computed, a multiple of 32. Where no key may be seen, all
// count alike.
inline Softmax tiled_softmax(float *s, const Limits &limits, float scale, int64_t keys, int64_t seen) {
    const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
    __m512 top = _mm512_set1_ps(-3.0e38f), sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < seen; c += 16) top = _mm512_max_ps(top, seen_score(s, limits, factor, c));
    const float most = _mm512_reduce_max_ps(top);
    if (most == -3.0e38f) {
        for (int64_t c = 0; c < seen; ++c) s[c] = c < keys ? 1.0f : 0.0f;
        return {most, 1.0f / static_cast<float>(std::min(keys, seen))};
    }
    for (int64_t c = 0; c < seen; c += 16) {
        const __m512 e = power_of_two(_mm512_sub_ps(seen_score(s, limits, factor, c), _mm512_set1_ps(most)));
        _mm512_store_ps(s + c, e);
        sum = _mm512_add_ps(sum, e);
    }
    return {most, 1.0f / _mm512_reduce_add_ps(sum)};
}

// Exponentials become weights in bfloat16, after dropout where `dropped`.
inline void write_weights(const float *s, float share, const Limits &limits, bool dropped, int64_t seen, bf16 *to) {
    const __m512 factor = _mm512_set1_ps(dropped ? share * limits.scale : share);
    for (int64_t c = 0; c < seen; c += 32) {
        const __mmask16 low = dropped ? limits.bits(c) : 0xffff, high = dropped ? limits.bits(c + 16) : 0xffff;
        const __m512 first = _mm512_maskz_mul_ps(low, _mm512_load_ps(s + c), factor);
        const __m512 second = _mm512_maskz_mul_ps(high, _mm512_load_ps(s + c + 16), factor);
        _mm512_store_si512(to + c, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

// The weights of one query again, from its scores and what `tiled_softmax` found, and from the gradient `g` of what they
// were after dropout that of the scores: both in bfloat16.
inline void softmax_gradient(float *s, const float *g, const Softmax &found, const Limits &limits, bool dropped,
                             float scale, int64_t keys, int64_t seen, bf16 *weights, bf16 *gradient) {
    const __m512 factor = _mm512_set1_ps(scale * 1.44269504f), top = _mm512_set1_ps(found.top);
    const __m512 share = _mm512_set1_ps(found.share), kept = _mm512_set1_ps(dropped ? limits.scale : 1.0f);
    __m512 sum = _mm512_setzero_ps();
    const bool none = found.top == -3.0e38f;
    for (int64_t c = 0; c < seen; c += 16) {
        const __mmask16 bits = dropped ? limits.bits(c) : 0xffff;
        __m512 p = _mm512_mul_ps(power_of_two(_mm512_sub_ps(seen_score(s, limits, factor, c), top)), share);
        if (none) p = _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << std::clamp<int64_t>(keys - c, 0, 16)) - 1), share);
        _mm512_store_ps(s + c, p);
        sum = _mm512_mask3_fmadd_ps(_mm512_load_ps(g + c), p, sum, bits);
    }
    const __m512 total = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_add_ps(sum)), kept), scales = _mm512_set1_ps(scale);
    __m512 after[2], below[2];
    for (int64_t c = 0; c < seen; c += 32) {
        for (int i = 0; i < 2; ++i) {
            const __mmask16 bits = dropped ? limits.bits(c + 16 * i) : 0xffff;
            const __m512 p = _mm512_load_ps(s + c + 16 * i);
            after[i] = _mm512_maskz_mul_ps(bits, p, kept);
            const __m512 centred = _mm512_sub_ps(_mm512_maskz_mul_ps(bits, _mm512_load_ps(g + c + 16 * i), kept), total);
            below[i] = _mm512_mul_ps(_mm512_mul_ps(p, scales), centred);
        }
        _mm512_store_si512(weights + c, (__m512i)_mm512_cvtne2ps_pbh(after[1], after[0]));
        _mm512_store_si512(gradient + c, (__m512i)_mm512_cvtne2ps_pbh(below[1], below[0]));
    }
}

inline void tiled_forward(const bf16 *query, const bf16 *key, const bf16 *value, bf16 *out, Softmax *softmaxes,
                          const TiledHeads &shape) {
    const int64_t size = shape.size, wide = shape.wide(), pairs = shape.batch * shape.key_heads;
#pragma omp parallel num_threads(team)
    {
        Tiles tiles;
        const Interleaving way;
        Scratch &room = scratch_of(8192 + wide * 8 + (3 * wide + SIDE) * size * 2 + SIDE * (wide * 6 + size * 4));
        bf16 *rows = room.take<bf16>(wide * size), *keys = room.take<bf16>(wide * size);
        bf16 *values = room.take<bf16>(wide * size), *queries = room.take<bf16>(SIDE * size);
        bf16 *weights = room.take<bf16>(SIDE * wide);
        float *scores = room.take<float>(SIDE * wide), *result = room.take<float>(SIDE * size);
        const Limits limits{room.take<float>(wide), room.take<uint64_t>(wide / 64 + 1), shape.dropout.scale()};
        const bool dropped = shape.dropout.level > 0, alike = !shape.causal && shape.mask_query == 0;
        int64_t here = -1;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t b = pair / shape.key_heads, h = pair % shape.key_heads, stride = shape.of_keys.token;
            if (b != here) {
                here = b;
                fetch(query, shape.of_queries, shape.key_heads * shape.shared, b, shape.queries, size);
                fetch(key, shape.of_keys, shape.key_heads, b, shape.keys, size);
                fetch(value, shape.of_keys, shape.key_heads, b, shape.keys, size);
            }
            if (alike) limits.see(shape, b, 0);
            copy_rows(key + shape.of_keys.at(b, h, 0), stride, shape.keys, wide, size, rows);
            pack_rows_as_columns(rows, wide, size, keys);
            copy_rows(value + shape.of_keys.at(b, h, 0), stride, shape.keys, wide, size, rows);
            pack_rows_as_terms(rows, wide, size, wide, values, way);
            for (int64_t head = h * shape.shared; head < (h + 1) * shape.shared; ++head)
                for (int64_t first = 0; first < shape.queries; first += SIDE) {
                    const int64_t count = std::min(SIDE, shape.queries - first), seen = shape.seen_before(first + count);
                    copy_rows(query + shape.of_queries.at(b, head, first), shape.of_queries.token, count, SIDE, size,
                              queries);
                    for (int64_t k = 0; k < seen; k += SIDE) {
                        clear_block();
                        add_rows(queries, size, keys + k * size, size / SIDE);
                        put_block(scores + k, wide);
                    }
                    for (int64_t r = 0; r < count; ++r) {
                        float *s = scores + r * wide;
                        if (!alike) limits.see(shape, b, first + r);
                        if (dropped) limits.drop(shape.dropout, shape.row(b, head, first + r), shape.keys);
                        const Softmax found = tiled_softmax(s, limits, shape.scale, shape.keys, seen);
                        write_weights(s, found.share, limits, dropped, seen, weights + r * wide);
                        if (softmaxes) softmaxes[shape.row(b, head, first + r)] = found;
                    }
                    for (int64_t c = 0; c < size; c += SIDE) {
                        clear_block();
                        add_rows(weights, wide, values + c * wide, seen / SIDE);
                        put_block(result + c, size);
                    }
                    for (int64_t r = 0; r < count; ++r)
                        narrow_row(result + r * size, out + shape.of_output.at(b, head, first + r), size);
                }
        }
    }
}

// What the gradients of one head's keys and values are summed up in, block by block.
struct BlockSums {
    float *start;
    int64_t columns;

    float *block(int64_t row, int64_t column) const {
        return start + (row / SIDE * (columns / SIDE) + column / SIDE) * SIDE * SIDE;
    }

    // block += aᵀ · b of `rows` rows; `a` is `rows` × a few of its columns, `b` packed as terms, TOGETHER rows apart.
    void add(int64_t row, const bf16 *a, int64_t stride, const bf16 *b, int64_t rows,
             const Interleaving &way) const {
        alignas(64) bf16 across[TOGETHER * SIDE];
        for (int64_t r = 0; r < rows; r += SIDE) pack_across(a + r * stride, stride, across + r * SIDE, way);
        for (int64_t c = 0; c < columns; c += SIDE) {
            take_block(block(row, c), SIDE);
            add_packed(across, b + c * TOGETHER, rows / SIDE);
            put_block(block(row, c), SIDE);
        }
    }

    void write(bf16 *to, int64_t stride, int64_t rows) const {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; c += SIDE)
                narrow_row(block(r, c) + r % SIDE * SIDE, to + r * stride + c, SIDE);
    }
};

// The gradients of `heads_backward`, and of heads of queries that share one of keys and values.
inline void tiled_backward(const bf16 *above, const bf16 *query, const bf16 *key, const bf16 *value, bf16 *dquery,
                           bf16 *dkey, bf16 *dvalue, const Softmax *softmaxes, const TiledHeads &shape) {
    const int64_t size = shape.size, wide = shape.wide(), pairs = shape.batch * shape.key_heads;
#pragma omp parallel num_threads(team)
    {
        Tiles tiles;
        const Interleaving way;
        const int64_t halves = 4 * wide * size + 4 * TOGETHER * size + 2 * TOGETHER * wide;
        Scratch &room = scratch_of(16384 + wide * 8 + halves * 2 + (2 * SIDE * wide + 2 * wide * size + SIDE * size) * 4);
        bf16 *rows = room.take<bf16>(wide * size), *keys = room.take<bf16>(wide * size);
        bf16 *key_terms = room.take<bf16>(wide * size), *values = room.take<bf16>(wide * size);
        bf16 *queries = room.take<bf16>(TOGETHER * size), *query_terms = room.take<bf16>(TOGETHER * size);
        bf16 *given = room.take<bf16>(TOGETHER * size), *given_terms = room.take<bf16>(TOGETHER * size);
        bf16 *dropped = room.take<bf16>(TOGETHER * wide), *dscores = room.take<bf16>(TOGETHER * wide);
        float *scores = room.take<float>(SIDE * wide), *inner = room.take<float>(SIDE * wide);
        float *result = room.take<float>(SIDE * size);
        const BlockSums for_keys{room.take<float>(wide * size), size}, for_values{room.take<float>(wide * size), size};
        const Limits limits{room.take<float>(wide), room.take<uint64_t>(wide / 64 + 1), shape.dropout.scale()};
        const bool dropout = shape.dropout.level > 0, alike = !shape.causal && shape.mask_query == 0;
        int64_t here = -1;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t b = pair / shape.key_heads, h = pair % shape.key_heads;
            if (b != here) {
                here = b;
                fetch(query, shape.of_queries, shape.key_heads * shape.shared, b, shape.queries, size);
                fetch(key, shape.of_keys, shape.key_heads, b, shape.keys, size);
                fetch(value, shape.of_keys, shape.key_heads, b, shape.keys, size);
                fetch(above, shape.of_output, shape.key_heads * shape.shared, b, shape.queries, size);
            }
            if (alike) limits.see(shape, b, 0);
            copy_rows(value + shape.of_keys.at(b, h, 0), shape.of_keys.token, shape.keys, wide, size, rows);
            pack_rows_as_columns(rows, wide, size, values);
            copy_rows(key + shape.of_keys.at(b, h, 0), shape.of_keys.token, shape.keys, wide, size, rows);
            pack_rows_as_columns(rows, wide, size, keys);
            pack_rows_as_terms(rows, wide, size, wide, key_terms, way);
            std::memset(for_keys.start, 0, wide * size * sizeof(float));
            std::memset(for_values.start, 0, wide * size * sizeof(float));
            for (int64_t head = h * shape.shared; head < (h + 1) * shape.shared; ++head)
                for (int64_t start = 0; start < shape.queries; start += TOGETHER) {
                    const int64_t many = std::min(TOGETHER, shape.queries - start), whole = whole_blocks(many);
                    const int64_t seen = shape.seen_before(start + many);
                    copy_rows(query + shape.of_queries.at(b, head, start), shape.of_queries.token, many, whole, size,
                              queries);
                    copy_rows(above + shape.of_output.at(b, head, start), shape.of_output.token, many, whole, size,
                              given);
                    pack_rows_as_terms(queries, whole, size, TOGETHER, query_terms, way);
                    pack_rows_as_terms(given, whole, size, TOGETHER, given_terms, way);
                    for (int64_t first = 0; first < many; first += SIDE) {
                        const int64_t count = std::min(SIDE, many - first);
                        const int64_t near = shape.seen_before(start + first + count);
                        for (int64_t k = 0; k < near; k += SIDE) {
                            clear_block();
                            add_rows(queries + first * size, size, keys + k * size, size / SIDE);
                            put_block(scores + k, wide);
                            clear_block();
                            add_rows(given + first * size, size, values + k * size, size / SIDE);
                            put_block(inner + k, wide);
                        }
                        for (int64_t r = 0; r < SIDE; ++r) {
                            bf16 *d = dropped + (first + r) * wide, *ds = dscores + (first + r) * wide;
                            const int64_t from = r < count ? near : 0;  // what is not seen gets nothing
                            std::memset(d + from, 0, (seen - from) * sizeof(bf16));
                            std::memset(ds + from, 0, (seen - from) * sizeof(bf16));
                            if (r >= count) continue;
                            float *s = scores + r * wide, *g = inner + r * wide;
                            const int64_t q = start + first + r;
                            if (!alike) limits.see(shape, b, q);
                            if (dropout) limits.drop(shape.dropout, shape.row(b, head, q), shape.keys);
                            const Softmax found = softmaxes[shape.row(b, head, q)];
                            softmax_gradient(s, g, found, limits, dropout, shape.scale, shape.keys, near, d, ds);
                        }
                        for (int64_t c = 0; c < size; c += SIDE) {
                            clear_block();
                            add_rows(dscores + first * wide, wide, key_terms + c * wide, near / SIDE);
                            put_block(result + c, size);
                        }
                        for (int64_t r = 0; r < count; ++r)
                            narrow_row(result + r * size,
                                       dquery + shape.of_dqueries.at(b, head, start + first + r), size);
                    }
                    for (int64_t k = 0; k < seen; k += SIDE) {
                        for_keys.add(k, dscores + k, wide, query_terms, whole, way);
                        for_values.add(k, dropped + k, wide, given_terms, whole, way);
                    }
                }
            for_keys.write(dkey + shape.of_dkeys.at(b, h, 0), shape.of_dkeys.token, shape.keys);
            for_values.write(dvalue + shape.of_dkeys.at(b, h, 0), shape.of_dkeys.token, shape.keys);
        }
    }
}

}  // namespace

#endif
