// Checking Ed25519 signatures (RFC 8032). Only public values pass through here, so nothing runs in constant time.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace harmony {

using PublicKey = std::array<uint8_t, 32>;
using Signature = std::array<uint8_t, 64>;

// Whether the secret half of `key` made `signature` of `message`. False for a key or signature that is none.
bool verifies(const PublicKey& key, const Signature& signature, const std::string& message);

}  // namespace harmony
