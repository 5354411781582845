#pragma once

// Products of bfloat16 on the tile registers of x86 processors that have them (AMX): Intel's instruction set reference,
// chapter 3. A tile has 16 rows of 64 bytes; one instruction adds the product of two to a third, of float32. Blocks here
// are 32 × 32: two tiles by two. The right side of a product lies in tiles of pairs: 16 rows that each hold two
// neighbouring terms of the sum for 16 columns.

#include "common.hpp"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace {

const int64_t SIDE = 32, TILE = 512, PAIR = 2 * TILE;  // of a block; elements of a tile of bfloat16; of two

inline int64_t whole_blocks(int64_t count) { return (count + SIDE - 1) / SIDE * SIDE; }

// Linux gives the registers to a process that asks for them.
inline bool tiles_granted() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0; }

// Palette 1, and from byte 16 on the bytes of a row (two each), from byte 48 on the rows of eight tiles.
alignas(64) const uint8_t FULL[64] = {1,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0, 0, 0, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,
                                      64, 0, 64, 0, 64, 0, 0,  0, 0,  0, 0,  0, 0, 0, 0, 0, 0,  0, 0,  0, 0,  0, 16, 16, 16, 16,
                                      16, 16, 16, 16};

// Eight tiles of full size for as long as it lives, in this thread; numbers near the smallest ones count as 0, as they
// do in the tiles.
struct Tiles {
    const unsigned before = _mm_getcsr();

    Tiles() {
        _mm_setcsr(before | 0x8040);
        _tile_loadconfig(FULL);
    }
    ~Tiles() {
        _tile_release();
        _mm_setcsr(before);
    }
    Tiles(const Tiles &) = delete;
};

// Memory that begins where a page does, handed out piece by piece, kept for the thread's next call.
struct Scratch {
    uint8_t *start = nullptr;
    size_t size = 0, used = 0;

    ~Scratch() { std::free(start); }

    void reset(size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        std::free(start);
        size = (bytes + 4095) / 4096 * 4096;
        start = static_cast<uint8_t *>(std::aligned_alloc(4096, size));
        if (!start) std::abort();
    }

    template <typename T>
    T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(start + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};

inline Scratch &scratch_of(size_t bytes) {
    static thread_local Scratch scratch;
    scratch.reset(bytes);
    return scratch;
}

// 16 × 16 numbers of 32 bits, rows made columns.
inline void transpose(const __m512i *in, __m512i *out) {
    __m512i t[16], u[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        out[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        out[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        out[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        out[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

// Right side of a product from 32 rows that are its columns: two tiles of 32 terms, 16 columns each.
inline void pack_columns(const bf16 *from, int64_t stride, bf16 *to) {
    __m512i rows[16], columns[16];
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(from + (half * 16 + i) * stride);
        transpose(rows, columns);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + half * TILE + i * SIDE, columns[i]);
    }
}

// Two rows as one: element after element in turn, those of the first or of the second half of the columns.
struct Interleaving {
    __m512i half[2];

    Interleaving() {
        alignas(64) uint16_t places[64];
        for (int i = 0; i < 64; ++i) places[i] = static_cast<uint16_t>(i / 2 + 32 * (i % 2));
        for (int i = 0; i < 2; ++i) half[i] = _mm512_load_si512(places + 32 * i);
    }

    __m512i join(__m512i first, int which, __m512i second) const {
        return _mm512_permutex2var_epi16(first, half[which], second);
    }
};

// Right side of a product from 32 rows that are its terms: two tiles of 32 terms, 16 columns each.
inline void pack_terms(const bf16 *from, int64_t stride, bf16 *to, const Interleaving &way) {
    for (int i = 0; i < 16; ++i) {
        const __m512i first = _mm512_loadu_si512(from + 2 * i * stride);
        const __m512i second = _mm512_loadu_si512(from + (2 * i + 1) * stride);
        _mm512_store_si512(to + i * SIDE, way.join(first, 0, second));
        _mm512_store_si512(to + TILE + i * SIDE, way.join(first, 1, second));
    }
}

// Left side of a product from 32 rows that are its terms: two tiles of 16 rows, 32 terms each.
inline void pack_across(const bf16 *from, int64_t stride, bf16 *to, const Interleaving &way) {
    __m512i rows[16], columns[16];
    for (int which = 0; which < 2; ++which) {
        for (int i = 0; i < 16; ++i)
            rows[i] = way.join(_mm512_loadu_si512(from + 2 * i * stride), which,
                               _mm512_loadu_si512(from + (2 * i + 1) * stride));
        transpose(rows, columns);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + which * TILE + i * SIDE, columns[i]);
    }
}

// The compiler does not know what tile instructions read and write.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

inline void clear_block() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// block += a · b over `steps` times 32 terms. `a` is 32 rows, `row` elements apart, its two halves `half` elements and
// its steps `step` elements apart; `b` is packed, step after step. `meanwhile` is given the number of each step: work for
// the other units while the tiles are multiplied.
template <typename Meanwhile>
inline void add_products(const bf16 *a, int64_t row, int64_t half, int64_t step, const bf16 *b, int64_t steps,
                         Meanwhile meanwhile) {
    settle_memory();
    for (int64_t s = 0; s < steps; ++s, a += step, b += PAIR) {
        _tile_stream_loadd(6, b, 64);
        _tile_loadd(4, a, row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + half, row * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        meanwhile(s);
    }
}

inline void add_products(const bf16 *a, int64_t row, int64_t half, int64_t step, const bf16 *b, int64_t steps) {
    add_products(a, row, half, step, b, steps, [](int64_t) {});
}

// `a` as rows of a matrix.
inline void add_rows(const bf16 *a, int64_t stride, const bf16 *b, int64_t steps) {
    add_products(a, stride, 16 * stride, SIDE, b, steps);
}

// `a` packed, as `pack_across` does.
inline void add_packed(const bf16 *a, const bf16 *b, int64_t steps) { add_products(a, SIDE, TILE, PAIR, b, steps); }

inline void put_block(float *c, int64_t stride) {
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + 16, stride * 4);
    _tile_stored(2, c + 16 * stride, stride * 4);
    _tile_stored(3, c + 16 * stride + 16, stride * 4);
    settle_memory();
}

inline void take_block(const float *c, int64_t stride) {
    settle_memory();
    _tile_loadd(0, c, stride * 4);
    _tile_loadd(1, c + 16, stride * 4);
    _tile_loadd(2, c + 16 * stride, stride * 4);
    _tile_loadd(3, c + 16 * stride + 16, stride * 4);
}

// 32 numbers in bfloat16, to nearest, ties to even.
inline __m512i narrowed(const float *from) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
}

// Numbers in bfloat16; `count` a multiple of 32.
inline void narrow_row(const float *from, bf16 *to, int64_t count) {
    for (int64_t c = 0; c < count; c += SIDE) _mm512_storeu_si512(to + c, narrowed(from + c));
}

}  // namespace

#endif
