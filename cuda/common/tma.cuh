// The bulk tensor copy engine (TMA) and the small asynchronous copies beside it.
#pragma once
#include "common/barrier.cuh"
#include "common/types.cuh"

__device__ __forceinline__ void tma_prefetch_descriptor(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// L2's policy for lines that are read once: they push out each other instead of what else is there.
__device__ __forceinline__ u64 l2_evict_first() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void tma_load_2d(void* to, const TensorMap& map, Barrier& barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y)
        : "memory");
}

// With a policy of L2. One that says what is the default anyway costs time.
__device__ __forceinline__ void tma_load_2d(void* to, const TensorMap& map, Barrier& barrier, int x, int y,
                                            u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void tma_load_3d(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}

__device__ __forceinline__ void tma_load_3d(void* to, const TensorMap& map, Barrier& barrier, int x, int y, int z,
                                            u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
        : "memory");
}

// The box lands at the same offset in every CTA of `mask`, and signals the barrier at the same offset there.
__device__ __forceinline__ void tma_load_2d_multicast(void* to, const TensorMap& map, Barrier& barrier, int x, int y,
                                                      u16 mask) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "h"(mask)
        : "memory");
}

// So many bytes, a multiple of 16, to the same place in the shared memory of CTA `rank` of the cluster, where they signal
// the barrier at this offset.
__device__ __forceinline__ void copy_to_block(const void* from, u32 bytes, Barrier& barrier, u32 rank) {
    asm volatile(
        "{\n"
        ".reg .b32 to, signalled;\n"
        "mapa.shared::cluster.u32 to, %0, %3;\n"
        "mapa.shared::cluster.u32 signalled, %2, %3;\n"
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%0], %1, [signalled];\n"
        "}\n" ::"r"(shared_address(from)),
        "r"(bytes), "r"(shared_address(&barrier)), "r"(rank)
        : "memory");
}

__device__ __forceinline__ void tma_store_2d(const TensorMap& map, const void* from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void tma_store_2d(const TensorMap& map, const void* from, int x, int y, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3}], [%1], %4;" ::"l"(&map),
        "r"(shared_address(from)), "r"(x), "r"(y), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void tma_store_3d(const TensorMap& map, const void* from, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

__device__ __forceinline__ void tma_store_3d(const TensorMap& map, const void* from, int x, int y, int z, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4}], [%1], %5;" ::"l"(
            &map),
        "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "l"(policy)
        : "memory");
}

// Adds the box to what is there, each element by an atomic operation of the L2 cache: nothing is read or waited for here.
__device__ __forceinline__ void tma_reduce_add_2d(const TensorMap& map, const void* from, int x, int y) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void tma_reduce_add_3d(const TensorMap& map, const void* from, int x, int y, int z) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
        : "memory");
}

__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's store groups still read shared memory.
template <u32 kPending>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void prefetch_l2(const void* from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory");
}

// kBytes: 4, 8 or 16; both addresses are multiples of it.
template <u32 kBytes>
__device__ __forceinline__ void async_copy(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
                 : "memory");
}

// Reads nothing; `from` is an address of global memory all the same.
__device__ __forceinline__ void async_zeros_4_bytes(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(0)
                 : "memory");
}

// 4 bytes to an address of shared memory, or zeros instead: then nothing is read, whatever `from` is.
__device__ __forceinline__ void async_copy_or_zeros(u32 to, const void* from, bool copied) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(copied ? 4 : 0) : "memory");
}

// kBytes: 8 or 16. L2 fetches the whole line of 128 bytes.
template <u32 kBytes>
__device__ __forceinline__ void async_copy_of_line(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
                 : "memory");
}

__device__ __forceinline__ void async_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups of copies are under way.
template <u32 kPending>
__device__ __forceinline__ void async_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void async_copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Where TMA puts byte `offset` of a box whose rows are kRowBytes (32, 64 or 128) and whose swizzle is as wide.
template <u32 kRowBytes>
__device__ __forceinline__ constexpr u32 swizzled(u32 offset) {
    return offset ^ (((offset >> 7) & (kRowBytes / 16 - 1)) << 4);
}
