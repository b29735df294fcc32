// Every operator that tensors.h does not have: a "kernel", which the host's own operator computes
// after the checks that a GPU's would make.
#pragma once

#include "counts.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUFallback.h>

#include <set>
#include <string>

namespace emulated {

using Stack = torch::jit::Stack;

inline const std::set<std::string> kSizedByData = {
    "aten::nonzero",  "aten::masked_select", "aten::bincount",   "aten::equal",
    "aten::_unique2", "aten::unique_dim",    "aten::unique_consecutive",
};

template <typename Visit>
void visit_tensors(const c10::IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& one : value.toTensorVector()) visit(one);
  }
}

// x[mask] = 0 becomes masked_fill, whose size is known.
inline bool is_fill_of_one_number(c10::ArrayRef<c10::IValue> arguments) {
  return arguments.size() > 2 && arguments[2].isTensor() && arguments[2].toTensor().is_cpu() &&
         arguments[2].toTensor().numel() == 1;
}

// Bools among the indices are counted first, and the host waits for their number. aten::index has
// done so before it comes here. Indices alone may lie on the host; torch brings them over itself.
inline bool counts_bools(const std::string& name, c10::ArrayRef<c10::IValue> arguments) {
  if (name == "aten::index" || is_fill_of_one_number(arguments)) return false;
  for (const auto& value : arguments) {
    if (!value.isOptionalTensorList()) continue;
    for (const std::optional<at::Tensor>& index : value.toOptionalTensorVector()) {
      if (index && index->defined() && index->scalar_type() == at::kBool) return true;
    }
  }
  return false;
}

inline void check_devices(c10::ArrayRef<c10::IValue> arguments, const char* name) {
  std::optional<at::Device> gpu;
  bool on_host = false;
  const auto look = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!tensor.is_cuda()) {
      on_host |= tensor.dim() > 0;
      return;
    }
    TORCH_CHECK(!gpu || *gpu == tensor.device(),
                "Expected all tensors to be on the same device, but found at least two devices, ",
                *gpu, " and ", tensor.device(), "! (", name, ")");
    gpu = tensor.device();
  };
  for (const auto& value : arguments) visit_tensors(value, look);
  TORCH_CHECK(!gpu || !on_host,
              "Expected all tensors to be on the same device, but found at least two devices, ",
              *gpu, " and cpu! (", name, ")");
}

inline bool is_sized_by_data(const std::string& name, c10::ArrayRef<c10::IValue> arguments) {
  if (name == "aten::repeat_interleave") return arguments.back().isNone();  // output_size
  return kSizedByData.count(name) > 0 || counts_bools(name, arguments);
}

inline void compute_on_host(const c10::OperatorHandle& op, Stack* stack) {
  const auto& name = op.operator_name().name;
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  check_devices(arguments, name.c_str());
  if (is_sized_by_data(name, arguments)) note(kSize, name.c_str());
  note(kKernel, name.c_str());
  const Muted muted;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

}  // namespace emulated
