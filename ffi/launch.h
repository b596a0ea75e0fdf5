// The stages of the custom call `jax_deepgemm.launch`, and the type of its state, for registration with XLA.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jax_deepgemm {

XLA_FFI_DECLARE_HANDLER_SYMBOL(LaunchInstantiate);
XLA_FFI_DECLARE_HANDLER_SYMBOL(LaunchPrepare);
XLA_FFI_DECLARE_HANDLER_SYMBOL(LaunchExecute);

xla::ffi::TypeId* LaunchStateTypeId();
const xla::ffi::TypeInfo* LaunchStateTypeInfo();

}  // namespace jax_deepgemm
