// The handler behind every kernel: custom call `jax_deepgemm.launch`.
//
//   instantiate   once a call site, at compile time, maybe with no GPU: decodes and checks the attributes
//   prepare       each execution; the first on a device loads the kernel there and encodes its tensor maps
//   execute       copies the prepared parameters to the stack, fills in the addresses, launches
//
// Loading belongs in prepare: XLA lets all devices of an execution finish it before any of them launches, while a
// load in execute could wait for a kernel that itself waits for this device.
#include "launch.h"

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "driver.h"
#include "error.h"
#include "kernel_cache.h"
#include "launch_description.h"

namespace jax_deepgemm {
namespace {

using xla::ffi::Dictionary;
using xla::ffi::Error;
using xla::ffi::ErrorOr;
using xla::ffi::RemainingArgs;
using xla::ffi::RemainingRets;

constexpr int kMaxDevices = 64;  // of one process

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

}  // namespace

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
  const PreparedLaunch* Prepare(int32_t ordinal, const RemainingArgs& operands, const RemainingRets& results,
                                bool may_load);

  const LaunchDescription launch;

 private:
  void CheckParameters(const cuda::Driver& driver, cuda::Kernel kernel) const;
  void FillConfig(PreparedLaunch& prepared) const;

  std::mutex mutex_;
  std::array<std::unique_ptr<PreparedLaunch>, kMaxDevices> prepared_;
  std::array<std::atomic<const PreparedLaunch*>, kMaxDevices> published_ = {};
};

xla::ffi::TypeId LaunchState::id = {};

namespace {

void EncodeTensorMap(const cuda::Driver& driver, const Argument& argument, char* address, std::byte* out) {
  const TensorMapGeometry& map = argument.map;
  // Any aligned address will do: execute replaces it. The buffer's own is used where prepare has it.
  char* start = address + argument.offset;
  if (address == nullptr || reinterpret_cast<uintptr_t>(start) % map.alignment != 0) {
    start = reinterpret_cast<char*>(uintptr_t{1} << 20);
  }
  cuda::TensorMap encoded;
  driver.Check(driver.TensorMapEncodeTiled(&encoded, map.data_type, map.rank, start, map.sizes, map.strides, map.box,
                                           map.element_strides, /*interleave=*/0, map.swizzle, map.l2_promotion,
                                           map.fill),
               Concat(argument.label, ": cuTensorMapEncodeTiled"));
  std::memcpy(out, &encoded, sizeof encoded);
}

}  // namespace

// A cubin that takes other parameters would read beyond the block of parameters.
void LaunchState::CheckParameters(const cuda::Driver& driver, cuda::Kernel kernel) const {
  size_t offset = 0;
  size_t size = 0;
  for (size_t i = 0; i < launch.arguments.size(); ++i) {
    const Argument& argument = launch.arguments[i];
    if (driver.KernelGetParamInfo(kernel, i, &offset, &size) != cuda::kSuccess) {
      Invalid("the launch has ", launch.arguments.size(), " arguments, the kernel takes ", i);
    }
    if (size != argument.size) {
      Invalid(argument.label, " has ", argument.size, " bytes, the kernel's parameter has ", size);
    }
  }
  if (driver.KernelGetParamInfo(kernel, launch.arguments.size(), &offset, &size) == cuda::kSuccess) {
    Invalid("the launch has ", launch.arguments.size(), " arguments, the kernel takes more");
  }
}

void LaunchState::FillConfig(PreparedLaunch& prepared) const {
  cuda::LaunchConfig& config = prepared.config;
  std::memcpy(config.grid, launch.grid, sizeof config.grid);
  std::memcpy(config.block, launch.block, sizeof config.block);
  config.shared_memory = launch.shared_memory;
  config.attributes = prepared.attributes;
  if (launch.cluster_size() > 1) {
    cuda::LaunchAttribute& attribute = prepared.attributes[config.num_attributes++];
    attribute.id = cuda::LaunchAttribute::kClusterDimension;
    attribute.value.cluster = {launch.cluster[0], launch.cluster[1], launch.cluster[2]};
  }
  if (launch.pdl) {
    cuda::LaunchAttribute& attribute = prepared.attributes[config.num_attributes++];
    attribute.id = cuda::LaunchAttribute::kProgrammaticStreamSerialization;
    attribute.value.allowed = 1;
  }
}

const PreparedLaunch* LaunchState::Prepare(int32_t ordinal, const RemainingArgs& operands,
                                           const RemainingRets& results, bool may_load) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const PreparedLaunch* found = Find(ordinal)) return found;

  const cuda::Driver& driver = cuda::GetDriver();
  cuda::Device device = 0;
  driver.Check(driver.DeviceGet(&device, ordinal), Concat("finding device ", ordinal));
  auto prepared = std::make_unique<PreparedLaunch>();
  prepared->context = cuda::PrimaryContext(device);
  cuda::ScopedContext current(driver, prepared->context);

  const LoadedKernel loaded = cubin_->Load(driver, launch.symbol, device, launch.shared_memory,
                                           /*large_cluster=*/launch.cluster_size() > 8, may_load);
  CheckParameters(driver, loaded.kernel);
  prepared->function = loaded.function;
  FillConfig(*prepared);

  prepared->parameters.resize((launch.parameter_bytes + sizeof(ParameterChunk) - 1) / sizeof(ParameterChunk));
  auto* block = reinterpret_cast<std::byte*>(prepared->parameters.data());
  for (const Argument& argument : launch.arguments) {
    const auto index = static_cast<uint32_t>(prepared->positions.size());
    const auto position = static_cast<uint32_t>(argument.position);
    prepared->positions.push_back(position);
    if (argument.kind == Argument::Kind::kScalar) {
      std::memcpy(block + position, &argument.scalar, argument.size);
      continue;
    }
    Slot slot = {argument.offset, position, static_cast<uint32_t>(argument.buffer), 0, index};
    if (argument.kind == Argument::Kind::kTensorMap) {
      slot.alignment = static_cast<uint32_t>(argument.map.alignment);
      EncodeTensorMap(driver, argument, BufferAddress(operands, results, argument.buffer), block + position);
    }
    prepared->slots.push_back(slot);
  }
  prepared_[ordinal] = std::move(prepared);
  published_[ordinal].store(prepared_[ordinal].get(), std::memory_order_release);
  return prepared_[ordinal].get();
}

namespace {

// The parameters of a kernel, on the stack of the thread that launches: a launch in flight on another device or
// thread keeps its own, and the driver copies them before it returns.
struct StackParameters {
  alignas(64) std::byte block[kMaxParameterBytes];
  void* pointers[kMaxArguments];
};

void FillIn(const cuda::Driver& driver, const LaunchDescription& launch, const PreparedLaunch& prepared,
            const RemainingArgs& operands, const RemainingRets& results, StackParameters& out) {
  std::memcpy(out.block, prepared.parameters.data(), launch.parameter_bytes);
  void** pointer = out.pointers;
  for (uint32_t position : prepared.positions) *pointer++ = out.block + position;
  for (const Slot& slot : prepared.slots) {
    char* address = BufferAddress(operands, results, slot.buffer) + slot.offset;
    std::byte* parameter = out.block + slot.position;
    if (slot.alignment == 0) {
      std::memcpy(parameter, &address, sizeof address);
      continue;
    }
    const std::string& label = launch.arguments[slot.argument].label;
    if (reinterpret_cast<uintptr_t>(address) % slot.alignment != 0) {
      Invalid(label, ": its address ", static_cast<void*>(address), " is not a multiple of ", slot.alignment, " bytes");
    }
    const cuda::Result result =
        driver.TensorMapReplaceAddress(reinterpret_cast<cuda::TensorMap*>(parameter), address);
    if (result != cuda::kSuccess) driver.Check(result, Concat(label, ": cuTensorMapReplaceAddress"));
  }
}

void Submit(const cuda::Driver& driver, const PreparedLaunch& prepared, cuda::Stream stream, void** parameters) {
  cuda::LaunchConfig config = prepared.config;
  config.stream = stream;
  cuda::ScopedContext current(driver, prepared.context);
  const cuda::Result result = driver.LaunchKernelEx(&config, prepared.function, parameters, nullptr);
  if (result != cuda::kSuccess) driver.Check(result, "cuLaunchKernelEx");
}

ErrorOr<std::unique_ptr<LaunchState>> Instantiate(Dictionary attributes, RemainingArgs operands,
                                                  RemainingRets results) noexcept {
  std::unique_ptr<LaunchState> state;
  Error error = Guarded(KernelName(attributes), [&] {
    state = std::make_unique<LaunchState>(DecodeLaunch(attributes, operands, results));
  });
  if (error.failure()) return xla::ffi::Unexpected(std::move(error));
  return state;
}

Error Prepare(LaunchState* state, int32_t ordinal, RemainingArgs operands, RemainingRets results) noexcept {
  return Guarded(state->launch.kernel, [&] {
    if (state->Find(ordinal) == nullptr) state->Prepare(ordinal, operands, results, /*may_load=*/true);
  });
}

Error Execute(LaunchState* state, cuda::Stream stream, int32_t ordinal, RemainingArgs operands,
              RemainingRets results) noexcept {
  return Guarded(state->launch.kernel, [&] {
    const cuda::Driver& driver = cuda::GetDriver();
    const PreparedLaunch* prepared = state->Find(ordinal);
    if (prepared == nullptr) {
      int status = cuda::kCaptureStatusNone;
      driver.Check(driver.StreamIsCapturing(stream, &status), "cuStreamIsCapturing");
      prepared = state->Prepare(ordinal, operands, results, /*may_load=*/status == cuda::kCaptureStatusNone);
    }
    StackParameters parameters;
    FillIn(driver, state->launch, *prepared, operands, results, parameters);
    Submit(driver, *prepared, stream, parameters.pointers);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LaunchInstantiate, Instantiate,
                              xla::ffi::Ffi::BindInstantiate().Attrs<Dictionary>().RemainingArgs().RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LaunchPrepare, Prepare,
                              xla::ffi::Ffi::BindPrepare()
                                  .Ctx<xla::ffi::State<LaunchState>>()
                                  .Ctx<xla::ffi::DeviceOrdinal>()
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LaunchExecute, Execute,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::State<LaunchState>>()
                                  .Ctx<xla::ffi::PlatformStream<cuda::Stream>>()
                                  .Ctx<xla::ffi::DeviceOrdinal>()
                                  .RemainingArgs()
                                  .RemainingRets(),
                              {xla::ffi::Traits::kCmdBufferCompatible});

xla::ffi::TypeId* LaunchStateTypeId() { return &LaunchState::id; }

const xla::ffi::TypeInfo* LaunchStateTypeInfo() {
  static const xla::ffi::TypeInfo info = xla::ffi::MakeTypeInfo<LaunchState>();
  return &info;
}

}  // namespace jax_deepgemm
