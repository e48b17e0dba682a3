#include "failure.h"

#include <cstring>

namespace harmony {

void fail(harmony_status status, const std::string& where, const std::string& field, const std::string& problem,
          const std::string& mend) {
  std::string text;
  for (const std::string* part : {&where, &field}) {
    if (!part->empty()) text += *part + ": ";
  }
  text += problem;
  if (!mend.empty()) text += " (" + mend + ")";
  throw Failure{status, text};
}

const char* status_name(harmony_status status) {
  switch (status) {
    case HARMONY_OK: return "OK";
    case HARMONY_ARTIFACT_MISSING: return "ArtifactMissing";
    case HARMONY_ARTIFACT_CORRUPT: return "ArtifactCorrupt";
    case HARMONY_ARTIFACT_TOO_NEW: return "ArtifactTooNew";
    case HARMONY_CONTRACT_MISMATCH: return "ContractMismatch";
    case HARMONY_ENGINE_UNAVAILABLE: return "EngineUnavailable";
    case HARMONY_ENGINE_ERROR: return "EngineError";
    case HARMONY_INVALID_INPUT: return "InvalidInput";
    case HARMONY_CONFIG_ERROR: return "ConfigError";
    case HARMONY_DATA_MISSING: return "DataMissing";
    case HARMONY_DATA_FOREIGN: return "DataForeign";
    case HARMONY_STORAGE_ERROR: return "StorageError";
    case HARMONY_ARTIFACT_UNTRUSTED: return "ArtifactUntrusted";
  }
  return "EngineError";
}

void write_error(harmony_error* error, harmony_status status, const std::string& text) {
  if (error == nullptr) return;
  error->status = status;
  size_t end = 0;
  const auto byte = [&text](size_t at) { return static_cast<unsigned char>(text[at]); };
  for (; end < text.size() && end + 1 < sizeof error->message; ++end) {
    const bool control = byte(end) < 0x20 || byte(end) == 0x7f;
    // U+0080 to U+009F, which are C2 80 to C2 9F in UTF-8, steer terminals too.
    const bool high_control = end > 0 && byte(end - 1) == 0xc2 && byte(end) < 0xa0;
    error->message[end] = control ? ' ' : text[end];
    if (high_control) error->message[end - 1] = error->message[end] = '?';
  }
  if (end < text.size()) {
    while (end > 0 && (byte(end) & 0xc0) == 0x80) --end;  // not within a character
  }
  error->message[end] = '\0';
}

}  // namespace harmony
