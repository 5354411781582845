#pragma once

// What all kernels share: threads, number formats, exponentials, random bytes of dropout, scratch rows.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
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

// Sixteen numbers that are worked on together, in one register or several.
typedef float Lanes __attribute__((vector_size(64), aligned(4)));

// Zeros that begin where a line of the cache does, so that no vector lies across two.
struct Zeros {
    std::vector<float> room;
    float *start;

    explicit Zeros(int64_t count) : room(count + 16) {
        const uintptr_t place = reinterpret_cast<uintptr_t>(room.data());
        start = room.data() + (64 - place % 64) % 64 / 4;
    }
    Zeros(const Zeros &) = delete;
};

// One thread's scratch for rows of `columns` elements.
struct Row {
    std::vector<float> values, factors, other;
    std::vector<uint32_t> words;
    explicit Row(int64_t columns)
        : values(whole(columns)), factors(whole(columns), 1.0f), other(whole(columns)), words((columns + 3) / 4 + 1) {}

    static int64_t whole(int64_t columns) { return (columns + 15) / 16 * 16; }
};

// Sixteen numbers made one, the upper half onto the lower half each time.
template <typename Join>
inline float folded(const Lanes &lanes, Join join) {
    float halves[16];
    std::memcpy(halves, &lanes, 64);
    for (int i = 0; i < 8; ++i) halves[i] = join(halves[i], halves[i + 8]);
    for (int i = 0; i < 4; ++i) halves[i] = join(halves[i], halves[i + 4]);
    return join(join(halves[0], halves[2]), join(halves[1], halves[3]));
}

// The greatest of `wide` numbers, a multiple of 16. In vectors of our own: compilers leave a plain maximum scalar.
inline float greatest(const float *values, int64_t wide) {
    Lanes tops = *reinterpret_cast<const Lanes *>(values);
    for (int64_t c = 16; c < wide; c += 16) {
        const Lanes more = *reinterpret_cast<const Lanes *>(values + c);
        tops = more > tops ? more : tops;
    }
    return folded(tops, [](float a, float b) { return a > b ? a : b; });
}

// The sum of `wide` numbers, a multiple of 16.
inline float sum_of(const float *values, int64_t wide) {
    Lanes sums = *reinterpret_cast<const Lanes *>(values);
    for (int64_t c = 16; c < wide; c += 16) sums += *reinterpret_cast<const Lanes *>(values + c);
    return folded(sums, [](float a, float b) { return a + b; });
}

const int64_t SMALL = 16384;  // elements below which threads cost more than they bring
const int64_t CHUNK = 4096;  // elements of a long tensor that one thread takes at a time

}  // namespace
