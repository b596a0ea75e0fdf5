// SwiGLU: silu(gate) * up, in float32, rounded to the elements' type.
#pragma once
#include "common/row_vector.cuh"
#include "common/types.cuh"

__device__ __forceinline__ float swiglu(float gate, float up) { return __fdividef(gate, 1 + __expf(-gate)) * up; }

// Of the elements of a word each.
template <class In>
__device__ __forceinline__ u32 swiglu_word(u32 gate, u32 up) {
    using Words = ::Words<In>;
    const float low = swiglu(Words::value(Words::element(gate, 0)), Words::value(Words::element(up, 0)));
    if constexpr (Words::kElements == 1) {
        return __float_as_uint(low);
    } else {
        return pack_pair(In{}, low, swiglu(Words::value(Words::element(gate, 1)), Words::value(Words::element(up, 1))));
    }
}
