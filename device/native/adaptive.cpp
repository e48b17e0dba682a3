#include "adaptive.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace harmony {
namespace {

constexpr size_t kWindow = 512, kEvery = 16;
constexpr double kDoubt = 3.5;
constexpr double kSendsNothing = std::numeric_limits<float>::lowest();

}  // namespace

AdaptiveThreshold::AdaptiveThreshold(const HeldOut& held_out, double fixed)
    : scores_(held_out.scores), fixed_(fixed), threshold_(fixed) {
  if (scores_.empty()) return;
  const double images = static_cast<double>(held_out.images);
  each_ = 1 / images;
  for (size_t i = 0; i < scores_.size(); ++i) {
    const double below = static_cast<double>(i * held_out.step()) / images;
    below_.push_back(below);
    spread_.push_back(below * (1 - below) + each_);
  }
  seen_.reserve(kWindow);
  sorted_.reserve(kWindow);
}

double AdaptiveThreshold::judge(double score) {
  const double threshold = threshold_;
  if (scores_.empty()) return threshold;
  if (seen_.size() < kWindow) {
    seen_.push_back(score);
  } else {
    seen_[count_ % kWindow] = score;
  }
  if (++count_ % kEvery == 0) threshold_ = foreign_came() ? fixed_ : kSendsNothing;
  return threshold;
}

// Every operation in the order of core/adaptive.py, so that every rounding is the same.
bool AdaptiveThreshold::foreign_came() {
  sorted_ = seen_;
  std::sort(sorted_.begin(), sorted_.end());
  const double seen = static_cast<double>(sorted_.size());
  for (size_t i = 0; i < scores_.size(); ++i) {
    const auto lower = std::lower_bound(sorted_.begin(), sorted_.end(), scores_[i]) - sorted_.begin();
    const double noise = spread_[i] * (each_ + 1 / seen);
    if (static_cast<double>(lower) / seen - below_[i] - kDoubt * std::sqrt(noise) > 0) return true;
  }
  return false;
}

double AdaptiveThreshold::surest() { return std::numeric_limits<float>::max(); }

}  // namespace harmony
