// A file of images for harmony-run, read one at a time: a device has no room for all.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "harmony.h"

namespace harmony {

class Images {
 public:
  // A .npy file (n, height, width, channels), of one image without the first axis, or without the last if it is 1; any
  // other file is images one after the other, raw. DataMissing, DataForeign; InvalidInput for another shape or type.
  Images(const std::string& path, const harmony_info& info);

  uint64_t count() const { return count_; }
  // The next image, of info.image_bytes bytes. DataForeign if the file ends.
  void next(void* image);

 private:
  void open_array(const harmony_info& info);

  std::string path_;
  std::unique_ptr<FILE, int (*)(FILE*)> file_;
  uint64_t count_ = 0;
  size_t image_bytes_;
};

}  // namespace harmony
