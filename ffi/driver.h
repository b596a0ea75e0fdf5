// The part of the CUDA driver that a launch needs, found by dlopen: the extension imports and compiles programs on
// machines with no GPU, and is built with no CUDA toolkit. Declarations follow the driver's stable ABI (CUDA 12.4 on).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace jax_deepgemm::cuda {

using Result = int;  // CUresult
inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;

using Device = int;
using Context = struct ContextOpaque*;
using Stream = struct StreamOpaque*;
using Library = struct LibraryOpaque*;
using Kernel = struct KernelOpaque*;
using Function = struct FunctionOpaque*;

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128);

// CUlaunchAttribute: an id, padding to 8 bytes, and a union of 64 bytes.
struct LaunchAttribute {
  enum Id : uint32_t { kClusterDimension = 4, kProgrammaticStreamSerialization = 6 };
  Id id;
  uint32_t padding;
  union {
    char bytes[64];
    uint64_t alignment;
    struct {
      uint32_t x, y, z;
    } cluster;
    int allowed;
  } value;
};
static_assert(sizeof(LaunchAttribute) == 72 && offsetof(LaunchAttribute, value) == 8);

struct LaunchConfig {
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared_memory;
  Stream stream;
  const LaunchAttribute* attributes;
  uint32_t num_attributes;
};
static_assert(sizeof(LaunchConfig) == 56 && offsetof(LaunchConfig, stream) == 32);

enum FunctionAttribute : int {
  kSharedSizeBytes = 1,
  kMaxDynamicSharedSizeBytes = 8,
  kNonPortableClusterSizeAllowed = 14,
};
inline constexpr int kMaxSharedMemoryPerBlockOptin = 97;  // CUdevice_attribute
inline constexpr int kLibraryBinaryIsPreserved = 1;       // CUlibraryOption
inline constexpr int kCaptureStatusNone = 0;              // CUstreamCaptureStatus

// X(member, symbol, parameters): every function returns a CUresult.
#define JAX_DEEPGEMM_DRIVER_FUNCTIONS(X)                                                                          \
  X(Init, cuInit, (unsigned flags))                                                                               \
  X(DriverGetVersion, cuDriverGetVersion, (int* version))                                                         \
  X(GetErrorName, cuGetErrorName, (Result error, const char** name))                                              \
  X(GetErrorString, cuGetErrorString, (Result error, const char** text))                                          \
  X(DeviceGet, cuDeviceGet, (Device * device, int ordinal))                                                       \
  X(DeviceGetAttribute, cuDeviceGetAttribute, (int* value, int attribute, Device device))                         \
  X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (Context * context, Device device))                         \
  X(CtxGetCurrent, cuCtxGetCurrent, (Context * context))                                                          \
  X(CtxPushCurrent, cuCtxPushCurrent_v2, (Context context))                                                       \
  X(CtxPopCurrent, cuCtxPopCurrent_v2, (Context * context))                                                       \
  X(LibraryLoadData, cuLibraryLoadData,                                                                           \
    (Library * library, const void* code, int* jit_options, void** jit_values, unsigned num_jit_options,          \
     int* options, void** values, unsigned num_options))                                                          \
  X(LibraryGetKernel, cuLibraryGetKernel, (Kernel * kernel, Library library, const char* name))                   \
  X(KernelGetFunction, cuKernelGetFunction, (Function * function, Kernel kernel))                                 \
  X(KernelGetAttribute, cuKernelGetAttribute, (int* value, int attribute, Kernel kernel, Device device))          \
  X(KernelSetAttribute, cuKernelSetAttribute, (int attribute, int value, Kernel kernel, Device device))           \
  X(KernelGetParamInfo, cuKernelGetParamInfo, (Kernel kernel, size_t index, size_t* offset, size_t* size))        \
  X(FuncLoad, cuFuncLoad, (Function function))                                                                    \
  X(TensorMapEncodeTiled, cuTensorMapEncodeTiled,                                                                 \
    (TensorMap * map, int data_type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides, \
     const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int l2_promotion,         \
     int fill))                                                                                                   \
  X(TensorMapReplaceAddress, cuTensorMapReplaceAddress, (TensorMap * map, void* address))                         \
  X(StreamIsCapturing, cuStreamIsCapturing, (Stream stream, int* status))                                         \
  X(LaunchKernelEx, cuLaunchKernelEx,                                                                             \
    (const LaunchConfig* config, Function function, void** parameters, void** extra))

struct Driver {
#define JAX_DEEPGEMM_DECLARE(member, symbol, parameters) Result(*member) parameters = nullptr;
  JAX_DEEPGEMM_DRIVER_FUNCTIONS(JAX_DEEPGEMM_DECLARE)
#undef JAX_DEEPGEMM_DECLARE

  // Throws LaunchError, naming `what` failed and the driver's name and text of the error.
  void Check(Result result, const std::string& what) const;
};

// The driver, initialised once. Throws LaunchError when there is none, or when it is too old.
const Driver& GetDriver();

// The primary context of a device, retained once for the life of the process (JAX holds the same one).
Context PrimaryContext(Device device);

// Makes `context` current on this thread for a scope; costs one query when it already is.
class ScopedContext {
 public:
  ScopedContext(const Driver& driver, Context context);
  ~ScopedContext();
  ScopedContext(const ScopedContext&) = delete;
  ScopedContext& operator=(const ScopedContext&) = delete;

 private:
  const Driver& driver_;
  bool pushed_ = false;
};

}  // namespace jax_deepgemm::cuda
