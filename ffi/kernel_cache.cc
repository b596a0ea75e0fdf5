#include "kernel_cache.h"

#include <memory>
#include <unordered_map>

#include "error.h"

namespace jax_deepgemm {

Cubin* Cubin::Intern(std::string bytes) {
  static auto* mutex = new std::mutex;
  static auto* cubins = new std::unordered_map<std::string, std::unique_ptr<Cubin>>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<Cubin>& cubin = (*cubins)[bytes];
  if (cubin == nullptr) cubin.reset(new Cubin(std::move(bytes)));
  return cubin.get();
}

cuda::Kernel Cubin::GetKernel(const cuda::Driver& driver, const std::string& symbol) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (library_ == nullptr) {
    int options[] = {cuda::kLibraryBinaryIsPreserved};
    void* values[] = {reinterpret_cast<void*>(uintptr_t{1})};
    cuda::Library library = nullptr;
    driver.Check(driver.LibraryLoadData(&library, bytes_.data(), nullptr, nullptr, 0, options, values, 1),
                 Concat("loading its cubin of ", bytes_.size(), " bytes"));
    library_ = library;
  }
  cuda::Kernel kernel = nullptr;
  driver.Check(driver.LibraryGetKernel(&kernel, library_, symbol.c_str()), Concat("finding symbol ", symbol));
  return kernel;
}

void Cubin::AllowResources(const cuda::Driver& driver, cuda::Kernel kernel, cuda::Device device, uint32_t bytes,
                           bool large_cluster) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (large_cluster) {
    driver.Check(driver.KernelSetAttribute(cuda::kNonPortableClusterSizeAllowed, 1, kernel, device),
                 "allowing clusters of more than 8 blocks");
  }
  uint32_t& allowed = shared_memory_[{kernel, device}];
  if (bytes <= allowed) return;
  int used = 0;
  int limit = 0;
  driver.Check(driver.KernelGetAttribute(&used, cuda::kSharedSizeBytes, kernel, device), "reading its shared memory");
  driver.Check(driver.DeviceGetAttribute(&limit, cuda::kMaxSharedMemoryPerBlockOptin, device),
               "reading the device's shared memory");
  if (static_cast<int64_t>(bytes) + used > limit) {
    Invalid("wants ", bytes, " bytes of dynamic shared memory beside ", used, " static, but a block on device ", device,
            " has ", limit);
  }
  driver.Check(
      driver.KernelSetAttribute(cuda::kMaxDynamicSharedSizeBytes, static_cast<int>(bytes), kernel, device),
      Concat("allowing ", bytes, " bytes of dynamic shared memory"));
  allowed = bytes;
}

}  // namespace jax_deepgemm
