#include "launch_state.h"

#include <cstring>

namespace jax_deepgemm {

using xla::ffi::RemainingArgs;
using xla::ffi::RemainingRets;

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

}  // namespace jax_deepgemm
