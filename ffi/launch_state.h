// What a call site keeps: the decoded launch and, for each device that it has run on, all of it that does not change.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "driver.h"
#include "error.h"
#include "kernel_cache.h"
#include "launch_description.h"

namespace jax_deepgemm {

inline constexpr int kMaxDevices = 64;  // of one process

struct alignas(64) ParameterChunk {
  std::byte bytes[64];
};

// An address to be filled in. What a launch reads of its arguments, in few cache lines: the descriptions are cold.
struct Slot {
  uint64_t offset;     // bytes from the start of the buffer
  uint32_t position;   // in the block of parameters
  uint32_t buffer;     // operands first, then results
  uint32_t alignment;  // of the address in a tensor map; 0 for a pointer
  uint32_t argument;   // for errors
};

// A kernel loaded on one device, ready to launch. Immutable once published.
struct PreparedLaunch {
  cuda::Context context = nullptr;
  cuda::Function function = nullptr;
  cuda::LaunchConfig config = {};  // but for the stream
  cuda::LaunchAttribute attributes[2] = {};
  std::vector<ParameterChunk> parameters;  // scalars and tensor maps in place, addresses to be filled in
  std::vector<uint32_t> positions;         // of each parameter in their block
  std::vector<Slot> slots;
};

// One call site. Shared by all devices and threads that run it.
class LaunchState {
  Cubin* const cubin_;  // before `launch`, which is left without its bytes

 public:
  static xla::ffi::TypeId id;

  explicit LaunchState(LaunchDescription description)
      : cubin_(Cubin::Intern(std::move(description.cubin))), launch(std::move(description)) {}

  // Null before `Prepare` has run for this device.
  const PreparedLaunch* Find(int32_t ordinal) const {
    if (ordinal < 0 || ordinal >= kMaxDevices) Invalid("device ordinal ", ordinal, " is not in 0..", kMaxDevices - 1);
    return published_[ordinal].load(std::memory_order_acquire);
  }

  // With `may_load` false, fails if the kernel has not been loaded on this device by another call site.
  const PreparedLaunch* Prepare(int32_t ordinal, const xla::ffi::RemainingArgs& operands,
                                const xla::ffi::RemainingRets& results, bool may_load);

  const LaunchDescription launch;

 private:
  void CheckParameters(const cuda::Driver& driver, cuda::Kernel kernel) const;
  void FillConfig(PreparedLaunch& prepared) const;

  std::mutex mutex_;
  std::array<std::unique_ptr<PreparedLaunch>, kMaxDevices> prepared_;
  std::array<std::atomic<const PreparedLaunch*>, kMaxDevices> published_ = {};
};

}  // namespace jax_deepgemm
