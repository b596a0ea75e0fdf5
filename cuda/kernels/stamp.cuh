// The GPU's own clock: waits for some time, then writes it. What is enqueued during the wait runs after it without a gap.
#pragma once
#include "common/types.cuh"

__device__ __forceinline__ u64 global_nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
    return now;
}

template <class Config>
__global__ void stamp(u64* nanoseconds, u64 wait) {
    const u64 begin = global_nanoseconds();
    u64 now = begin;
    while (now - begin < wait) {
        __nanosleep(200);
        now = global_nanoseconds();
    }
    *nanoseconds = now;
}
