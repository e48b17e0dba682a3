#include "device.h"

#include "failure.h"
#include "scores.h"
#include "wire.h"

namespace harmony {
namespace {

int64_t nanoseconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::nanoseconds(end - begin).count();
}

}  // namespace

Device::Device(Bundle bundle, const std::string& where)
    : manifest_(std::move(bundle.manifest)),
      program_(std::move(bundle.program), manifest_, where + "/" + manifest_.program),
      prepare_(manifest_.image),
      threshold_(manifest_.held_out, manifest_.exits[1].threshold) {}

harmony_decision Device::answer(const void* image, size_t bytes) {
  const Clock::time_point begin = Clock::now();
  harmony_decision decision{};
  feature_ = nullptr;
  Outputs outputs = program_.run(0, prepare_(image, bytes));
  decision.prepare_ns = nanoseconds(begin, outputs.begin);
  decision.threshold = manifest_.exits[0].threshold;
  bool sure = pass(0, outputs, decision) >= decision.threshold;
  if (sure) {
    threshold_.judge(AdaptiveThreshold::surest());
  } else {
    outputs = program_.run(1, outputs.carried);
    feature_ = outputs.carried;
    const float score = pass(1, outputs, decision);
    decision.threshold = threshold_.judge(score);
    sure = score >= decision.threshold;
  }
  const Best best = best_of(outputs.logits, manifest_.own.size());
  decision.exit = decision.scores;
  decision.would_offload = sure ? 0 : 1;
  decision.label = static_cast<int32_t>(manifest_.own[best.index]);
  decision.probability = best.probability;
  decision.total_ns = nanoseconds(begin, Clock::now());
  return decision;
}

float Device::pass(int exit, const Outputs& outputs, harmony_decision& decision) const {
  const Score score = manifest_.exits[exit].score;
  const float value = exit_score(score, outputs.logits, outputs.gate, manifest_.own, manifest_.names.size());
  decision.score[exit] = value;
  decision.engine_ns[exit] = nanoseconds(outputs.begin, outputs.end);
  decision.scores = exit + 1;
  return value;
}

const float* Device::feature() const {
  if (feature_ == nullptr) fail(HARMONY_CONFIG_ERROR, "feature", "", "the last image did not reach exit 2");
  return feature_;
}

const std::vector<uint8_t>& Device::frame() {
  encode(feature(), manifest_.feature, manifest_.codec, frame_);
  return frame_;
}

Outputs Device::run(int exit, const float* input, size_t count) {
  if (count != program_.input_size(exit)) {
    fail(HARMONY_INVALID_INPUT, exit == 0 ? "image" : "hidden", "",
         "has " + std::to_string(count) + " values, the model takes " + std::to_string(program_.input_size(exit)));
  }
  if (!all_finite(input, count)) {
    fail(HARMONY_INVALID_INPUT, exit == 0 ? "image" : "hidden", "", "holds values that are not finite");
  }
  const Outputs outputs = program_.run(exit, input);
  feature_ = exit == 1 ? outputs.carried : nullptr;
  return outputs;
}

}  // namespace harmony
