#include "wire.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "zstd.h"

namespace harmony {
namespace {

using Frame = std::vector<uint8_t>;

void append_uint16(size_t value, Frame& frame) {
  frame.push_back(static_cast<uint8_t>(value));
  frame.push_back(static_cast<uint8_t>(value >> 8));
}

void append_float(float value, Frame& frame) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  append_uint16(bits & 0xffff, frame);
  append_uint16(bits >> 16, frame);
}

// IEEE 754 binary16, rounded to nearest, ties to even. |value| is at most 65504, which the caller sees to.
uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  if (exponent < -25) return sign;
  const bool subnormal = exponent < -14;
  // What is kept of the 24 bits of the mantissa, and how many are rounded away.
  const int dropped = subnormal ? -1 - exponent : 13;
  const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
  const uint32_t half = 1u << (dropped - 1);
  uint32_t kept = mantissa >> dropped;
  const uint32_t rest = mantissa & ((1u << dropped) - 1);
  kept += rest > half || (rest == half && (kept & 1) != 0);
  // The leading bit counts as one more in the exponent's field, also when rounding has carried into it.
  const uint32_t base = subnormal ? 0 : static_cast<uint32_t>(exponent + 14) << 10;
  return static_cast<uint16_t>(sign | (base + kept));
}

void append_fp16(const float* feature, size_t count, Frame& frame) {
  for (size_t i = 0; i < count; ++i) append_uint16(to_half(std::clamp(feature[i], -65504.0f, 65504.0f)), frame);
}

void append_int8(const float* feature, const FeatureSpec& spec, Frame& frame) {
  static const float kLargestScale = std::nextafter(FLT_MAX / 127.0f, 0.0f);  // 127 of it are finite
  const size_t plane = spec.height * spec.width;
  std::vector<uint8_t> quantised(spec.values());
  for (size_t channel = 0; channel < spec.channels; ++channel) {
    const float* const values = feature + plane * channel;
    float largest = 0;
    for (size_t i = 0; i < plane; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float scale = std::min(largest / 127.0f, kLargestScale);
    append_float(scale, frame);
    const float divisor = scale > 0 ? scale : 1;  // a channel of zeros keeps its zeros
    for (size_t i = 0; i < plane; ++i) {
      const float level = std::clamp(std::nearbyint(values[i] / divisor), -127.0f, 127.0f);
      quantised[plane * channel + i] = static_cast<uint8_t>(static_cast<int8_t>(level));
    }
  }
  append_zstd(quantised.data(), quantised.size(), frame);
}

}  // namespace

void encode(const float* feature, const FeatureSpec& spec, Codec codec, Frame& frame) {
  frame.clear();
  for (const char one : {'H', 'F', 'F', '1'}) frame.push_back(static_cast<uint8_t>(one));
  frame.push_back(static_cast<uint8_t>(codec));
  frame.push_back(0);
  for (const size_t side : {spec.channels, spec.height, spec.width}) append_uint16(side, frame);
  switch (codec) {
    case Codec::kFp32:
      for (size_t i = 0; i < spec.values(); ++i) append_float(feature[i], frame);
      break;
    case Codec::kFp16: append_fp16(feature, spec.values(), frame); break;
    case Codec::kInt8Zstd: append_int8(feature, spec, frame); break;
  }
}

}  // namespace harmony
