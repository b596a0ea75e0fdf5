// The Python module jax_deepgemm._ffi: hands the handlers to jax_deepgemm/_native.py, which registers them.
#include <nanobind/nanobind.h>

#include <string>

#include "driver.h"
#include "error.h"
#include "launch.h"

namespace nb = nanobind;

namespace jax_deepgemm {
namespace {

nb::capsule HandlerCapsule(XLA_FFI_Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

nb::dict LaunchHandlers() {
  nb::dict handlers;
  handlers["instantiate"] = HandlerCapsule(LaunchInstantiate);
  handlers["prepare"] = HandlerCapsule(LaunchPrepare);
  handlers["execute"] = HandlerCapsule(LaunchExecute);
  return handlers;
}

nb::dict LaunchStateType() {
  nb::dict type;
  type["type_id"] = nb::capsule(LaunchStateTypeId());
  type["type_info"] = nb::capsule(const_cast<xla::ffi::TypeInfo*>(LaunchStateTypeInfo()));
  return type;
}

int DriverVersion() {
  const cuda::Driver& driver = cuda::GetDriver();
  int version = 0;
  driver.Check(driver.DriverGetVersion(&version), "cuDriverGetVersion");
  return version;
}

}  // namespace
}  // namespace jax_deepgemm

NB_MODULE(_ffi, m) {
  m.attr("FFI_API_VERSION") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("launch_handlers", &jax_deepgemm::LaunchHandlers, "Capsules of the handler's stages, by name.");
  m.def("launch_state_type", &jax_deepgemm::LaunchStateType, "Capsules of the id and the info of the state's type.");
  m.def("driver_version", &jax_deepgemm::DriverVersion,
        "The CUDA driver's version, such as 13000. Raises RuntimeError with the reason when there is no driver.");
}
