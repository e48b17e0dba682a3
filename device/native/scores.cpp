#include "scores.h"

#include <algorithm>
#include <cmath>

namespace harmony {
namespace {

constexpr float kNothing = -1e30f;  // a logit without mass, finite so that differences stay so
constexpr float kLog2 = 0.693147180559945309417232121458176568f;

// log(e^a + e^b) in float32, with the roundings of numpy.logaddexp: maximum, then exp and log1p of libm.
float log_add(float a, float b) {
  if (a == b) return a + kLog2;
  const float difference = a - b;
  return difference > 0 ? a + std::log1p(std::exp(-difference)) : b + std::log1p(std::exp(difference));
}

float energy(const float* logits, size_t count) {
  float sum = logits[0];
  for (size_t i = 1; i < count; ++i) sum = log_add(sum, logits[i]);
  return sum;
}

// In two passes over the gate rather than with lists of own and other logits: no allocation for an image.
float own_mass(const float* gate, const std::vector<size_t>& own, size_t classes) {
  float mine = gate[own[0]];
  for (size_t i = 1; i < own.size(); ++i) mine = log_add(mine, gate[own[i]]);
  size_t next = 0;
  const auto other = [&](size_t label) {
    if (next == own.size() || own[next] != label) return gate[label];
    ++next;
    return kNothing;
  };
  float others = other(0);
  for (size_t label = 1; label < classes; ++label) others = log_add(others, other(label));
  return mine - others;
}

// The sum of numpy.add.reduce over a contiguous axis: in eight strands, and in halves beyond 128 values.
float sum_of(const float* values, size_t count) {
  if (count > 128) {
    const size_t half = count / 2 - count / 2 % 8;
    return sum_of(values, half) + sum_of(values + half, count - half);
  }
  float sum = 0;
  size_t i = 0;
  if (count >= 8) {
    float strand[8];
    std::copy(values, values + 8, strand);
    for (i = 8; i + 8 <= count; i += 8) {
      for (size_t k = 0; k < 8; ++k) strand[k] += values[i + k];
    }
    sum = ((strand[0] + strand[1]) + (strand[2] + strand[3])) + ((strand[4] + strand[5]) + (strand[6] + strand[7]));
  }
  for (; i < count; ++i) sum += values[i];
  return sum;
}

using Floats = std::vector<float>;

Floats exps(const float* logits, size_t count, float top) {
  Floats out(count);
  for (size_t i = 0; i < count; ++i) out[i] = std::exp(logits[i] - top);
  return out;
}

float neg_entropy(const float* logits, size_t count, float top) {
  Floats mass = exps(logits, count, top);
  const float sum = sum_of(mass.data(), count);
  for (size_t i = 0; i < count; ++i) mass[i] *= logits[i] - top;
  return sum_of(mass.data(), count) / sum - std::log(sum);
}

float msp(const float* logits, size_t count, float top) {
  const Floats mass = exps(logits, count, top);
  return 1 / sum_of(mass.data(), count);
}

// Ill-conditioned where a probability is near 1, so every rounding to float32 is in its place.
float gen(const float* logits, size_t count, float top) {
  Floats terms = exps(logits, count, top);
  const float sum = sum_of(terms.data(), count);
  for (float& one : terms) {
    const float p = std::clamp(one / sum, 1e-12f, static_cast<float>(1 - 1e-7));
    one = std::pow(p * (1 - p), 0.1f);
  }
  return -sum_of(terms.data(), count);
}

}  // namespace

float exit_score(Score score, const float* logits, const float* gate, const std::vector<size_t>& own, size_t classes) {
  const size_t count = own.size();
  const float top = *std::max_element(logits, logits + count);
  switch (score) {
    case Score::kOwnMass: return own_mass(gate, own, classes);
    case Score::kEnergy: return energy(logits, count);
    case Score::kMaxLogit: return top;
    case Score::kEntropy: return neg_entropy(logits, count, top);
    case Score::kMsp: return msp(logits, count, top);
    case Score::kGen: return gen(logits, count, top);
  }
  return kNothing;
}

Best best_of(const float* logits, size_t count) {
  const float* const top = std::max_element(logits, logits + count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::exp(logits[i] - static_cast<double>(*top));
  return {static_cast<size_t>(top - logits), 1 / sum};
}

}  // namespace harmony
