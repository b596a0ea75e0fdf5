// Loaded cubins, shared by all call sites of the process.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "driver.h"

namespace jax_deepgemm {

struct LoadedKernel {
  cuda::Kernel kernel = nullptr;
  cuda::Function function = nullptr;  // in the primary context of one device
  // What it is allowed so far. Call sites may want different amounts; the driver keeps one limit a kernel and device.
  uint32_t shared_memory = 0;
  bool large_cluster = false;
};

// One cubin. Never unloaded: a graph that holds its kernels may outlive every call site, and the number of cubins is
// bounded by the number of kernel configurations that a process uses.
class Cubin {
 public:
  // The one object for these bytes. Needs no driver.
  static Cubin* Intern(std::string bytes);

  // The kernel named `symbol`, loaded on `device`, allowed `shared_memory` bytes of dynamic shared memory and, if
  // asked, clusters of more than 8 blocks. The device's primary context must be current. Thread-safe. Throws
  // LaunchError, also when something is left to load and `may_load` is false.
  LoadedKernel Load(const cuda::Driver& driver, const std::string& symbol, cuda::Device device, uint32_t shared_memory,
                    bool large_cluster, bool may_load);

 private:
  explicit Cubin(std::string bytes) : bytes_(std::move(bytes)) {}
  void LoadFunction(const cuda::Driver& driver, const std::string& symbol, LoadedKernel& loaded);

  const std::string bytes_;
  std::mutex mutex_;
  cuda::Library library_ = nullptr;
  std::map<std::pair<std::string, cuda::Device>, LoadedKernel> kernels_;
};

}  // namespace jax_deepgemm
