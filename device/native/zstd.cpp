#include "zstd.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>

namespace harmony {
namespace {

constexpr int kLevel = 3;  // as core/wire.py
constexpr size_t kLargestBlock = 128u << 10;

// The few functions of libzstd's stable interface that are needed. The library is looked up when the first feature is
// packed: a device that never asks the cloud does not load it, and one that lacks it does without.
struct Library {
  using Context = void;
  Context* (*create)() = nullptr;
  size_t (*compress)(Context*, void*, size_t, const void*, size_t, int) = nullptr;
  size_t (*bound)(size_t) = nullptr;
  unsigned (*is_error)(size_t) = nullptr;
  size_t (*release)(Context*) = nullptr;

  Library() {
    void* const found = ::dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    if (found == nullptr) return;
    create = reinterpret_cast<decltype(create)>(::dlsym(found, "ZSTD_createCCtx"));
    compress = reinterpret_cast<decltype(compress)>(::dlsym(found, "ZSTD_compressCCtx"));
    bound = reinterpret_cast<decltype(bound)>(::dlsym(found, "ZSTD_compressBound"));
    is_error = reinterpret_cast<decltype(is_error)>(::dlsym(found, "ZSTD_isError"));
    release = reinterpret_cast<decltype(release)>(::dlsym(found, "ZSTD_freeCCtx"));
  }

  bool whole() const { return create && compress && bound && is_error && release; }
};

bool append_compressed(const uint8_t* content, size_t size, std::vector<uint8_t>& out) {
  static const Library library;
  if (!library.whole()) return false;
  // One a thread, for its life: making one costs more than packing a small feature.
  thread_local const std::unique_ptr<Library::Context, size_t (*)(Library::Context*)> context(library.create(),
                                                                                              library.release);
  if (!context) return false;
  const size_t before = out.size();
  out.resize(before + library.bound(size));
  const size_t room = out.size() - before;
  const size_t written = library.compress(context.get(), out.data() + before, room, content, size, kLevel);
  const bool packed = library.is_error(written) == 0;
  out.resize(before + (packed ? written : 0));
  return packed;
}

void append_number(uint64_t value, int bytes, std::vector<uint8_t>& out) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

}  // namespace

void append_stored(const uint8_t* content, size_t size, std::vector<uint8_t>& out) {
  append_number(0xfd2fb528, 4, out);
  out.push_back(0xe0);  // descriptor: the content's size in 8 bytes, a single segment, no checksum, no dictionary
  append_number(size, 8, out);
  do {
    const size_t block = std::min(size, kLargestBlock);
    const bool last = block == size;
    append_number(block << 3 | (last ? 1 : 0), 3, out);  // type 0: stored
    out.insert(out.end(), content, content + block);
    content += block, size -= block;
  } while (size > 0);
}

void append_zstd(const uint8_t* content, size_t size, std::vector<uint8_t>& out) {
  if (!append_compressed(content, size, out)) append_stored(content, size, out);
}

}  // namespace harmony
