#include "launch_description.h"

#include <cstring>
#include <limits>
#include <string_view>

#include "base64.h"
#include "error.h"

namespace jax_deepgemm {
namespace {

using xla::ffi::AnyBuffer;
using xla::ffi::DataType;
using xla::ffi::Dictionary;
using xla::ffi::RemainingArgs;
using xla::ffi::RemainingRets;
using xla::ffi::Span;

struct TensorMapDataType {
  std::string_view name;
  int code;  // CUtensorMapDataType
  uint32_t bits;
};

// The 4-bit types: packed in shared memory, or (padded) 8 bytes of values in every 16.
constexpr TensorMapDataType kTensorMapDataTypes[] = {
    {"uint8", 0, 8},         {"int8", 0, 8},           {"float8_e4m3fn", 0, 8}, {"float8_e5m2", 0, 8},
    {"float8_e8m0fnu", 0, 8}, {"uint16", 1, 16},        {"uint32", 2, 32},       {"int32", 3, 32},
    {"uint64", 4, 64},       {"int64", 5, 64},         {"float16", 6, 16},      {"float32", 7, 32},
    {"float64", 8, 64},      {"bfloat16", 9, 16},      {"tfloat32", 11, 32},    {"float4_e2m1fn", 13, 4},
    {"float4_e2m1fn_padded", 14, 4},
};
constexpr int kPaddedFp4 = 14;

template <typename T>
T Get(const Dictionary& attributes, std::string_view name) {
  auto value = attributes.get<T>(name);
  if (value.has_error()) Invalid("attribute `", name, "`: ", value.error().message());
  return *value;
}

template <typename T>
T GetUnsigned(const Dictionary& attributes, std::string_view name) {
  const int64_t value = Get<int64_t>(attributes, name);
  if (value < 0 || static_cast<uint64_t>(value) > std::numeric_limits<T>::max()) {
    Invalid("attribute `", name, "` is out of range: ", value);
  }
  return static_cast<T>(value);
}

// Copies the array `name` of `count` elements, each in minimum .. T's maximum.
template <typename T>
void GetArray(const Dictionary& attributes, std::string_view name, size_t count, int64_t minimum, T* out) {
  const auto values = Get<Span<const int64_t>>(attributes, name);
  if (values.size() != count) Invalid("attribute `", name, "` has ", values.size(), " elements, not ", count);
  for (size_t i = 0; i < count; ++i) {
    if (values[i] < minimum || static_cast<uint64_t>(values[i]) > std::numeric_limits<T>::max()) {
      Invalid("attribute `", name, "`[", i, "] is out of range: ", values[i]);
    }
    out[i] = static_cast<T>(values[i]);
  }
}

int OneOf(const Dictionary& attributes, std::string_view name, std::initializer_list<int64_t> choices) {
  const int64_t value = Get<int64_t>(attributes, name);
  int code = 0;
  for (int64_t choice : choices) {
    if (choice == value) return code;
    ++code;
  }
  Invalid("attribute `", name, "` has no meaning: ", value);
}

// XLA stores types of less than a byte packed on GPUs, while AnyBuffer::size_bytes counts a byte an element.
uint64_t BufferBytes(const AnyBuffer& buffer) {
  const uint64_t elements = buffer.element_count();
  switch (buffer.element_type()) {
    case DataType::S1:
    case DataType::U1:
      return (elements + 7) / 8;
    case DataType::S2:
    case DataType::U2:
      return (elements + 3) / 4;
    case DataType::S4:
    case DataType::U4:
    case DataType::F4E2M1FN:
      return (elements + 1) / 2;
    default:
      return elements * xla::ffi::ByteWidth(buffer.element_type());
  }
}

TensorMapGeometry DecodeTensorMap(const Dictionary& attributes, unsigned __int128* reach) {
  TensorMapGeometry map = {};
  const auto name = Get<std::string_view>(attributes, "dtype");
  const TensorMapDataType* type = nullptr;
  for (const TensorMapDataType& candidate : kTensorMapDataTypes) {
    if (candidate.name == name) type = &candidate;
  }
  if (type == nullptr) Invalid("attribute `dtype` is not the type of a tensor map: ", name);
  map.data_type = type->code;
  map.alignment = type->code == kPaddedFp4 ? 32 : 16;

  const size_t rank = Get<Span<const int64_t>>(attributes, "sizes").size();
  if (rank < 1 || rank > 5) Invalid("attribute `sizes` must have 1 to 5 elements, got ", rank);
  map.rank = static_cast<uint32_t>(rank);
  GetArray(attributes, "sizes", rank, 1, map.sizes);
  if (rank > 1) GetArray(attributes, "strides", rank - 1, 0, map.strides);
  GetArray(attributes, "box", rank, 1, map.box);
  GetArray(attributes, "element_strides", rank, 1, map.element_strides);
  map.swizzle = OneOf(attributes, "swizzle", {0, 32, 64, 128});
  map.l2_promotion = OneOf(attributes, "l2_promotion", {0, 64, 128, 256});
  const auto fill = Get<std::string_view>(attributes, "fill");
  if (fill != "zeros" && fill != "nan") Invalid("attribute `fill` must be \"zeros\" or \"nan\", got ", fill);
  map.fill = fill == "nan" ? 1 : 0;

  // One past the last byte that the map covers; sizes below 2^63 and strides below 2^63 need more than 64 bits.
  *reach = (static_cast<unsigned __int128>(map.sizes[0]) * type->bits + 7) / 8;
  for (size_t i = 1; i < rank; ++i) {
    *reach += static_cast<unsigned __int128>(map.sizes[i] - 1) * map.strides[i - 1];
  }
  return map;
}

void DecodeScalar(const Dictionary& attributes, Argument& argument) {
  const auto dtype = Get<std::string_view>(attributes, "dtype");
  if (dtype == "float32") {
    const float value = Get<float>(attributes, "value");
    std::memcpy(&argument.scalar, &value, sizeof value);
    argument.size = 4;
    return;
  }
  if (dtype == "int32" || dtype == "uint32") {
    argument.size = 4;
  } else if (dtype == "int64" || dtype == "uint64") {
    argument.size = 8;
  } else {
    Invalid("attribute `dtype` is not the type of a scalar: ", dtype);
  }
  argument.scalar = static_cast<uint64_t>(Get<int64_t>(attributes, "value"));
}

Argument DecodeArgument(const Dictionary& attributes, size_t index, const RemainingArgs& operands,
                        const RemainingRets& results) {
  Argument argument = {};
  const auto kind = Get<std::string_view>(attributes, "kind");
  if (kind == "scalar") {
    argument.kind = Argument::Kind::kScalar;
    argument.label = Concat("argument ", index, " (scalar)");
    DecodeScalar(attributes, argument);
    return argument;
  }
  const bool is_map = kind == "tensor_map";
  if (!is_map && kind != "pointer") Invalid("attribute `kind` has no meaning: ", kind);

  argument.buffer = GetUnsigned<uint32_t>(attributes, "buffer");
  argument.offset = GetUnsigned<uint64_t>(attributes, "offset");
  if (argument.buffer >= operands.size() + results.size()) {
    Invalid(kind, " over buffer ", argument.buffer, ", but the call has ", operands.size(), " operands and ",
            results.size(), " results");
  }
  const bool is_operand = argument.buffer < operands.size();
  const size_t position = is_operand ? argument.buffer : argument.buffer - operands.size();
  const std::string buffer_name = Concat(is_operand ? "operand " : "result ", position);
  argument.label = Concat("argument ", index, " (", is_map ? "tensor map over " : "pointer to ", buffer_name, ")");

  unsigned __int128 reach = 0;
  if (is_map) {
    argument.kind = Argument::Kind::kTensorMap;
    argument.size = 128;
    argument.map = DecodeTensorMap(attributes, &reach);
  } else {
    argument.kind = Argument::Kind::kPointer;
    argument.size = 8;
  }
  const AnyBuffer buffer = is_operand ? *operands.get<AnyBuffer>(position) : **results.get<AnyBuffer>(position);
  const uint64_t bytes = BufferBytes(buffer);
  if (reach + argument.offset > bytes) {
    const unsigned __int128 end = reach + argument.offset;
    constexpr uint64_t kLargest = std::numeric_limits<uint64_t>::max();
    Invalid("reaches byte ", end > kLargest ? kLargest : static_cast<uint64_t>(end), " of ", buffer_name,
            ", which has ", bytes, " bytes");
  }
  return argument;
}

}  // namespace

std::string KernelName(const Dictionary& attributes) noexcept {
  try {
    std::string name(Get<std::string_view>(attributes, "kernel"));
    const auto arguments = attributes.get<std::string_view>("template");
    return arguments.has_value() && !arguments->empty() ? Concat(name, "<", *arguments, ">") : name;
  } catch (const std::exception&) {
    return "(unnamed)";
  }
}

LaunchDescription DecodeLaunch(const Dictionary& attributes, const RemainingArgs& operands,
                               const RemainingRets& results) {
  LaunchDescription launch = {};
  Get<std::string_view>(attributes, "kernel");
  launch.kernel = KernelName(attributes);
  launch.symbol = std::string(Get<std::string_view>(attributes, "symbol"));
  if (!DecodeBase64(Get<std::string_view>(attributes, "cubin"), &launch.cubin)) {
    Invalid("attribute `cubin` is not base64");
  }
  GetArray(attributes, "grid", 3, 1, launch.grid);
  GetArray(attributes, "block", 3, 1, launch.block);
  GetArray(attributes, "cluster", 3, 1, launch.cluster);
  launch.shared_memory = GetUnsigned<uint32_t>(attributes, "shared_memory");
  launch.pdl = Get<bool>(attributes, "pdl");

  // Named argument000, argument001, ...: the dictionary is sorted, so this is their order.
  const auto arguments = Get<Dictionary>(attributes, "arguments");
  if (arguments.size() > kMaxArguments) Invalid("more than ", kMaxArguments, " arguments: ", arguments.size());
  size_t end = 0;
  for (std::string_view name : arguments) {
    const size_t index = launch.arguments.size();
    try {
      launch.arguments.push_back(DecodeArgument(Get<Dictionary>(arguments, name), index, operands, results));
    } catch (const LaunchError& error) {
      Fail(error.code, "argument ", index, ": ", error.what());
    }
    Argument& argument = launch.arguments.back();
    const size_t alignment = argument.kind == Argument::Kind::kTensorMap ? 64 : argument.size;
    argument.position = (end + alignment - 1) / alignment * alignment;
    end = argument.position + argument.size;
  }
  if (end > kMaxParameterBytes) Invalid("the parameters take ", end, " bytes, more than ", kMaxParameterBytes);
  launch.parameter_bytes = end;
  return launch;
}

}  // namespace jax_deepgemm
