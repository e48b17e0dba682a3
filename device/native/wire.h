// The feature as one frame of core/wire.py.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.h"

namespace harmony {

// feature: (channels, height, width), finite. Replaces what `frame` held, and keeps its memory for the next.
void encode(const float* feature, const FeatureSpec& spec, Codec codec, std::vector<uint8_t>& frame);

}  // namespace harmony
