// In place of the kernels' own: products of a warpgroup, computed when they are waited for, each thread its fragment.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

inline u32 wgmma_tile(u32 shared_address) { return 1u << 16 | (shared_address & 0x3ffff) >> 4; }
inline u64 wgmma_tile_descriptor(u32 tile) { return 1ull << 62 | (1024ull >> 4) << 32 | tile; }
inline u64 wgmma_descriptor(u32 shared_address) { return wgmma_tile_descriptor(wgmma_tile(shared_address)); }
template <u32 kSlabBytes>
u64 wgmma_descriptor_mn(u32 shared_address) {
    return 1ull << 62 | (1024ull >> 4) << 32 | static_cast<u64>(kSlabBytes >> 4) << 16 |
           ((shared_address & 0x3ffff) >> 4);
}

inline void wgmma_fence() {}
inline void wgmma_commit() { emu::commit(emu::self().products, emu::self().product_groups); }
template <u32 kPending>
void wgmma_wait() {
    emu::dawdle();
    emu::finish(emu::self().product_groups, kPending);
}
template <u32 kCount>
void wgmma_pin(float (&)[kCount]) {}

inline float e4m3_value(u8 code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 0x7f) == 0x7f) return NAN;
    const float magnitude = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
    return code & 0x80 ? -magnitude : magnitude;
}
inline const std::array<float, 256> kE4m3 = [] {
    std::array<float, 256> values;
    for (u32 code = 0; code < 256; ++code) values[code] = e4m3_value(static_cast<u8>(code));
    return values;
}();

// Of a descriptor: where byte `byte` of row `row` is, or with kMn, element `row` of M or N of row `byte` of K.
struct WgmmaOperand {
    const u8* memory;
    u32 start, leading, stride;
    explicit WgmmaOperand(u64 descriptor)
        : memory(emu::self().cta->memory), start((descriptor & 0x3fff) << 4), leading((descriptor >> 16 & 0x3fff) << 4),
          stride((descriptor >> 32 & 0x3fff) << 4) {}
    const u8* at(u32 row, u32 byte) const { return swizzle(start + row / 8 * stride + row % 8 * 128 + byte); }
    const u8* at_mn(u32 mn, u32 k) const {
        return swizzle(start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2);
    }
    const u8* swizzle(u32 address) const { return memory + (address ^ (address >> 7 & 7) << 4); }
};

inline float bf16_at(const u8* at) {
    u16 bits;
    std::memcpy(&bits, at, 2);
    return __uint_as_float(static_cast<u32>(bits) << 16);
}

// d += of the thread's fragment of 64 x kN: rows and columns by a(row, k) and b(column, k).
template <u32 kN, u32 kK, class A, class B>
void add_product(float* d, bool add, A a, B b) {
    const u32 thread = emu::self().index % 128, row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    std::array<std::array<float, kK>, 2> rows;
    for (u32 half = 0; half < 2; ++half)
        for (u32 k = 0; k < kK; ++k) rows[half][k] = a(row + 8 * half, k);
    for (u32 j = 0; j < kN / 8; ++j) {
        for (u32 c = 0; c < 2; ++c) {
            std::array<float, kK> of_column;
            for (u32 k = 0; k < kK; ++k) of_column[k] = b(8 * j + column + c, k);
            for (u32 half = 0; half < 2; ++half) {
                float sum = add ? d[4 * j + 2 * half + c] : 0;
                for (u32 k = 0; k < kK; ++k) sum += rows[half][k] * of_column[k];
                d[4 * j + 2 * half + c] = sum;
            }
        }
    }
}

template <u32 kN>
struct WgmmaE4m3 {
    static void run(float (&d)[kN / 2], u64 desc_a, u64 desc_b, bool add) {
        emu::self().products.push_back([to = &d[0], a = WgmmaOperand(desc_a), b = WgmmaOperand(desc_b), add] {
            add_product<kN, 32>(
                to, add, [&](u32 row, u32 k) { return kE4m3[*a.at(row, k)]; },
                [&](u32 column, u32 k) { return kE4m3[*b.at(column, k)]; });
        });
    }
};

template <u32 kN, bool kMnA, bool kMnB>
struct WgmmaBf16 {
    static void run(float (&d)[kN / 2], u64 desc_a, u64 desc_b, bool add) {
        emu::self().products.push_back([to = &d[0], a = WgmmaOperand(desc_a), b = WgmmaOperand(desc_b), add] {
            add_product<kN, 16>(
                to, add, [&](u32 row, u32 k) { return bf16_at(kMnA ? a.at_mn(row, k) : a.at(row, 2 * k)); },
                [&](u32 column, u32 k) { return bf16_at(kMnB ? b.at_mn(column, k) : b.at(column, 2 * k)); });
        });
    }
};
