#include "segments.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace harmony {

namespace et = executorch::runtime;

et::Result<et::FreeableBuffer> Segments::load(size_t offset, size_t size, const SegmentInfo&) const {
  const std::lock_guard<std::mutex> alone(mutex_);
  if (closed_) return et::Error::AccessFailed;
  if (offset > bytes_.size || size > bytes_.size - offset) return et::Error::InvalidArgument;
  held_.push_back({offset, offset + size});
  return et::FreeableBuffer(bytes_.data.get() + offset, size, freed, const_cast<Segments*>(this));
}

et::Error Segments::load_into(size_t offset, size_t size, const SegmentInfo& info, void* buffer) const {
  const et::Result<et::FreeableBuffer> found = load(offset, size, info);
  if (!found.ok()) return found.error();
  std::memcpy(buffer, found->data(), size);
  return et::Error::Ok;
}

void Segments::freed(void* self, void* data, size_t size) {
  auto* const mine = static_cast<Segments*>(self);
  const std::lock_guard<std::mutex> alone(mine->mutex_);
  const auto begin = static_cast<size_t>(static_cast<uint8_t*>(data) - mine->bytes_.data.get());
  const auto same = [=](const Span& span) { return span.begin == begin && span.end == begin + size; };
  const auto found = std::find_if(mine->held_.begin(), mine->held_.end(), same);
  if (found == mine->held_.end()) return;
  mine->freed_.push_back(*found);
  mine->held_.erase(found);
}

void Segments::give_back() {
  const std::lock_guard<std::mutex> alone(mutex_);
  closed_ = true;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(bytes_.data.get());
  for (const Span& span : freed_) {
    // Only pages that lie in it whole; their neighbours hold something else.
    const uintptr_t begin = (base + span.begin + page - 1) / page * page, end = (base + span.end) / page * page;
    const auto overlaps = [=](const Span& other) { return base + other.begin < end && begin < base + other.end; };
    if (begin >= end || std::any_of(held_.begin(), held_.end(), overlaps)) continue;
    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

}  // namespace harmony
