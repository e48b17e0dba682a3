// The bytes of a program as ExecuTorch reads them, and the way to give back what it does not need any more.
#pragma once

#include <executorch/runtime/core/data_loader.h>

#include <cstddef>
#include <mutex>
#include <vector>

#include "folder.h"

namespace harmony {

// XNNPACK packs weights into memory of its own. The originals are half of what a large front end takes, and are never
// read again.
class Segments : public executorch::runtime::DataLoader {
 public:
  explicit Segments(Bytes bytes) : bytes_(std::move(bytes)) {}

  const Bytes& bytes() const { return bytes_; }

  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(
      size_t offset, size_t size, const SegmentInfo& info) const override;
  executorch::runtime::Error load_into(size_t offset, size_t size, const SegmentInfo& info,
                                       void* buffer) const override;
  executorch::runtime::Result<size_t> size() const override { return bytes_.size; }

  // Gives the system back the memory of all segments that were loaded and freed. From now on nothing can be loaded:
  // what is asked for later might be gone.
  void give_back();

 private:
  struct Span {
    size_t begin, end;
  };

  static void freed(void* self, void* data, size_t size);

  Bytes bytes_;
  mutable std::mutex mutex_;
  mutable std::vector<Span> held_, freed_;
  bool closed_ = false;
};

}  // namespace harmony
