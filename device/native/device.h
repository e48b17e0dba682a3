// The early-exit loop of device/runner.py: exit 1, score, exit 2, score, and the feature for the cloud.
#pragma once

#include <cstdint>
#include <vector>

#include "adaptive.h"
#include "folder.h"
#include "harmony.h"
#include "image.h"
#include "program.h"

namespace harmony {

class Device {
 public:
  // `where` names the bundle in errors.
  Device(Bundle bundle, const std::string& where);

  harmony_decision answer(const void* image, size_t bytes);

  // Exit 2's threshold no longer follows the stream.
  void fix_threshold() { threshold_.stop_following(); }

  // The feature of the last answer, valid until the next; ConfigError if that did not reach exit 2.
  const float* feature() const;

  // The same as a frame, valid until the next call.
  const std::vector<uint8_t>& frame();

  // One segment alone; InvalidInput for another number of values.
  Outputs run(int exit, const float* input, size_t count);

  const Manifest& manifest() const { return manifest_; }
  const Program& program() const { return program_; }

 private:
  float pass(int exit, const Outputs& outputs, harmony_decision& decision) const;

  // The program comes first: it refuses a manifest with other images before anybody makes room for one.
  Manifest manifest_;
  Program program_;
  Prepare prepare_;
  AdaptiveThreshold threshold_;
  const float* feature_ = nullptr;
  std::vector<uint8_t> frame_;
};

}  // namespace harmony
