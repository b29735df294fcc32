// Memory of the device and pinned memory of the host. Both are the host's.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace emulated {

constexpr int kMaxGpus = 8;
inline thread_local int current_gpu = 0;

// Read anew each time: a fork may be given another number than its parent.
inline int num_gpus() {
  if (const char* visible = std::getenv("CUDA_VISIBLE_DEVICES")) {
    int found = *visible ? 1 : 0;
    for (; *visible; ++visible) found += *visible == ',';
    return found;
  }
  const char* number = std::getenv("SCALEPET_EMULATED_GPUS");
  return number ? std::min(std::atoi(number), kMaxGpus) : 0;
}

constexpr std::size_t kAlignment = 64;

inline char* aligned(std::size_t bytes) {
  const auto whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* found = static_cast<char*>(std::aligned_alloc(kAlignment, whole));
  TORCH_CHECK(found != nullptr, "CUDA out of memory: the host has no ", bytes, " bytes");
  return found;
}

// Bytes of all devices together; each block has its size in front.
inline std::atomic<long> allocated_bytes{0}, peak_bytes{0}, num_allocations{0};

inline void count_allocation(long bytes) {
  ++num_allocations;
  const long now = allocated_bytes += bytes;
  long highest = peak_bytes;
  while (now > highest && !peak_bytes.compare_exchange_weak(highest, now)) {
  }
}

inline void free_device(void* start) {
  if (start == nullptr) return;
  auto* block = static_cast<char*>(start) - kAlignment;
  allocated_bytes -= *reinterpret_cast<long*>(block);
  std::free(block);
}

// What a used device holds: as fp32 and bf16 1.3e36, as fp16 61,280.
constexpr int kGarbage = 0x7b;

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(current_gpu));
    if (bytes == 0) return {nullptr, nullptr, &free_device, device};
    char* block = aligned(kAlignment + bytes);
    *reinterpret_cast<long*>(block) = static_cast<long>(bytes);
    std::memset(block + kAlignment, kGarbage, bytes);
    count_allocation(static_cast<long>(bytes));
    return {block + kAlignment, block + kAlignment, &free_device, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_device; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
inline DeviceMemory device_memory;

// Start of every pinned buffer -> its bytes.
inline std::mutex pinned_lock;
inline std::map<const char*, std::size_t> pinned;

inline void free_pinned(void* start) {
  if (start == nullptr) return;
  const std::lock_guard<std::mutex> held(pinned_lock);
  pinned.erase(static_cast<char*>(start));
  std::free(start);
}

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &free_pinned, c10::Device(c10::kCPU)};
    char* start = aligned(bytes);
    const std::lock_guard<std::mutex> held(pinned_lock);
    pinned[start] = bytes;
    return {start, start, &free_pinned, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
inline PinnedMemory pinned_memory;

inline bool is_pinned(const void* address) {
  const auto* at = static_cast<const char*>(address);
  const std::lock_guard<std::mutex> held(pinned_lock);
  auto after = pinned.upper_bound(at);
  if (after == pinned.begin()) return false;
  const auto& [start, bytes] = *--after;
  return at < start + bytes;
}

inline long pinned_bytes() {
  const std::lock_guard<std::mutex> held(pinned_lock);
  long sum = 0;
  for (const auto& [start, bytes] : pinned) sum += static_cast<long>(bytes);
  return sum;
}

}  // namespace emulated
