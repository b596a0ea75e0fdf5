// Errors inside the extension are exceptions; `Guarded` turns them into xla::ffi::Error at the boundary.
#pragma once

#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jax_deepgemm {

class LaunchError : public std::runtime_error {
 public:
  LaunchError(xla::ffi::ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  xla::ffi::ErrorCode code;
};

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
[[noreturn]] void Fail(xla::ffi::ErrorCode code, const Parts&... parts) {
  throw LaunchError(code, Concat(parts...));
}

template <typename... Parts>
[[noreturn]] void Invalid(const Parts&... parts) {
  Fail(xla::ffi::ErrorCode::kInvalidArgument, parts...);
}

// Runs `body()`; an exception becomes an error that begins with the name of the kernel.
template <typename Body>
xla::ffi::Error Guarded(const std::string& kernel, Body&& body) noexcept {
  try {
    body();
    return xla::ffi::Error::Success();
  } catch (const LaunchError& error) {
    return xla::ffi::Error(error.code, Concat("jax_deepgemm kernel ", kernel, ": ", error.what()));
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(Concat("jax_deepgemm kernel ", kernel, ": ", error.what()));
  }
}

}  // namespace jax_deepgemm
