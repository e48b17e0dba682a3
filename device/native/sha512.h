// SHA-512 (FIPS 180-4) of a short message, for Ed25519.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace harmony {

std::array<uint8_t, 64> sha512(const std::string& message);

}  // namespace harmony
