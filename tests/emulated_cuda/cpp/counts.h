// What the device counts, and who is told of it.
#pragma once

#include <c10/util/Exception.h>

#include <array>
#include <atomic>

namespace emulated {

enum Kind {
  kDownload,
  kItem,
  kSize,
  kBlockingUpload,
  kPageableUpload,
  kSynchronize,
  kPinnedCopy,
  kDeviceCopy,
  kKernel,
  kCollective,
  kNumKinds,
};

constexpr std::array<const char*, kNumKinds> kKindNames = {
    "download",         // to the host, which waits for it
    "item",             // one number that the host reads
    "size",             // an output as large as the data says
    "blocking upload",  // out of pinned memory, but the host waits
    "pageable upload",  // out of memory that is not pinned, through a buffer of the driver
    "synchronize",      // asked for in so many words
    "pinned copy",      // to or from pinned memory, beside the host's work
    "device copy",      // from the device to the device
    "kernel",           // any other operator
    "collective",
};

constexpr bool host_waits(Kind kind) { return kind <= kBlockingUpload || kind == kSynchronize; }

// What torch.cuda.set_sync_debug_mode("error") forbids: all waits but those asked for.
constexpr bool waits_unasked(Kind kind) { return kind <= kPageableUpload; }

inline std::array<std::atomic<long>, kNumKinds> counts{};

using Listener = void (*)(int kind, const char* name);
inline std::atomic<Listener> listener{nullptr};

inline std::atomic<bool> waits_are_errors{false};

// What one operator does inside, with tensors of the host, is not what the program did.
inline thread_local int num_muted = 0;
struct Muted {
  Muted() { ++num_muted; }
  ~Muted() { --num_muted; }
  Muted(const Muted&) = delete;
  Muted& operator=(const Muted&) = delete;
};

inline void note(Kind kind, const char* name) {
  if (num_muted > 0) return;
  TORCH_CHECK(!waits_are_errors || !waits_unasked(kind),
              "called a synchronizing CUDA operation: ", name);
  ++counts[kind];
  if (Listener tell = listener.load()) tell(kind, name);
}

}  // namespace emulated
