// A zstd frame (RFC 8878) that declares its content's size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace harmony {

// Appends the frame to `out`: compressed by libzstd if the system has it, in stored blocks otherwise. Every decoder
// reads either.
void append_zstd(const uint8_t* content, size_t size, std::vector<uint8_t>& out);

// The frame in stored blocks, for systems without the library.
void append_stored(const uint8_t* content, size_t size, std::vector<uint8_t>& out);

}  // namespace harmony
