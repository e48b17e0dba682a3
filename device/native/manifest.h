// A device bundle's manifest, as core/bundle.py defines it: typed, checked, and strict about unknown fields.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace harmony {

inline constexpr const char* kManifest = "manifest.json";
inline constexpr const char* kSeal = "manifest.sha256";

struct FileEntry {
  uint64_t size;
  std::string sha256;
};

struct ImageSpec {
  size_t height, width, channels;
  bool is_float;
  std::vector<double> mean, std;  // one a channel

  size_t values() const { return height * width * channels; }
  size_t bytes() const { return values() * (is_float ? 4 : 1); }
  std::string text() const;  // 28x28x1 uint8
};

struct FeatureSpec {
  size_t channels, height, width;

  size_t values() const { return channels * height * width; }
};

enum class Score { kEntropy, kMsp, kMaxLogit, kEnergy, kGen, kOwnMass };
enum class Codec { kFp32 = 0, kFp16 = 1, kInt8Zstd = 2 };  // numbers of core/wire.py

struct Exit {
  Score score;
  double threshold;
};

// The lower half of the held-out scores (class HeldOut of core/adaptive.py); without scores nothing is known of them.
struct HeldOut {
  uint64_t images = 0;
  std::vector<double> scores;

  uint64_t step() const;  // ranks from one score to the next
};

struct Manifest {
  ImageSpec image;
  FeatureSpec feature;
  std::vector<std::string> names;  // of classes, by label
  std::vector<size_t> own;         // labels, ascending
  Exit exits[2];
  HeldOut held_out;
  bool gate;
  Codec codec;
  std::string program;  // file of the engine `executorch`; empty if the bundle has none
  std::map<std::string, FileEntry> files;
};

// `where` is the path of the manifest, for errors: ArtifactCorrupt with the field, ArtifactTooNew.
Manifest parse_manifest(const std::string& text, const std::string& where);

}  // namespace harmony
