// CUDA's names and a scheduler, for kernels compiled by an ordinary C++ compiler: `emulate.py` says what for.
//
// Each CUDA thread is a fiber; a cluster's run in an order drawn at random, switching where they wait. What is
// asynchronous on the GPU happens late: loads at some time before the wait for them, products when they are waited for,
// stores when their buffer is asked back. So whoever gives memory away too early reads what others have written.
#pragma once
#include <bit>
#include <cmath>

#include "machine.h"

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (emu::self().thread)
#define blockIdx (emu::self().cta->block)
#define blockDim (emu::machine.launch.block)
#define gridDim (emu::machine.launch.grid)

// ---- arithmetic ---------------------------------------------------------------------------------------------------

template <class A, class B>
constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline int __ffs(unsigned v) { return v == 0 ? 0 : std::countr_zero(v) + 1; }
inline int __popc(unsigned v) { return std::popcount(v); }
inline void __nanosleep(unsigned) {}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
    return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}
inline unsigned __vminu2(unsigned a, unsigned b) {
    return min(a & 0xffffu, b & 0xffffu) | min(a >> 16, b >> 16) << 16;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned nibbles) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned nibble = nibbles >> 4 * i & 15, byte = bytes >> 8 * (nibble & 7) & 0xff;
        result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> v) { return std::exchange(*at, *at + v); }
template <class T>
T atomicMin(T* at, std::type_identity_t<T> v) { return std::exchange(*at, min(*at, v)); }
template <class T>
T atomicMax(T* at, std::type_identity_t<T> v) { return std::exchange(*at, max(*at, v)); }

// ---- warps and blocks ---------------------------------------------------------------------------------------------

inline void __syncthreads() { emu::meet(emu::self().cta->barriers[0], emu::self().cta->threads); }
inline void __syncwarp(unsigned = ~0u) { emu::warp_sync(); }
template <class T>
T __shfl_sync(unsigned, T v, int from, int = 32) { return emu::exchange(v, [&](auto of) { return of(from); }); }
template <class T>
T __shfl_xor_sync(unsigned, T v, int bits, int = 32) {
    return emu::exchange(v, [&](auto of) { return of(emu::lane() ^ bits); });
}
template <class T>
T __shfl_up_sync(unsigned, T v, unsigned by) {
    return emu::exchange(v, [&](auto of) { return emu::lane() < by ? v : of(emu::lane() - by); });
}
template <class T>
T __shfl_down_sync(unsigned, T v, unsigned by) {
    return emu::exchange(v, [&](auto of) { return emu::lane() + by > 31 ? v : of(emu::lane() + by); });
}
inline unsigned __ballot_sync(unsigned, bool v) {
    return emu::exchange(v, [](auto of) {
        unsigned all = 0;
        for (unsigned i = 0; i < 32; ++i) all |= static_cast<unsigned>(of(i)) << i;
        return all;
    });
}
inline bool __any_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) != 0; }
inline bool __all_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) == ~0u; }
template <class T>
unsigned __match_any_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        unsigned same = 0;
        for (unsigned i = 0; i < 32; ++i) same |= static_cast<unsigned>(of(i) == v) << i;
        return same;
    });
}
template <class T>
T __reduce_max_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        T all = v;
        for (unsigned i = 0; i < 32; ++i) all = max(all, of(i));
        return all;
    });
}
template <class T>
T __reduce_add_sync(unsigned, T v) {
    return emu::exchange(v, [&](auto of) {
        T all = 0;
        for (unsigned i = 0; i < 32; ++i) all += of(i);
        return all;
    });
}

// ---- what emulate.py puts in the place of single instructions -----------------------------------------------------

// Rounds to nearest even; beyond 448 becomes 448, NaN stays.
inline unsigned to_e4m3(float v) {
    const unsigned sign = __float_as_uint(v) >> 31 << 7;
    const float magnitude = std::fabs(v);
    if (v != v) return 0x7f;
    if (magnitude >= 448) return sign | 0x7e;
    if (magnitude < 0x1p-6f) return sign | static_cast<unsigned>(std::nearbyint(magnitude * 512));
    int exponent = std::ilogb(magnitude);
    int eighths = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    if (eighths == 16) eighths = 8, ++exponent;
    return sign | (exponent + 7) << 3 | (eighths - 8);
}

// Four matrices of 8 rows of 16 bytes: lane 8 i + r says where row r of matrix i goes.
inline void store_matrices(unsigned char* row, std::array<unsigned, 4> values) {
    for (unsigned i = 0; i < 4; ++i) {
        unsigned char* const to = emu::exchange(row, [&](auto of) { return of(8 * i + emu::lane() / 4); });
        std::memcpy(to + emu::lane() % 4 * 4, &values[i], 4);
    }
    emu::warp_sync();
}
