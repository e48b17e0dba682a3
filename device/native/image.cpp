#include "image.h"

#include <cstdint>
#include <cstring>

#include "failure.h"

namespace harmony {

Prepare::Prepare(const ImageSpec& spec) : spec_(spec), out_(spec.values()) {
  const double unit = spec.is_float ? 1.0 : 255.0;
  for (size_t channel = 0; channel < spec.channels; ++channel) {
    scale_.push_back(static_cast<float>(1.0 / (unit * spec.std[channel])));
    shift_.push_back(static_cast<float>(-spec.mean[channel] / spec.std[channel]));
  }
  if (spec.is_float) return;
  for (size_t channel = 0; channel < spec.channels; ++channel) {
    for (int value = 0; value < 256; ++value) {
      const float scaled = static_cast<float>(value) * scale_[channel];  // rounded before the sum: no fused operation
      tables_.push_back(scaled + shift_[channel]);
    }
  }
}

const float* Prepare::operator()(const void* image, size_t bytes) {
  if (bytes != spec_.bytes()) {
    fail(HARMONY_INVALID_INPUT, "image", "",
         "has " + std::to_string(bytes) + " bytes, the model takes " + spec_.text() + ", which are " +
             std::to_string(spec_.bytes()));
  }
  const auto* const values = static_cast<const unsigned char*>(image);
  if (spec_.is_float) {
    compute(values);
  } else {
    look_up(values);
  }
  return out_.data();
}

void Prepare::look_up(const unsigned char* image) {
  const size_t pixels = spec_.height * spec_.width;
  for (size_t channel = 0; channel < spec_.channels; ++channel) {
    const float* const table = tables_.data() + 256 * channel;
    float* const plane = out_.data() + pixels * channel;
    for (size_t i = 0; i < pixels; ++i) plane[i] = table[image[i * spec_.channels + channel]];
  }
}

void Prepare::compute(const unsigned char* image) {
  const size_t pixels = spec_.height * spec_.width;
  for (size_t channel = 0; channel < spec_.channels; ++channel) {
    float* const plane = out_.data() + pixels * channel;
    for (size_t i = 0; i < pixels; ++i) {
      float value;  // the caller's bytes may lie anywhere
      std::memcpy(&value, image + sizeof value * (i * spec_.channels + channel), sizeof value);
      const float scaled = value * scale_[channel];
      plane[i] = scaled + shift_[channel];
    }
  }
  if (!all_finite(out_.data(), out_.size())) {
    fail(HARMONY_INVALID_INPUT, "image", "", "holds values that are not finite, or too large to scale");
  }
}

bool all_finite(const float* values, size_t count) {
  constexpr uint32_t kExponent = 0x7f800000, kOne = 0x00800000;  // all ones only in NaN and infinity
  uint32_t carries = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    carries |= (bits & kExponent) + kOne;  // into the top bit; no comparison, so that it is done for many at once
  }
  return carries >> 31 == 0;
}

}  // namespace harmony
