// In place of the kernels' own: the copy engine. A tensor map holds what emulate.py has written into it.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

struct EmulatedMap {
    u64 address, sizes[5], strides[5];  // strides in bytes, that of the innermost the size of an element
    u32 box[5], rank, swizzle;
};
static_assert(sizeof(EmulatedMap) <= sizeof(TensorMap));

// f(element in global memory, null outside of the tensor; element in shared memory), for all of a box.
template <class F>
void each_element(const TensorMap& opaque, u8* box, std::array<int, 5> at, u32 rank, F f) {
    EmulatedMap map;
    std::memcpy(&map, &opaque, sizeof map);
    emu::check(map.rank == rank, "a box of other dimensions than its tensor map");
    emu::check(at[0] * static_cast<long>(map.strides[0]) % 16 == 0, "a box begins at no multiple of 16 bytes");
    emu::check(shared_address(box) % (map.swizzle ? 8 * map.swizzle : 128) == 0, "a box's alignment in shared memory");
    u32 count = 1;
    for (u32 d = 0; d < rank; ++d) count *= map.box[d];
    for (u32 i = 0; i < count; ++i) {
        u64 address = map.address;
        bool inside = true;
        u32 rest = i;
        for (u32 d = 0; d < rank; ++d) {
            const long position = static_cast<long>(at[d]) + rest % map.box[d];
            rest /= map.box[d];
            inside = inside && position >= 0 && position < static_cast<long>(map.sizes[d]);
            address += position * map.strides[d];
        }
        u32 offset = shared_address(box) + i * map.strides[0];
        if (map.swizzle) offset ^= (offset >> 7 & (map.swizzle / 16 - 1)) << 4;
        f(inside ? reinterpret_cast<u8*>(address) : nullptr, emu::self().cta->memory + offset,
          static_cast<u32>(map.strides[0]));
    }
}

inline u32 box_bytes(const TensorMap& opaque) {
    EmulatedMap map;
    std::memcpy(&map, &opaque, sizeof map);
    u32 bytes = map.strides[0];
    for (u32 d = 0; d < map.rank; ++d) bytes *= map.box[d];
    return bytes;
}

// In the CTA of the thread that asked, whichever runs when it happens.
template <class F>
emu::Op as_self(F f) {
    return [f, fiber = emu::machine.current] {
        emu::Fiber* const running = std::exchange(emu::machine.current, fiber);
        f();
        emu::machine.current = running;
    };
}

inline void load_box(void* to, const TensorMap& map, Barrier& barrier, std::array<int, 5> at, u32 rank, u32 mask) {
    const TensorMap copy = map;
    emu::machine.under_way.push_back(as_self([=, &barrier] {
        for (u32 other = 0; other < emu::machine.ctas.size(); ++other) {
            if (!(mask >> other & 1)) continue;
            each_element(copy, static_cast<u8*>(to), at, rank, [&](const u8* from, u8* into, u32 bytes) {
                into = in_block(into, other);
                from ? std::memcpy(into, from, bytes) : std::memset(into, 0, bytes);
            });
            in_block(&barrier, other)->count(0, -static_cast<int>(box_bytes(copy)));
        }
    }));
}

inline u32 only_self() { return 1u << emu::self().cta->rank; }
inline void tma_prefetch_descriptor(const TensorMap&) {}
inline u64 l2_evict_first() { return 0; }
inline void tma_load_2d(void* to, const TensorMap& map, Barrier& barrier, int x, int y, u64 = 0) {
    load_box(to, map, barrier, {x, y}, 2, only_self());
}
inline void tma_load_3d(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z, u64 = 0) {
    load_box(to, map, barrier, {x, y, z}, 3, only_self());
}
inline void tma_load_2d_multicast(void* to, const TensorMap& map, Barrier& barrier, int x, int y, u16 mask) {
    load_box(to, map, barrier, {x, y}, 2, mask);
}

// Read at once, or when the rest happens.
inline void copy_to_block(const void* from, u32 bytes, Barrier& barrier, u32 rank) {
    emu::check(bytes % 16 == 0 && shared_address(from) % 16 == 0, "a copy between blocks is of pieces of 16 bytes");
    const u8* const first = static_cast<const u8*>(from);
    const std::vector<u8> read(first, first + (emu::machine.random() % 2 ? bytes : 0));
    emu::machine.under_way.push_back(as_self([=, &barrier] {
        std::memcpy(in_block(const_cast<u8*>(first), rank), read.empty() ? first : read.data(), bytes);
        in_block(&barrier, rank)->count(0, -static_cast<int>(bytes));
    }));
}

inline void store_box(const TensorMap& map, const void* from, std::array<int, 5> at, u32 rank, bool add) {
    const TensorMap copy = map;
    emu::self().stores.push_back(as_self([=] {
        each_element(copy, static_cast<u8*>(const_cast<void*>(from)), at, rank, [&](u8* to, const u8* box, u32 bytes) {
            if (to == nullptr) return;
            if (!add) {
                std::memcpy(to, box, bytes);
            } else {
                float sum, more;
                std::memcpy(&sum, to, 4), std::memcpy(&more, box, 4);
                sum += more;
                std::memcpy(to, &sum, 4);
            }
        });
    }));
}

inline void tma_store_2d(const TensorMap& map, const void* from, int x, int y, u64 = 0) {
    store_box(map, from, {x, y}, 2, false);
}
inline void tma_store_3d(const TensorMap& map, const void* from, int x, int y, int z, u64 = 0) {
    store_box(map, from, {x, y, z}, 3, false);
}
inline void tma_reduce_add_2d(const TensorMap& map, const void* from, int x, int y) {
    store_box(map, from, {x, y}, 2, true);
}
inline void tma_reduce_add_3d(const TensorMap& map, const void* from, int x, int y, int z) {
    store_box(map, from, {x, y, z}, 3, true);
}
inline void tma_store_commit() { emu::commit(emu::self().stores, emu::self().store_groups); }
template <u32 kPending>
void tma_store_wait_read() {
    emu::finish(emu::self().store_groups, kPending);
}

inline void prefetch_l2(const void*) {}
inline void async_copy(void* to, const void* from, u32 bytes, u32 whole) {
    emu::check(shared_address(to) % whole == 0, "an asynchronous copy's alignment in shared memory");
    emu::self().copies.push_back([=] {
        std::memset(to, 0, whole);
        if (bytes) std::memcpy(to, from, bytes);
    });
}
template <u32 kBytes>
void async_copy(void* to, const void* from) {
    async_copy(to, from, kBytes, kBytes);
}
inline void async_copy_or_zeros(u32 to, const void* from, bool copied) {
    async_copy(emu::self().cta->memory + to, from, copied ? 4 : 0, 4);
}
inline void async_zeros_4_bytes(void* to, const void* from) { async_copy(to, from, 0, 4); }
template <u32 kBytes>
void async_copy_of_line(void* to, const void* from) {
    async_copy(to, from, kBytes, kBytes);
}
inline void async_copy_commit() { emu::commit(emu::self().copies, emu::self().copy_groups); }
template <u32 kPending>
void async_copy_wait() {
    emu::finish(emu::self().copy_groups, kPending);
}
inline void async_copy_wait_all() {
    async_copy_commit();
    async_copy_wait<0>();
}

template <u32 kRowBytes>
constexpr u32 swizzled(u32 offset) {
    return offset ^ (((offset >> 7) & (kRowBytes / 16 - 1)) << 4);
}
