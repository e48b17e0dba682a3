// A sealed folder on disk: every byte of it is checked before anything is parsed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ed25519.h"
#include "manifest.h"

namespace harmony {

struct Freed {
  void operator()(uint8_t* bytes) const;
};

// Memory aligned as an ExecuTorch program wants it. Throws std::bad_alloc.
struct Bytes {
  std::unique_ptr<uint8_t[], Freed> data;
  size_t size = 0;

  static Bytes make(size_t size);
};

struct Bundle {
  Manifest manifest;
  Bytes program;
};

// Hashes every file of a device bundle and returns its manifest with the ExecuTorch program, as it was hashed.
// With `trusted` keys, one of them must have signed it. ArtifactMissing, ArtifactCorrupt, ArtifactTooNew,
// ArtifactUntrusted; EngineUnavailable if it holds no ExecuTorch program.
Bundle open_bundle(const std::string& folder, const std::vector<PublicKey>& trusted);

// The same for a manifest and a program that are in memory already. `where` names the bundle in errors.
Bundle open_bundle(const std::string& manifest, const void* program, size_t size, const std::string& where);

}  // namespace harmony
