// Who made a bundle: manifest.sig and trusted keys, as core/signing.py and core/signing_keys.py define them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ed25519.h"

namespace harmony {

inline constexpr const char* kSignatures = "manifest.sig";
inline constexpr size_t kMaxSignatureBytes = 4096;

// Refuses `text`, the content of manifest.sig, unless it has the form of signatures for the manifest of this hash:
// ArtifactCorrupt. With `trusted` keys, one of them must have made one of the signatures: ArtifactUntrusted, also if
// there is no text. `where` is the bundle.
void check_signatures(const std::optional<std::string>& text, const std::string& manifest_hash,
                      const std::vector<PublicKey>& trusted, const std::string& where);

// The keys in the lines of a file; blank lines and those that begin with # count for nothing. ConfigError.
std::vector<PublicKey> read_keys(const std::string& text, const std::string& where);

}  // namespace harmony
