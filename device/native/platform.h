// ExecuTorch's way of ending the process, and its log, turned into something that a caller can be told.
#pragma once

#include <string>

namespace harmony {

// While one of these lives, a failed check of ExecuTorch's on this thread throws a Failure instead of aborting, and
// what it would print is kept. Other threads see what they always did.
class Guarded {
 public:
  Guarded();
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
};

// The last error that ExecuTorch logged on this thread since the outermost Guarded began.
std::string last_log();

}  // namespace harmony
