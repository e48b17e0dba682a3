// The threshold of exit 2 while a stream goes by: core/adaptive.py, to the bit.
#pragma once

#include <cstddef>
#include <vector>

#include "manifest.h"

namespace harmony {

class AdaptiveThreshold {
 public:
  // Without held-out scores the fixed threshold holds for ever.
  AdaptiveThreshold(const HeldOut& held_out, double fixed);

  // The threshold for an input: it is sent if its score is below. Then the score is learnt from.
  double judge(double score);

  // The score of what left at exit 1.
  static double surest();

  // From now on the fixed threshold.
  void stop_following() { scores_.clear(), threshold_ = fixed_; }

 private:
  bool foreign_came();

  std::vector<double> scores_, below_, spread_;  // of the held-out images: score, share below it, its variance
  double each_ = 0, fixed_, threshold_;
  std::vector<double> seen_, sorted_;  // the last scores, in a ring
  size_t count_ = 0;
};

}  // namespace harmony
