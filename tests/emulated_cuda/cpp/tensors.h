// How tensors of the device are made, copied, read and given other memory.
#pragma once

#include "counts.h"
#include "memory.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <c10/core/DeviceGuard.h>

namespace emulated {

using at::IntArrayRef;
using at::Tensor;

constexpr at::DispatchKeySet kCudaKeys(at::DispatchKey::CUDA);

inline Tensor empty(IntArrayRef sizes, std::optional<at::ScalarType> dtype,
                    std::optional<at::Layout>, std::optional<at::Device> device,
                    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard there(device);
  return at::detail::empty_generic(sizes, &device_memory, kCudaKeys, at::dtype_or_default(dtype),
                                   format);
}

inline Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides,
                            std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                            std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard there(device);
  return at::detail::empty_strided_generic(sizes, strides, &device_memory, kCudaKeys,
                                           at::dtype_or_default(dtype));
}

// The same memory as a tensor of the host.
inline Tensor as_cpu(const Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor;
  auto storage = tensor.storage();
  const auto length = static_cast<int64_t>(storage.nbytes() / tensor.itemsize());
  const auto options = at::TensorOptions().dtype(tensor.scalar_type()).device(at::kCPU);
  const auto keep_alive = [storage](void*) {};
  const auto flat = at::from_blob(storage.mutable_data(), {length}, keep_alive, options);
  return at::cpu::as_strided(flat, tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

inline Kind kind_of_copy(const Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.is_cuda() && from.is_cuda()) return kDeviceCopy;
  const bool is_download = from.is_cuda();
  if (!is_pinned((is_download ? to : from).const_data_ptr())) {
    return is_download ? kDownload : kPageableUpload;
  }
  if (non_blocking) return kPinnedCopy;
  return is_download ? kDownload : kBlockingUpload;
}

inline Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  if (self.numel() == 0) return self;
  note(kind_of_copy(self, from, non_blocking), "copy_");
  as_cpu(self).copy_(as_cpu(from));
  return self;
}

inline Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  as_cpu(to).copy_(as_cpu(self));
  return to;
}

inline Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

inline at::Scalar read_number(const Tensor& self) {
  note(kItem, "item");
  return as_cpu(self).item();
}

inline void grow(at::StorageImpl* storage, std::size_t bytes) {
  auto larger = device_memory.allocate(bytes);
  if (storage->nbytes() > 0) std::memcpy(larger.get(), storage->data(), storage->nbytes());
  storage->set_data_ptr_noswap(std::move(larger));
  storage->set_nbytes(bytes);
}

inline const Tensor& resize_(const Tensor& self, IntArrayRef sizes,
                             std::optional<at::MemoryFormat> format) {
  const auto numel = c10::multiply_integers(sizes) + self.storage_offset();
  const auto bytes = static_cast<std::size_t>(numel) * self.itemsize();
  if (bytes > self.storage().nbytes()) grow(self.storage().unsafeGetStorageImpl(), bytes);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

inline Tensor& set_part(Tensor& self, at::Storage source, int64_t offset, IntArrayRef sizes,
                        IntArrayRef strides) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (strides.data() != nullptr && strides.size() == sizes.size()) {
    impl->set_sizes_and_strides(sizes, strides);
  } else {
    impl->set_sizes_contiguous(sizes);
  }
  return self;
}

inline Tensor& set_whole(Tensor& self, at::Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_part(self, std::move(source), 0, {length}, {});
}

inline Tensor& set_as(Tensor& self, const Tensor& source) {
  return set_part(self, source.storage(), source.storage_offset(), source.sizes(),
                  source.strides());
}

inline Tensor as_strided(const Tensor& self, IntArrayRef sizes, IntArrayRef strides,
                         std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}
inline Tensor view(const Tensor& self, IntArrayRef sizes) { return at::native::view(self, sizes); }
inline Tensor reshape_alias(const Tensor& self, IntArrayRef sizes, IntArrayRef strides) {
  return at::native::_reshape_alias(self, sizes, strides);
}
inline Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}
inline void record_stream(Tensor&, at::Stream) {}

}  // namespace emulated
