// A CUDA device that is not there, under torch's real CUDA key. README.md says what it is for.

#include "cpp/counts.h"
#include "cpp/guard.h"
#include "cpp/memory.h"
#include "cpp/operators.h"
#include "cpp/tensors.h"

#include <torch/library.h>

namespace emulated {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
REGISTER_ALLOCATOR(c10::kCUDA, &device_memory)
}  // namespace emulated

namespace at {
using CUDAHooks = emulated::Hooks;  // the name under which torch looks them up
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&emulated::compute_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &emulated::empty);
  library.impl("empty_strided", &emulated::empty_strided);
  library.impl("copy_", &emulated::copy_);
  library.impl("_copy_from", &emulated::copy_from);
  library.impl("_copy_from_and_resize", &emulated::copy_from_and_resize);
  library.impl("_local_scalar_dense", &emulated::read_number);
  library.impl("resize_", &emulated::resize_);
  library.impl("set_.source_Storage", &emulated::set_whole);
  library.impl("set_.source_Storage_storage_offset", &emulated::set_part);
  library.impl("set_.source_Tensor", &emulated::set_as);
  library.impl("record_stream", &emulated::record_stream);
  library.impl("as_strided", &emulated::as_strided);
  library.impl("view", &emulated::view);
  library.impl("_reshape_alias", &emulated::reshape_alias);
  library.impl("unfold", &emulated::unfold);
}

// What device.py and nccl.py call.
extern "C" {
int emulated_num_gpus() { return emulated::num_gpus(); }
int emulated_gpu() { return emulated::current_gpu; }

int emulated_num_kinds() { return emulated::kNumKinds; }
const char* emulated_kind_name(int kind) { return emulated::kKindNames[kind]; }
bool emulated_host_waits(int kind) {
  return emulated::host_waits(static_cast<emulated::Kind>(kind));
}
long emulated_count(int kind) { return emulated::counts[kind]; }
void emulated_note(int kind, const char* name) {
  emulated::note(static_cast<emulated::Kind>(kind), name);
}
void emulated_mute(int change) { emulated::num_muted += change; }
void emulated_listen(emulated::Listener told) { emulated::listener = told; }
void emulated_make_waits_errors(bool on) { emulated::waits_are_errors = on; }

long emulated_allocated_bytes() { return emulated::allocated_bytes; }
long emulated_peak_bytes() { return emulated::peak_bytes; }
long emulated_num_allocations() { return emulated::num_allocations; }
void emulated_reset_peak() { emulated::peak_bytes = emulated::allocated_bytes.load(); }
long emulated_pinned_bytes() { return emulated::pinned_bytes(); }
}
