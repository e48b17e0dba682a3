#include "signature.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "failure.h"
#include "sha256.h"

namespace harmony {
namespace {

constexpr const char* kStatement = "harmony-signature-v1 harmony-device-bundle 1 ";
constexpr const char* kLine = "ed25519 ";
constexpr const char* kKeyLine = "harmony-ed25519-public ";
constexpr size_t kMaxSignatures = 16;
constexpr size_t kIdDigits = 16;
constexpr size_t kLongestName = 64;

// Base 64 of exactly N bytes, in the one way that there is to write them (RFC 4648, section 3.5).
template <size_t N>
std::optional<std::array<uint8_t, N>> from_base64(const std::string& text) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  constexpr size_t kLength = (N + 2) / 3 * 4, kPadding = (3 - N % 3) % 3;
  if (text.size() != kLength) return std::nullopt;
  std::array<uint8_t, N> out{};
  uint32_t held = 0;
  int bits = 0;
  size_t done = 0;
  for (size_t i = 0; i < kLength; ++i) {
    if (i >= kLength - kPadding) {
      if (text[i] != '=') return std::nullopt;
      continue;
    }
    const auto* const digit = static_cast<const char*>(std::memchr(kDigits, text[i], 64));
    if (digit == nullptr) return std::nullopt;
    held = held << 6 | static_cast<uint32_t>(digit - kDigits);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    out[done++] = static_cast<uint8_t>(held >> bits);
  }
  const bool canonical = (held & ((1u << bits) - 1)) == 0;
  return canonical && done == N ? std::optional(out) : std::nullopt;
}

bool is_id(const std::string& text) {
  const auto hex = [](char one) { return (one >= '0' && one <= '9') || (one >= 'a' && one <= 'f'); };
  return text.size() == kIdDigits && std::all_of(text.begin(), text.end(), hex);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  lines.push_back(text.substr(begin));
  return lines;
}

[[noreturn]] void refuse(const std::string& where) {
  fail(HARMONY_ARTIFACT_CORRUPT, where, "", "is no list of signatures", "copy or sign the bundle again");
}

// Signatures by key id. There is one form only: ids ascending, a line end after each line.
std::map<std::string, Signature> parse(const std::string& text, const std::string& statement,
                                       const std::string& where) {
  const std::vector<std::string> lines = lines_of(text);
  if (lines.size() < 3 || lines.size() > kMaxSignatures + 2 || !lines.back().empty()) refuse(where);
  if (lines[0] + "\n" != statement) {
    fail(HARMONY_ARTIFACT_CORRUPT, where, "", "signs another manifest", "copy the folder again");
  }
  std::map<std::string, Signature> found;
  for (size_t i = 1; i + 1 < lines.size(); ++i) {
    const size_t head = std::strlen(kLine);
    const std::string id = lines[i].substr(0, head) == kLine ? lines[i].substr(head, kIdDigits) : "";
    const bool ordered = found.empty() || found.rbegin()->first < id;
    if (!is_id(id) || !ordered || lines[i].size() < head + kIdDigits + 1 || lines[i][head + kIdDigits] != ' ') {
      refuse(where);
    }
    const std::optional<Signature> value = from_base64<64>(lines[i].substr(head + kIdDigits + 1));
    if (!value) refuse(where);
    found.emplace(id, *value);
  }
  return found;
}

std::string id_of(const PublicKey& key) { return sha256_hex(key.data(), key.size()).substr(0, kIdDigits); }

bool is_name(const std::string& text) {
  const auto allowed = [](char one) {
    return (one >= '0' && one <= '9') || (one >= 'a' && one <= 'z') || (one >= 'A' && one <= 'Z') ||
           (one != '\0' && std::strchr("_.@-", one) != nullptr);
  };
  return !text.empty() && text.size() <= kLongestName && std::all_of(text.begin(), text.end(), allowed);
}

std::optional<PublicKey> parse_key(const std::string& line) {
  const size_t head = std::strlen(kKeyLine);
  const size_t space = line.find(' ', head);
  const bool known = line.compare(0, head, kKeyLine) == 0 && space != std::string::npos;
  const bool whole = known && is_name(line.substr(space + 1));
  return whole ? from_base64<32>(line.substr(head, space - head)) : std::nullopt;
}

}  // namespace

void check_signatures(const std::optional<std::string>& text, const std::string& manifest_hash,
                      const std::vector<PublicKey>& trusted, const std::string& where) {
  const std::string path = where + "/" + kSignatures, statement = kStatement + manifest_hash + "\n";
  const auto untrusted = [&](const std::string& place, const std::string& problem) {
    std::string known;
    for (const PublicKey& key : trusted) known += (known.empty() ? "" : ", ") + id_of(key);
    fail(HARMONY_ARTIFACT_UNTRUSTED, place, "", problem + "; trusted: " + known,
         "get the bundle from who may sign it");
  };
  std::map<std::string, Signature> found;
  if (text) found = parse(*text, statement, path);
  if (trusted.empty()) return;
  if (!text) untrusted(where, "is not signed");
  bool tried = false;
  for (const PublicKey& key : trusted) {
    const auto mine = found.find(id_of(key));
    if (mine == found.end()) continue;
    if (verifies(key, mine->second, statement)) return;
    tried = true;
  }
  untrusted(path, tried ? "the signature is wrong" : "is signed by others alone");
}

std::vector<PublicKey> read_keys(const std::string& text, const std::string& where) {
  std::vector<PublicKey> keys;
  for (std::string line : lines_of(text)) {
    const auto blank = [](char one) { return one == ' ' || one == '\t' || one == '\r'; };
    line.erase(line.begin(), std::find_if_not(line.begin(), line.end(), blank));
    line.erase(std::find_if_not(line.rbegin(), line.rend(), blank).base(), line.end());
    if (line.empty() || line[0] == '#') continue;
    const std::optional<PublicKey> key = parse_key(line);
    if (!key) {
      fail(HARMONY_CONFIG_ERROR, where, "", "holds no public key",
           "one 'harmony-ed25519-public BASE64 NAME' a line, as in NAME.pub");
    }
    keys.push_back(*key);
  }
  return keys;
}

}  // namespace harmony
