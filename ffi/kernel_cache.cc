#include "kernel_cache.h"

#include <memory>
#include <unordered_map>

#include "error.h"

namespace jax_deepgemm {
namespace {

void AllowSharedMemory(const cuda::Driver& driver, cuda::Kernel kernel, cuda::Device device, uint32_t bytes) {
  int used = 0;
  int limit = 0;
  driver.Check(driver.KernelGetAttribute(&used, cuda::kSharedSizeBytes, kernel, device), "reading its shared memory");
  driver.Check(driver.DeviceGetAttribute(&limit, cuda::kMaxSharedMemoryPerBlockOptin, device),
               "reading the device's shared memory");
  if (static_cast<int64_t>(bytes) + used > limit) {
    Invalid("wants ", bytes, " bytes of dynamic shared memory beside ", used, " static, but a block on device ", device,
            " has ", limit);
  }
  driver.Check(driver.KernelSetAttribute(cuda::kMaxDynamicSharedSizeBytes, static_cast<int>(bytes), kernel, device),
               Concat("allowing ", bytes, " bytes of dynamic shared memory"));
}

}  // namespace

Cubin* Cubin::Intern(std::string bytes) {
  static auto* mutex = new std::mutex;
  static auto* cubins = new std::unordered_map<std::string, std::unique_ptr<Cubin>>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<Cubin>& cubin = (*cubins)[bytes];
  if (cubin == nullptr) cubin.reset(new Cubin(std::move(bytes)));
  return cubin.get();
}

void Cubin::LoadFunction(const cuda::Driver& driver, const std::string& symbol, LoadedKernel& loaded) {
  if (library_ == nullptr) {
    int options[] = {cuda::kLibraryBinaryIsPreserved};
    void* values[] = {reinterpret_cast<void*>(uintptr_t{1})};
    cuda::Library library = nullptr;
    driver.Check(driver.LibraryLoadData(&library, bytes_.data(), nullptr, nullptr, 0, options, values, 1),
                 Concat("loading its cubin of ", bytes_.size(), " bytes"));
    library_ = library;
  }
  driver.Check(driver.LibraryGetKernel(&loaded.kernel, library_, symbol.c_str()), Concat("finding symbol ", symbol));
  cuda::Function function = nullptr;
  driver.Check(driver.KernelGetFunction(&function, loaded.kernel), "cuKernelGetFunction");
  driver.Check(driver.FuncLoad(function), "cuFuncLoad");
  loaded.function = function;
}

LoadedKernel Cubin::Load(const cuda::Driver& driver, const std::string& symbol, cuda::Device device,
                         uint32_t shared_memory, bool large_cluster, bool may_load) {
  std::lock_guard<std::mutex> lock(mutex_);
  LoadedKernel& loaded = kernels_[{symbol, device}];
  const bool ready = loaded.function != nullptr && loaded.shared_memory >= shared_memory &&
                     (loaded.large_cluster || !large_cluster);
  if (ready) return loaded;
  if (!may_load) {
    Fail(xla::ffi::ErrorCode::kFailedPrecondition, "not loaded on device ", device,
         " (XLA ran no prepare stage), and it cannot be loaded while a graph is being captured");
  }
  if (loaded.function == nullptr) LoadFunction(driver, symbol, loaded);
  if (loaded.shared_memory < shared_memory) {
    AllowSharedMemory(driver, loaded.kernel, device, shared_memory);
    loaded.shared_memory = shared_memory;
  }
  if (large_cluster && !loaded.large_cluster) {
    driver.Check(driver.KernelSetAttribute(cuda::kNonPortableClusterSizeAllowed, 1, loaded.kernel, device),
                 "allowing clusters of more than 8 blocks");
    loaded.large_cluster = true;
  }
  return loaded;
}

}  // namespace jax_deepgemm
