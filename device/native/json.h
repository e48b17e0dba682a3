// A JSON reader for manifests: strict, and bounded in size, depth and number of values.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace harmony {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kList, kObject };
  Kind kind = Kind::kNull;
  bool truth = false;
  double number = 0;
  bool whole = false;  // a number written without fraction and exponent
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;
};

struct JsonError {
  const char* problem;
  size_t at;  // byte
};

// The bounds are what a manifest of 100,000 classes may take. Throws a JsonError.
inline constexpr size_t kMaxJsonBytes = 16u << 20;
inline constexpr size_t kMaxJsonValues = 500'000;
inline constexpr int kMaxJsonDepth = 16;
inline constexpr size_t kMaxJsonFields = 256;

Json parse_json(const char* text, size_t size);

// `text` between quotes, as JSON.
std::string json_quoted(const std::string& text);

}  // namespace harmony
