// Exit scores: the arithmetic of core/scores.py for one sample.
#pragma once

#include <cstddef>
#include <vector>

#include "manifest.h"

namespace harmony {

// logits: one for each own class; gate: one for each class, read by own_mass alone; own: labels, ascending.
// Every operation is rounded to float32 in numpy's order. own_mass, energy and max_logit, for which numpy calls libm,
// are the same bits; for entropy, msp and gen it has approximations of exp, log and power of its own, a few units in
// the last place away.
float exit_score(Score score, const float* logits, const float* gate, const std::vector<size_t>& own, size_t classes);

// The softmax of the largest of `logits`, and its index (the first of equals).
struct Best {
  size_t index;
  double probability;
};
Best best_of(const float* logits, size_t count);

}  // namespace harmony
