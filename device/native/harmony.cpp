// The C API: where a Failure, or anything else that was thrown, becomes a status.
#include "harmony.h"

#include <algorithm>
#include <memory>
#include <mutex>

#include "caught.h"
#include "device.h"
#include "signature.h"

struct harmony_device {
  harmony::Device device;
  mutable std::mutex mutex;
};

namespace {

using harmony::caught;
using harmony::require;

// Two threads in one device would write to the same buffers, and end the process. Uncontended it costs nothing to speak
// of.
template <typename Work>
harmony_status with(const harmony_device* device, harmony_error* error, Work work) noexcept {
  return caught(error, [&] {
    if (device == nullptr) harmony::fail(HARMONY_CONFIG_ERROR, "device", "", "is NULL");
    const std::lock_guard<std::mutex> alone(device->mutex);
    work();
  });
}

harmony_status run(harmony_device* device, int exit, const float* input, size_t count, harmony_outputs* outputs,
                   harmony_error* error) {
  return with(device, error, [=] {
    require(input, "input");
    require(outputs, "outputs");
    const harmony::Outputs found = device->device.run(exit, input, count);
    *outputs = {found.carried, found.logits, found.gate};
  });
}

void describe(const harmony::Device& device, harmony_info* info) {
  const harmony::Manifest& manifest = device.manifest();
  const auto side = [](size_t value) { return static_cast<int32_t>(value); };
  *info = {};
  info->image_height = side(manifest.image.height);
  info->image_width = side(manifest.image.width);
  info->image_channels = side(manifest.image.channels);
  info->image_is_float = manifest.image.is_float ? 1 : 0;
  info->image_bytes = manifest.image.bytes();
  info->feature_channels = side(manifest.feature.channels);
  info->feature_height = side(manifest.feature.height);
  info->feature_width = side(manifest.feature.width);
  for (const int32_t one : device.program().hidden_shape()) info->hidden_shape[info->hidden_rank++] = one;
  info->own_classes = side(manifest.own.size());
  info->classes = side(manifest.names.size());
  info->gate = manifest.gate ? 1 : 0;
}

}  // namespace

uint32_t harmony_abi(void) { return HARMONY_ABI; }

const char* harmony_status_name(harmony_status status) { return harmony::status_name(status); }

harmony_status harmony_read_keys(const char* text, size_t text_bytes, const char* where, harmony_key* keys,
                                 size_t* count, harmony_error* error) {
  return caught(error, [=] {
    require(text, "text");
    require(where, "where");
    require(keys, "keys");
    require(count, "count");
    const std::vector<harmony::PublicKey> found = harmony::read_keys(std::string(text, text_bytes), where);
    const size_t room = *count;
    *count = found.size();
    if (found.size() > room) harmony::fail(HARMONY_CONFIG_ERROR, where, "", "holds too many keys");
    for (size_t i = 0; i < found.size(); ++i) std::copy(found[i].begin(), found[i].end(), keys[i].bytes);
  });
}

harmony_status harmony_open(const char* bundle, const harmony_key* trusted, size_t keys, harmony_device** device,
                            harmony_error* error) {
  return caught(error, [=] {
    require(bundle, "bundle");
    require(device, "device");
    if (keys > 0) require(trusted, "trusted");
    *device = nullptr;
    std::vector<harmony::PublicKey> owners(keys);
    for (size_t i = 0; i < keys; ++i) std::copy_n(trusted[i].bytes, owners[i].size(), owners[i].begin());
    *device = new harmony_device{harmony::Device(harmony::open_bundle(bundle, owners), bundle), {}};
  });
}

harmony_status harmony_open_memory(const char* manifest, size_t manifest_bytes, const void* program,
                                   size_t program_bytes, const char* where, harmony_device** device,
                                   harmony_error* error) {
  return caught(error, [=] {
    require(manifest, "manifest");
    require(program, "program");
    require(where, "where");
    require(device, "device");
    *device = nullptr;
    const std::string text(manifest, manifest_bytes);
    *device = new harmony_device{harmony::Device(harmony::open_bundle(text, program, program_bytes, where), where), {}};
  });
}

void harmony_close(harmony_device* device) {
  caught(nullptr, [=] { delete device; });
}

harmony_status harmony_describe(const harmony_device* device, harmony_info* info, harmony_error* error) {
  return with(device, error, [=] {
    require(info, "info");
    describe(device->device, info);
  });
}

const char* harmony_class_name(const harmony_device* device, int32_t label) {
  if (device == nullptr || label < 0) return nullptr;
  const auto& names = device->device.manifest().names;
  return static_cast<size_t>(label) < names.size() ? names[static_cast<size_t>(label)].c_str() : nullptr;
}

harmony_status harmony_answer(harmony_device* device, const void* image, size_t image_bytes,
                              harmony_decision* decision, harmony_error* error) {
  return with(device, error, [=] {
    require(image, "image");
    require(decision, "decision");
    *decision = device->device.answer(image, image_bytes);
  });
}

harmony_status harmony_fix_threshold(harmony_device* device, harmony_error* error) {
  return with(device, error, [=] { device->device.fix_threshold(); });
}

harmony_status harmony_feature(const harmony_device* device, const float** feature, harmony_error* error) {
  return with(device, error, [=] {
    require(feature, "feature");
    *feature = device->device.feature();
  });
}

harmony_status harmony_frame(harmony_device* device, const uint8_t** frame, size_t* frame_bytes,
                             harmony_error* error) {
  return with(device, error, [=] {
    require(frame, "frame");
    require(frame_bytes, "frame_bytes");
    const auto& bytes = device->device.frame();
    *frame = bytes.data();
    *frame_bytes = bytes.size();
  });
}

harmony_status harmony_exit1(harmony_device* device, const float* image, size_t count, harmony_outputs* outputs,
                             harmony_error* error) {
  return run(device, 0, image, count, outputs, error);
}

harmony_status harmony_exit2(harmony_device* device, const float* hidden, size_t count, harmony_outputs* outputs,
                             harmony_error* error) {
  return run(device, 1, hidden, count, outputs, error);
}
