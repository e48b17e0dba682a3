#include "platform.h"

#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstdlib>
#include <cstring>

#include "failure.h"

namespace harmony {
namespace {

namespace et = executorch::runtime;

thread_local int depth = 0;
thread_local std::string log_line;
et::PalImpl before;  // what others registered, or the default

void emit(et_timestamp_t timestamp, et_pal_log_level_t level, const char* file, const char* function, size_t line,
          const char* message, size_t length) {
  if (depth == 0) {
    before.emit_log_message(timestamp, level, file, function, line, message, length);
  } else if (level == kError || level == kFatal) {
    log_line.assign(message, length);
  }
}

void stop() {
  if (depth == 0) {
    before.abort();
    std::abort();
  }
  throw Failure{HARMONY_ENGINE_ERROR, "ExecuTorch gave up: " + last_log()};
}

// Only from ExecuTorch's own default. Where another part of the process has put its own in place, as ExecuTorch's
// Python bindings do, that stays: there can be one, and the second would be complained about on the terminal.
bool take_over() {
  et::runtime_init();
  before = *et::get_pal_impl();
  const char* const source = before.source_filename;
  if (source == nullptr || std::strstr(source, "runtime/platform/") == nullptr) return false;
  return et::register_pal(
      et::PalImpl::create(nullptr, stop, nullptr, nullptr, emit, nullptr, nullptr, "harmony/device/native"));
}

}  // namespace

Guarded::Guarded() {
  static const bool taken = take_over();
  (void)taken;
  if (depth++ == 0) log_line.clear();
}

Guarded::~Guarded() { --depth; }

std::string last_log() { return log_line.empty() ? "it does not say why" : log_line; }

}  // namespace harmony
