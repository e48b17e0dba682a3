// The one way in which this core says that something is wrong, until the C API turns it into a status.
#pragma once

#include <string>

#include "harmony.h"

namespace harmony {

struct Failure {
  harmony_status status;
  std::string message;
};

// Throws a Failure: `where: field: problem (mend)`, as core/errors.py words it. Empty parts are left out.
[[noreturn]] void fail(harmony_status status, const std::string& where, const std::string& field,
                       const std::string& problem, const std::string& mend = "");

const char* status_name(harmony_status status);

// `text` as one line that a terminal may show, cut to what `error` holds. Names and files put anything into a message.
void write_error(harmony_error* error, harmony_status status, const std::string& text);

}  // namespace harmony
