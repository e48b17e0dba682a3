// Image to model input: the numbers of core/preprocess.py, bit by bit.
#pragma once

#include <cstddef>
#include <vector>

#include "manifest.h"

namespace harmony {

class Prepare {
 public:
  explicit Prepare(const ImageSpec& spec);

  // image: (height, width, channels), unscaled, of spec.bytes() bytes, at any address. Returns (channels, height,
  // width), valid until the next call. InvalidInput for another size, or for values that are not finite.
  const float* operator()(const void* image, size_t bytes);

 private:
  void look_up(const unsigned char* image);
  void compute(const unsigned char* image);

  ImageSpec spec_;
  std::vector<float> scale_, shift_;  // one a channel
  std::vector<float> tables_;         // of uint8 images: 256 values a channel
  std::vector<float> out_;
};

// Whether all values are neither NaN nor infinite.
bool all_finite(const float* values, size_t count);

}  // namespace harmony
