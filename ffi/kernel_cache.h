// Loaded cubins, shared by all call sites of the process.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "driver.h"

namespace jax_deepgemm {

// One cubin. Never unloaded: a graph that holds its kernels may outlive every call site, and the number of cubins is
// bounded by the number of kernel configurations that a process uses.
class Cubin {
 public:
  // The one object for these bytes. Needs no driver.
  static Cubin* Intern(std::string bytes);

  // The kernel named `symbol`, loading the library first. Thread-safe; throws LaunchError.
  cuda::Kernel GetKernel(const cuda::Driver& driver, const std::string& symbol);

  // Allows `kernel` at least `bytes` of dynamic shared memory and, if asked, clusters of more than 8 blocks.
  void AllowResources(const cuda::Driver& driver, cuda::Kernel kernel, cuda::Device device, uint32_t bytes,
                      bool large_cluster);

 private:
  explicit Cubin(std::string bytes) : bytes_(std::move(bytes)) {}

  const std::string bytes_;
  std::mutex mutex_;
  cuda::Library library_ = nullptr;
  // Call sites may want different amounts; the driver keeps one limit a kernel and device.
  std::map<std::pair<cuda::Kernel, cuda::Device>, uint32_t> shared_memory_;
};

}  // namespace jax_deepgemm
