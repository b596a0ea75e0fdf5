// The handler behind every kernel: custom call `jax_deepgemm.launch`.
//
//   instantiate   once a call site, at compile time, maybe with no GPU: decodes and checks the attributes
//   prepare       each execution; the first on a device loads the kernel there and encodes its tensor maps
//   execute       copies the prepared parameters to the stack, fills in the addresses, launches
//
// Loading belongs in prepare: XLA lets all devices of an execution finish it before any of them launches, while a
// load in execute could wait for a kernel that itself waits for this device.
#include "launch.h"

#include <cstring>
#include <memory>

#include "driver.h"
#include "error.h"
#include "launch_description.h"
#include "launch_state.h"

namespace jax_deepgemm {
namespace {

using xla::ffi::Dictionary;
using xla::ffi::Error;
using xla::ffi::ErrorOr;
using xla::ffi::RemainingArgs;
using xla::ffi::RemainingRets;

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
