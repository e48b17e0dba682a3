// An ExecuTorch program with the methods exit1 and exit2. The only part of this core that knows ExecuTorch.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "folder.h"

namespace harmony {

using Clock = std::chrono::steady_clock;

// What a segment gave; the program's own buffers, valid until the same segment runs again.
struct Outputs {
  const float* carried;  // hidden, or the feature
  const float* logits;
  const float* gate;  // nullptr without a gate head
  Clock::time_point begin, end;  // of the time inside ExecuTorch
};

class Program {
 public:
  // ArtifactCorrupt if the bytes are no program or cannot be loaded; ContractMismatch unless its methods take and give
  // what the manifest says. Bytes that were not hashed may end the process. `where`: the file, for errors.
  Program(Bytes bytes, const Manifest& manifest, const std::string& where);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // exit: 0 or 1; input: exactly input_size(exit) values. EngineError, also if an output is not finite.
  Outputs run(int exit, const float* input);

  size_t input_size(int exit) const;
  const std::vector<int32_t>& hidden_shape() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace harmony
