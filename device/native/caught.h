// Where whatever was thrown becomes a status of the C API.
#pragma once

#include <exception>
#include <new>

#include "failure.h"

namespace harmony {

// Runs `work`; nothing that it throws gets out.
template <typename Work>
harmony_status caught(harmony_error* error, Work work) noexcept {
  try {
    try {
      if (error != nullptr) error->status = HARMONY_OK, error->message[0] = '\0';
      work();
      return HARMONY_OK;
    } catch (const Failure& failure) {
      write_error(error, failure.status, failure.message);
      return failure.status;
    } catch (const std::bad_alloc&) {
      write_error(error, HARMONY_ENGINE_ERROR, "there is not enough memory");
    } catch (const std::exception& other) {
      write_error(error, HARMONY_ENGINE_ERROR, other.what());
    } catch (...) {
      write_error(error, HARMONY_ENGINE_ERROR, "something unknown was thrown");
    }
  } catch (...) {  // no memory even for the message
    if (error != nullptr) error->status = HARMONY_ENGINE_ERROR, error->message[0] = '\0';
  }
  return HARMONY_ENGINE_ERROR;
}

template <typename Pointer>
void require(Pointer pointer, const char* name) {
  if (pointer == nullptr) fail(HARMONY_CONFIG_ERROR, name, "", "is NULL");
}

}  // namespace harmony
