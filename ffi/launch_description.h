// What one launch is, decoded once from the attributes of the custom call. The attributes are written by
// `Launch.attributes` in jax_deepgemm/launch.py, which also checks the geometry of tensor maps; here is checked what
// Python cannot know: that every argument lies inside the buffer that XLA binds to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace jax_deepgemm {

inline constexpr size_t kMaxArguments = 512;
inline constexpr size_t kMaxParameterBytes = 32764;  // of a kernel, on Hopper and later

struct TensorMapGeometry {
  int data_type;  // CUtensorMapDataType
  uint32_t rank;
  uint64_t sizes[5];
  uint64_t strides[5];  // of dimensions 1..
  uint32_t box[5];
  uint32_t element_strides[5];
  int swizzle;       // CUtensorMapSwizzle
  int l2_promotion;  // CUtensorMapL2promotion
  int fill;          // CUtensorMapFloatOOBfill
  size_t alignment;  // of the address, in bytes
};

struct Argument {
  enum class Kind { kPointer, kTensorMap, kScalar };
  Kind kind;
  std::string label;      // for errors: `argument 3 (tensor map over operand 1)`
  size_t position = 0;    // in the block of parameters that a launch builds
  size_t size = 0;        // bytes
  size_t buffer = 0;      // operands first, then results
  uint64_t offset = 0;    // bytes from the start of the buffer
  uint64_t scalar = 0;    // little-endian bytes of the value
  TensorMapGeometry map;  // only for kTensorMap
};

struct LaunchDescription {
  std::string kernel;  // stem<template arguments>
  std::string symbol;
  std::string cubin;
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t cluster[3];
  uint32_t shared_memory;
  bool pdl;
  std::vector<Argument> arguments;
  size_t parameter_bytes;  // size of the block of parameters

  uint32_t cluster_size() const { return cluster[0] * cluster[1] * cluster[2]; }
};

// The kernel's name, for errors; a placeholder when the attributes have none. Never throws.
std::string KernelName(const xla::ffi::Dictionary& attributes) noexcept;

// Throws LaunchError.
LaunchDescription DecodeLaunch(const xla::ffi::Dictionary& attributes, const xla::ffi::RemainingArgs& operands,
                               const xla::ffi::RemainingRets& results);

// The address of operand or result `index` (operands first).
inline char* BufferAddress(const xla::ffi::RemainingArgs& operands, const xla::ffi::RemainingRets& results,
                           size_t index) {
  const size_t num_operands = operands.size();
  if (index < num_operands) return static_cast<char*>(operands.get<xla::ffi::AnyBuffer>(index)->untyped_data());
  auto result = results.get<xla::ffi::AnyBuffer>(index - num_operands);
  return static_cast<char*>((*result)->untyped_data());
}

}  // namespace jax_deepgemm
