#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "failure.h"

namespace harmony {
namespace {

constexpr const char* kFormat = "harmony-device-bundle";
constexpr double kVersion = 1;
constexpr double kLongestSide = 4096;
constexpr size_t kMostClasses = 100'000;
constexpr double kMostBytes = 1ull << 40;
constexpr double kSteepest = 1e30;  // scaling an image beyond it leaves float32
constexpr uint64_t kMostHeldOut = 512;  // that count one by one; of more, only every second, third … is listed
constexpr double kMostImages = 1ull << 31;

// A value of the document that knows its way from the root, so that every refusal can name it.
class Field {
 public:
  Field(const Json& value, const std::string& where, std::string path)
      : value_(value), where_(where), path_(std::move(path)) {}

  [[noreturn]] void refuse(const std::string& problem) const {
    fail(HARMONY_ARTIFACT_CORRUPT, where_, path_, problem);
  }

  // An object with exactly these fields; those after `optional` may be absent.
  void require(std::initializer_list<const char*> needed, std::initializer_list<const char*> optional = {}) const {
    if (value_.kind != Json::Kind::kObject) refuse("is not an object");
    for (const char* name : needed) {
      if (find(name) == nullptr) inner(value_, name).refuse("is missing");
    }
    for (const auto& [name, inside] : value_.fields) {
      const auto same = [&found = name](const char* one) { return found == one; };
      if (std::none_of(needed.begin(), needed.end(), same) && std::none_of(optional.begin(), optional.end(), same)) {
        inner(inside, name).refuse("is not a field that this program knows");
      }
    }
  }

  bool has(const char* name) const { return find(name) != nullptr; }
  bool null() const { return value_.kind == Json::Kind::kNull; }

  Field operator[](const char* name) const {
    const Json* const inside = find(name);
    if (inside == nullptr) inner(value_, name).refuse("is missing");
    return inner(*inside, name);
  }

  const std::vector<std::pair<std::string, Json>>& fields() const {
    if (value_.kind != Json::Kind::kObject) refuse("is not an object");
    return value_.fields;
  }

  size_t items() const {
    if (value_.kind != Json::Kind::kList) refuse("is not a list");
    return value_.items.size();
  }

  Field item(size_t index) const { return inner(value_.items[index], std::to_string(index)); }

  const std::string& text() const {
    if (value_.kind != Json::Kind::kString) refuse("is not a text");
    return value_.text;
  }

  bool truth() const {
    if (value_.kind != Json::Kind::kBool) refuse("is neither true nor false");
    return value_.truth;
  }

  double number() const {
    if (value_.kind != Json::Kind::kNumber) refuse("is not a number");
    return value_.number;
  }

  // All bounds are below 2^53, so the double is exact.
  uint64_t whole(double least, double most) const {
    const bool fits = value_.kind == Json::Kind::kNumber && value_.whole && number() >= least && number() <= most;
    if (!fits) refuse("is not a whole number from " + plain(least) + " to " + plain(most));
    return static_cast<uint64_t>(number());
  }

  bool is(const char* wanted) const { return value_.kind == Json::Kind::kString && value_.text == wanted; }

 private:
  static std::string plain(double value) { return std::to_string(static_cast<uint64_t>(value)); }

  const Json* find(const char* name) const {
    for (const auto& [found, inside] : value_.fields) {
      if (found == name) return &inside;
    }
    return nullptr;
  }

  Field inner(const Json& value, const std::string& name) const {
    return Field(value, where_, path_.empty() ? name : path_ + "." + name);
  }

  const Json& value_;
  const std::string& where_;
  std::string path_;
};

bool is_hash(const std::string& text) {
  const auto hex = [](char one) { return (one >= '0' && one <= '9') || (one >= 'a' && one <= 'f'); };
  return text.size() == 64 && std::all_of(text.begin(), text.end(), hex);
}

bool is_plain(char one) {
  return (one >= '0' && one <= '9') || (one >= 'a' && one <= 'z') || (one >= 'A' && one <= 'Z') || one == '_';
}

// A name that stays within its folder: no separator, no leading dot.
bool is_file_name(const std::string& text) {
  const auto allowed = [](char one) { return is_plain(one) || one == '.' || one == '-'; };
  return !text.empty() && text.size() <= 128 && is_plain(text[0]) && std::all_of(text.begin(), text.end(), allowed);
}

std::map<std::string, FileEntry> read_files(const Field& field) {
  std::map<std::string, FileEntry> files;
  for (const auto& entry : field.fields()) {
    const Field one = field[entry.first.c_str()];
    if (!is_file_name(entry.first)) one.refuse("is not a plain file name");
    one.require({"size", "sha256"});
    const std::string& hash = one["sha256"].text();
    if (!is_hash(hash)) one["sha256"].refuse("is not a SHA-256");
    files[entry.first] = {one["size"].whole(0, kMostBytes), hash};
  }
  return files;
}

std::vector<double> read_scales(const Field& field, size_t channels) {
  if (field.items() != channels) field.refuse("needs one value for each of " + std::to_string(channels) + " channels");
  std::vector<double> values;
  for (size_t i = 0; i < channels; ++i) values.push_back(field.item(i).number());
  return values;
}

ImageSpec read_image(const Field& field) {
  field.require({"height", "width", "channels", "mean", "std"}, {"dtype"});
  ImageSpec image;
  image.height = field["height"].whole(1, kLongestSide);
  image.width = field["width"].whole(1, kLongestSide);
  image.channels = field["channels"].whole(1, kLongestSide);
  image.is_float = field.has("dtype") && field["dtype"].is("float32");
  if (field.has("dtype") && !image.is_float && !field["dtype"].is("uint8")) {
    field["dtype"].refuse("is neither uint8 nor float32");
  }
  image.mean = read_scales(field["mean"], image.channels);
  image.std = read_scales(field["std"], image.channels);
  for (size_t i = 0; i < image.channels; ++i) {
    const double std = image.std[i];
    if (!(std > 0)) field["std"].item(i).refuse("is not above 0");
    if (std::max(1.0, std::fabs(image.mean[i])) / std > kSteepest) {
      field["std"].item(i).refuse("is too small to scale an image in float32");
    }
  }
  return image;
}

FeatureSpec read_feature(const Field& field) {
  field.require({"channels", "height", "width"}, {"dtype"});
  if (field.has("dtype") && !field["dtype"].is("float32")) field["dtype"].refuse("is not float32");
  return {field["channels"].whole(1, kLongestSide), field["height"].whole(1, kLongestSide),
          field["width"].whole(1, kLongestSide)};
}

std::vector<std::string> read_names(const Field& field) {
  const size_t count = field.items();
  if (count < 2 || count > kMostClasses) field.refuse("needs from 2 to 100000 classes");
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) names.push_back(field.item(i).text());
  return names;
}

std::vector<size_t> read_own(const Field& field, size_t classes) {
  std::vector<size_t> own;
  for (size_t i = 0; i < field.items(); ++i) {
    own.push_back(field.item(i).whole(0, static_cast<double>(classes - 1)));
    if (i > 0 && own[i] <= own[i - 1]) field.refuse("is not in ascending order");
  }
  if (own.empty()) field.refuse("needs at least one label");
  return own;
}

// The tokens are the cloud's business, but a manifest whose tokens make no sense was not written by harmony export.
void check_tokens(const Field& field, size_t classes) {
  std::vector<bool> seen(classes, false);
  bool fits = field.items() == classes;
  for (size_t i = 0; fits && i < classes; ++i) {
    const size_t token = field.item(i).whole(0, static_cast<double>(classes - 1));
    fits = !seen[token];
    seen[token] = true;
  }
  if (!fits) field.refuse("is not a permutation of the labels");
}

Score read_score(const Field& field) {
  static constexpr std::pair<const char*, Score> kScores[] = {
      {"entropy", Score::kEntropy}, {"msp", Score::kMsp}, {"max_logit", Score::kMaxLogit},
      {"energy", Score::kEnergy},   {"gen", Score::kGen}, {"own_mass", Score::kOwnMass}};
  for (const auto& [name, score] : kScores) {
    if (field.is(name)) return score;
  }
  field.refuse("is no exit score");
}

Exit read_exit(const Field& field, const char* name, bool gate) {
  field.require({"name", "score", "threshold"}, {"budget"});
  if (!field["name"].is(name)) field["name"].refuse(std::string("is not ") + name);
  const Exit exit{read_score(field["score"]), field["threshold"].number()};
  if (exit.score == Score::kOwnMass && !gate) field["score"].refuse("needs a gate head, but there is none");
  return exit;
}

HeldOut read_held_out(const Field& root) {
  if (!root.has("held_out") || root["held_out"].null()) return {};
  const Field field = root["held_out"];
  field.require({"images", "scores"});
  HeldOut held_out;
  held_out.images = field["images"].whole(1, kMostImages);
  const Field scores = field["scores"];
  const uint64_t wanted = held_out.images / (2 * held_out.step()) + 1;
  if (scores.items() != wanted) scores.refuse("needs " + std::to_string(wanted) + " values for so many images");
  for (size_t i = 0; i < wanted; ++i) {
    held_out.scores.push_back(scores.item(i).number());
    if (i > 0 && held_out.scores[i] < held_out.scores[i - 1]) scores.refuse("is not in ascending order");
  }
  return held_out;
}

Codec read_codec(const Field& field) {
  if (field.has("model")) field["model"].text();
  if (!field.has("codec")) return Codec::kInt8Zstd;
  const Field codec = field["codec"];
  if (codec.is("fp32")) return Codec::kFp32;
  if (codec.is("fp16")) return Codec::kFp16;
  if (!codec.is("int8-zstd")) codec.refuse("is no wire codec");
  return Codec::kInt8Zstd;
}

// Programs of either precision take and give float32, so that nothing follows from it here.
void check_precision(const Field& root) {
  if (!root.has("precision")) return;
  const Field precision = root["precision"];
  if (!precision.is("fp32") && !precision.is("int8")) precision.refuse("is neither fp32 nor int8");
}

std::string read_program(const Field& engines, const std::map<std::string, FileEntry>& files) {
  if (engines.fields().empty()) engines.refuse("names no engine");
  if (!engines.has("executorch")) return "";
  const Field roles = engines["executorch"];
  roles.require({"program"});
  const std::string& name = roles["program"].text();
  if (files.count(name) == 0) roles["program"].refuse("names '" + name + "', which is not among its files");
  return name;
}

void check_format(const Json& document, const Field& root, const std::string& where) {
  const bool known = document.kind == Json::Kind::kObject && root.has("format") && root["format"].is(kFormat);
  if (!known) {
    fail(HARMONY_ARTIFACT_CORRUPT, where, "format", std::string("is not a '") + kFormat + "'", "check the path");
  }
  const double version = root["format_version"].number();
  if (version > kVersion) {
    fail(HARMONY_ARTIFACT_TOO_NEW, where, "format_version", "is of a later version than this program knows",
         "update harmony-sfl");
  }
  root["format_version"].whole(kVersion, kVersion);
}

Json parse_document(const std::string& text, const std::string& where) {
  try {
    return parse_json(text.data(), text.size());
  } catch (const JsonError& error) {
    fail(HARMONY_ARTIFACT_CORRUPT, where, "",
         std::string("is not JSON: it ") + error.problem + ", byte " + std::to_string(error.at));
  }
}

}  // namespace

uint64_t HeldOut::step() const { return (images + kMostHeldOut - 1) / kMostHeldOut; }

std::string ImageSpec::text() const {
  return std::to_string(height) + "x" + std::to_string(width) + "x" + std::to_string(channels) +
         (is_float ? " float32" : " uint8");
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  const Json document = parse_document(text, where);
  const Field root(document, where, "");
  check_format(document, root, where);
  root.require({"format", "format_version", "files", "harmony_version", "run", "method", "client", "architecture",
                "dataset", "image", "feature", "classes", "exits", "gate", "fallback", "engines", "parameters"},
               // What it learns with, and that it learnt, is not for this core.
               {"held_out", "precision", "tolerance", "checkpoint", "training", "personal"});
  Manifest manifest;
  manifest.files = read_files(root["files"]);
  manifest.image = read_image(root["image"]);
  manifest.feature = read_feature(root["feature"]);
  const Field classes = root["classes"];
  classes.require({"names", "own", "tokens"});
  manifest.names = read_names(classes["names"]);
  manifest.own = read_own(classes["own"], manifest.names.size());
  check_tokens(classes["tokens"], manifest.names.size());
  manifest.gate = root["gate"].truth();
  const Field exits = root["exits"];
  if (exits.items() != 2) exits.refuse("needs exit1, then exit2");
  manifest.exits[0] = read_exit(exits.item(0), "exit1", manifest.gate);
  manifest.exits[1] = read_exit(exits.item(1), "exit2", manifest.gate);
  manifest.held_out = read_held_out(root);
  root["fallback"].require({}, {"model", "codec"});
  manifest.codec = read_codec(root["fallback"]);
  check_precision(root);
  manifest.program = read_program(root["engines"], manifest.files);
  return manifest;
}

}  // namespace harmony
