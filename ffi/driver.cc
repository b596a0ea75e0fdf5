#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

#include "error.h"

namespace jax_deepgemm::cuda {
namespace {

using xla::ffi::ErrorCode;

std::string Open(Driver& driver) {
  void* handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return Concat("the CUDA driver cannot be opened: ", dlerror());
  // Never closed: kernels outlive every object of ours.
#define JAX_DEEPGEMM_LOOK_UP(member, symbol, parameters)                                                  \
  driver.member = reinterpret_cast<decltype(driver.member)>(dlsym(handle, #symbol));                      \
  if (driver.member == nullptr) return "the CUDA driver is too old (12.4 or newer is needed): it has no " #symbol;
  JAX_DEEPGEMM_DRIVER_FUNCTIONS(JAX_DEEPGEMM_LOOK_UP)
#undef JAX_DEEPGEMM_LOOK_UP
  try {
    driver.Check(driver.Init(0), "cuInit");
  } catch (const LaunchError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

void Driver::Check(Result result, const std::string& what) const {
  if (result == kSuccess) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (GetErrorName(result, &name) != kSuccess || name == nullptr) name = "unknown error";
  if (GetErrorString(result, &text) != kSuccess || text == nullptr) text = "no description";
  Fail(ErrorCode::kInternal, what, " failed: ", name, " (", result, "): ", text);
}

const Driver& GetDriver() {
  // Leaked, so that no exit-time destructor runs beside threads that still launch.
  static const auto* opened = [] {
    auto* driver = new Driver;
    return new std::pair<const Driver*, std::string>(driver, Open(*driver));
  }();
  if (!opened->second.empty()) Fail(ErrorCode::kFailedPrecondition, opened->second);
  return *opened->first;
}

Context PrimaryContext(Device device) {
  static auto* mutex = new std::mutex;
  static auto* contexts = new std::map<Device, Context>;
  std::lock_guard<std::mutex> lock(*mutex);
  Context& context = (*contexts)[device];
  if (context == nullptr) {
    const Driver& driver = GetDriver();
    driver.Check(driver.DevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  }
  return context;
}

ScopedContext::ScopedContext(const Driver& driver, Context context) : driver_(driver) {
  Context current = nullptr;
  driver.Check(driver.CtxGetCurrent(&current), "cuCtxGetCurrent");
  if (current == context) return;
  driver.Check(driver.CtxPushCurrent(context), "cuCtxPushCurrent");
  pushed_ = true;
}

ScopedContext::~ScopedContext() {
  Context popped = nullptr;
  if (pushed_) driver_.CtxPopCurrent(&popped);
}

}  // namespace jax_deepgemm::cuda
