#pragma once

// Matrix products on tiles: the gradient of a weight, whose left side lies across, and of rows with a weight.

#include "chains.hpp"
#include "tiles.hpp"

#ifdef HAS_TILES

namespace {

const int64_t TERMS = 256;           // rows summed over at once: both sides and the sums then fit into the cache
const int64_t SUM_BYTES = 1300000;   // of one thread's sums

// The rows from `first` on, at most 32 of them: in place where all are there, else with zeros below them in `room`.
inline const bf16 *rows_or_copy(const bf16 *from, int64_t stride, int64_t first, int64_t rows, int64_t columns,
                                bf16 *room) {
    if (first + SIDE <= rows) return from + first * stride;
    std::memset(room, 0, SIDE * stride * sizeof(bf16));
    for (int64_t r = first; r < rows; ++r)
        std::memcpy(room + (r - first) * stride, from + r * stride, columns * sizeof(bf16));
    return room;
}

// dw[n][k] = Σ g[m][n] · x[m][k], and sums[n] += Σ g[m][n] where sums are asked for. n and k multiples of 32.
inline void weight_gradient(const bf16 *g, const bf16 *x, bf16 *dw, float *sums, int64_t rows, int64_t outputs,
                            int64_t inputs) {
    const bool by_outputs = outputs >= inputs;
    const int64_t longer = by_outputs ? outputs : inputs, shorter = by_outputs ? inputs : outputs;
    int64_t parts = team;
    while (longer / parts * shorter * 4 > SUM_BYTES && longer / parts > SIDE) parts *= 2;
    const int64_t most = (longer / SIDE + parts - 1) / parts * SIDE;
    const int64_t mine_n = by_outputs ? most : outputs, mine_k = by_outputs ? inputs : most;
#pragma omp parallel num_threads(team)
    {
        Tiles tiles;
        const Interleaving way;
        Scratch &room = scratch_of(8192 + (mine_n * mine_k + mine_n) * 4 + (TERMS * (mine_n + mine_k) + SIDE * (outputs + inputs)) * 2);
        float *c = room.take<float>(mine_n * mine_k), *column_sums = room.take<float>(mine_n);
        bf16 *left = room.take<bf16>(TERMS * mine_n), *right = room.take<bf16>(TERMS * mine_k);
        bf16 *last_g = room.take<bf16>(SIDE * outputs), *last_x = room.take<bf16>(SIDE * inputs);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t from = longer / SIDE * part / parts * SIDE, to = longer / SIDE * (part + 1) / parts * SIDE;
            const int64_t n0 = by_outputs ? from : 0, n1 = by_outputs ? to : outputs;
            const int64_t k0 = by_outputs ? 0 : from, k1 = by_outputs ? inputs : to;
            const bool sum = sums && (by_outputs || part == 0);
            if (sum) std::memset(column_sums, 0, (n1 - n0) * sizeof(float));
            for (int64_t m0 = 0; m0 < rows; m0 += TERMS) {
                const int64_t steps = (std::min(TERMS, rows - m0) + SIDE - 1) / SIDE;
                for (int64_t s = 0; s < steps; ++s) {
                    const int64_t m = m0 + s * SIDE;
                    const bf16 *gs = rows_or_copy(g, outputs, m, rows, outputs, last_g);
                    const bf16 *xs = rows_or_copy(x, inputs, m, rows, inputs, last_x);
                    for (int64_t n = n0; n < n1; n += SIDE) pack_across(gs + n, outputs, left + ((n - n0) / SIDE * steps + s) * PAIR, way);
                    for (int64_t k = k0; k < k1; k += SIDE) pack_terms(xs + k, inputs, right + ((k - k0) / SIDE * steps + s) * PAIR, way);
                    if (sum)
                        for (int64_t r = 0; r < SIDE; ++r)
                            for (int64_t n = n0; n < n1; ++n) column_sums[n - n0] += load(gs[r * outputs + n]);
                }
                const bool last = m0 + TERMS >= rows;
                for (int64_t n = n0; n < n1; n += SIDE)
                    for (int64_t k = k0; k < k1; k += SIDE) {
                        float *block = c + ((n - n0) / SIDE * ((k1 - k0) / SIDE) + (k - k0) / SIDE) * SIDE * SIDE;
                        if (m0)
                            take_block(block, SIDE);
                        else
                            clear_block();
                        add_packed(left + (n - n0) / SIDE * steps * PAIR, right + (k - k0) / SIDE * steps * PAIR, steps);
                        put_block(block, SIDE);
                        if (last)
                            for (int64_t r = 0; r < SIDE; ++r) narrow_row(block + r * SIDE, dw + (n + r) * inputs + k, SIDE);
                    }
            }
            if (sum)
                for (int64_t n = n0; n < n1; ++n) sums[n] += column_sums[n - n0];
        }
    }
}

// `gelu` of sixteen numbers, by the same polynomial.
inline __m512 gelu16(__m512 x) {
    const __m512 square = _mm512_mul_ps(x, x), bound = _mm512_set1_ps(4.1f);
    __m512 sum = _mm512_set1_ps(GELU_CURVE[8]);
    for (int i = 7; i >= 0; --i) sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(GELU_CURVE[i]));
    const __m512 inside = _mm512_fmadd_ps(x, sum, _mm512_set1_ps(0.5f));
    const __m512 share = _mm512_mask_mov_ps(inside, _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ), _mm512_set1_ps(1.0f));
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_sub_ps(_mm512_setzero_ps(), bound), _CMP_GT_OQ);
    return _mm512_maskz_mul_ps(counts, x, share);
}

const int64_t PAST_BYTES = 4000000;

// The slope of `gelu` at sixteen numbers, by the same polynomial.
inline __m512 gelu_slope16(__m512 x) {
    const __m512 square = _mm512_mul_ps(x, x), bound = _mm512_set1_ps(4.5f);
    __m512 sum = _mm512_set1_ps(SLOPE_CURVE[9]);
    for (int i = 8; i >= 0; --i) sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(SLOPE_CURVE[i]));
    const __m512 inside = _mm512_fmadd_ps(x, sum, _mm512_set1_ps(0.5f));
    const __m512 slope = _mm512_mask_mov_ps(inside, _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ), _mm512_set1_ps(1.0f));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_sub_ps(_mm512_setzero_ps(), bound), _CMP_GT_OQ), slope);
}

inline __m512 widened(const bf16 *from) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// y = x · wᵀ + bias of a weight (outputs, inputs), or x · w of one (inputs, outputs). `after` gets GELU of it as well;
// where `before` is given, the result is multiplied with the slope of GELU there; `plus` is added in the end. `x` and `w`
// may go on in `more_x` (rows, more) and `more_w`, which lies as `w` does.
struct Product {
    const bf16 *x, *w, *more_x, *more_w;
    const float *bias;
    const bf16 *before, *plus;
    bf16 *y, *after;
    int64_t rows, inputs, outputs, more;
    int32_t across;
    bool past = rows * outputs * 2 > PAST_BYTES;

    // The right sides of all columns of a block of 32, step after step.
    void pack(int64_t column, bf16 *to, const Interleaving &way) const {
        pack(w, inputs, column, to, way);
        pack(more_w, more, column, to + inputs * SIDE, way);
    }

    void pack(const bf16 *from, int64_t terms, int64_t column, bf16 *to, const Interleaving &way) const {
        for (int64_t k = 0; k < terms; k += SIDE, to += PAIR)
            if (across)
                pack_terms(from + k * outputs + column, outputs, to, way);
            else
                pack_columns(from + column * terms + k, terms, to);
    }

    // One row of a block of sums to where it belongs.
    void finish(const float *sums, int64_t row, int64_t column) const {
        __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 16);
        if (bias) {
            low = _mm512_add_ps(low, _mm512_loadu_ps(bias + column));
            high = _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16));
        }
        const int64_t place = row * outputs + column;
        if (before) {
            low = _mm512_mul_ps(low, gelu_slope16(widened(before + place)));
            high = _mm512_mul_ps(high, gelu_slope16(widened(before + place + 16)));
        }
        if (plus) {
            low = _mm512_add_ps(low, widened(plus + place));
            high = _mm512_add_ps(high, widened(plus + place + 16));
        }
        if (y) put(y + place, low, high);
        if (after) put(after + place, gelu16(low), gelu16(high));
    }

    // What is larger than the cache is written past it.
    void put(bf16 *to, __m512 low, __m512 high) const {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        if (past && reinterpret_cast<uintptr_t>(to) % 64 == 0)
            _mm512_stream_si512(reinterpret_cast<__m512i *>(to), both);
        else
            _mm512_storeu_si512(to, both);
    }
};

// Finished sums that wait to be written while the next block is multiplied.
struct Pending {
    const float *sums = nullptr;
    int64_t row = 0, column = 0, count = 0;

    void write(const Product &p, int64_t from, int64_t to) const {
        for (int64_t r = from; r < std::min(to, count); ++r) p.finish(sums + r * SIDE, row + r, column);
    }
};

const int64_t RIGHT_BYTES = 1200000;  // of the columns that are packed at once: they stay in the second cache
const int64_t NEAR_STEPS = 20;       // of 32 terms: that many of the left side stay in the first

inline void product(const Product &p) {
    int64_t across = team;  // threads side by side, each packs its columns; the others divide the rows
    while (team % across || (across > 1 && p.outputs / across < 2 * SIDE)) --across;
    const int64_t down = team / across, blocks = (p.rows + SIDE - 1) / SIDE, steps = p.inputs / SIDE;
    const int64_t terms = p.inputs + p.more, most = std::max<int64_t>(SIDE, RIGHT_BYTES / 2 / terms / SIDE * SIDE);
    const int64_t near = (steps + (steps + NEAR_STEPS - 1) / NEAR_STEPS - 1) / ((steps + NEAR_STEPS - 1) / NEAR_STEPS);
#pragma omp parallel num_threads(team)
    {
        Tiles tiles;
        const Interleaving way;
        Scratch &room = scratch_of(16384 + (most + SIDE) * terms * 2 + 2 * most * SIDE * 4);
        bf16 *right = room.take<bf16>(most * terms), *last = room.take<bf16>(SIDE * p.inputs);
        bf16 *last_more = room.take<bf16>(SIDE * p.more);
        float *sums[2] = {room.take<float>(most * SIDE), room.take<float>(most * SIDE)};
#pragma omp for schedule(static)
        for (int64_t me = 0; me < team; ++me) {
            const int64_t side = me % across, level = me / across, wide = p.outputs / SIDE;
            const int64_t from = wide * side / across * SIDE, to = wide * (side + 1) / across * SIDE;
            const int64_t top = blocks * level / down, bottom = blocks * (level + 1) / down;
            for (int64_t start = from; start < to; start += most) {
                const int64_t end = std::min(to, start + most);
                if (top < bottom)
                    for (int64_t n = start; n < end; n += SIDE) p.pack(n, right + (n - start) * terms, way);
                Pending pending;
                for (int64_t block = top; block < bottom; ++block) {
                    const int64_t row = block * SIDE, count = std::min(SIDE, p.rows - row);
                    const bf16 *left = rows_or_copy(p.x, p.inputs, row, p.rows, p.inputs, last);
                    const bf16 *more = rows_or_copy(p.more_x, p.more, row, p.rows, p.more, last_more);
                    if (row + 2 * SIDE <= p.rows) {
                        const char *next = reinterpret_cast<const char *>(left + SIDE * p.inputs);
                        for (int64_t place = 0; place < SIDE * p.inputs * 2; place += 64) _mm_prefetch(next + place, _MM_HINT_T1);
                    }
                    for (int64_t first = 0; first < steps; first += near)
                        for (int64_t n = start; n < end; n += SIDE) {
                            const int64_t now = std::min(near, steps - first);
                            float *place = sums[block % 2] + (n - start) * SIDE;
                            if (first)
                                take_block(place, SIDE);
                            else
                                clear_block();
                            add_products(left + first * SIDE, p.inputs, 16 * p.inputs, SIDE,
                                         right + (n - start) * terms + first * PAIR, now, [&](int64_t s) {
                                             pending.write(p, SIDE * s / now, SIDE * (s + 1) / now);
                                         });
                            const bool done = first + now == steps;
                            if (done && p.more)
                                add_rows(more, p.more, right + (n - start) * terms + steps * PAIR, p.more / SIDE);
                            put_block(place, SIDE);
                            pending = {};
                            if (done) pending = {place, row, n, count};
                        }
                }
                pending.write(p, 0, SIDE);
            }
        }
        _mm_sfence();
    }
}

}  // namespace

#endif
