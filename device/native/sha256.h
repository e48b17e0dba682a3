// SHA-256 (FIPS 180-4), so that the core needs no cryptographic library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "sha256_hardware.h"

namespace harmony {

class Sha256 {
 public:
  void update(const void* data, size_t size);
  // The digest in lower-case hex. Nothing may be added afterwards.
  std::string hex();

 private:
  Sha256State state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> rest_{};
  uint64_t length_ = 0;
};

std::string sha256_hex(const void* data, size_t size);

}  // namespace harmony
