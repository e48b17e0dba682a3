#include "step.h"

#include <dlfcn.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "caught.h"
#include "folder.h"
#include "image.h"
#include "platform.h"
#include "segments.h"

namespace harmony {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::threadpool::NoThreadPoolGuard;

constexpr const char* kMethod = "forward";
constexpr int64_t kMostPlannedBytes = int64_t{1} << 31;
const std::string kExportAgain = "export the bundle again";

using Shape = std::vector<int32_t>;

Bytes copied(const void* program, size_t size) {
  Bytes bytes = Bytes::make(size);
  std::memcpy(bytes.data.get(), program, size);
  return bytes;
}

// The shape of a port; ContractMismatch unless it is a contiguous float32 tensor of so many numbers.
Shape read_port(const et::Result<et::TensorInfo>& info, size_t count, const std::string& where,
                const std::string& port) {
  if (!info.ok()) fail(HARMONY_CONTRACT_MISMATCH, where, port, "is no tensor", kExportAgain);
  bool fits = info->scalar_type() == ScalarType::Float && info->sizes().size() <= 8;
  for (size_t i = 0; i < info->dim_order().size(); ++i) fits = fits && info->dim_order()[i] == i;
  Shape shape(info->sizes().begin(), info->sizes().end());
  size_t found = 1;
  for (const int32_t side : shape) {
    fits = fits && side > 0 && found <= count;
    found *= static_cast<size_t>(side > 0 ? side : 0);
  }
  if (!fits || found != count) {
    fail(HARMONY_CONTRACT_MISMATCH, where, port, "is not " + std::to_string(count) + " numbers", kExportAgain);
  }
  return shape;
}

class Step {
 public:
  Step(Bytes bytes, const std::vector<size_t>& inputs, const std::vector<size_t>& outputs, const std::string& where)
      : where_(where), loader_(std::move(bytes)), program_(load_program()) {
    const et::Result<et::MethodMeta> meta = program_.method_meta(kMethod);
    if (!meta.ok()) refuse("has no method " + std::string(kMethod));
    if (meta->num_inputs() != inputs.size() || meta->num_outputs() != outputs.size()) {
      refuse("takes " + std::to_string(meta->num_inputs()) + " and gives " + std::to_string(meta->num_outputs()) +
             " tensors");
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs_.push_back(read_port(meta->input_tensor_meta(i), inputs[i], where_, "input " + std::to_string(i)));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      read_port(meta->output_tensor_meta(i), outputs[i], where_, "output " + std::to_string(i));
    }
    plan(*meta);
    load();
    input_counts_ = inputs, output_counts_ = outputs;
  }

  void run(const harmony_tensor* inputs, const harmony_tensor* outputs) {
    for (size_t i = 0; i < inputs_.size(); ++i) set_input(i, inputs[i]);
    if (method_->execute() != et::Error::Ok) fail(HARMONY_ENGINE_ERROR, where_, "", "ExecuTorch failed: " + last_log());
    for (size_t i = 0; i < output_counts_.size(); ++i) read_output(i, outputs[i]);
  }

 private:
  [[noreturn]] void refuse(const std::string& problem) const {
    fail(HARMONY_CONTRACT_MISMATCH, where_, "", problem, kExportAgain);
  }

  et::Program load_program() {
    const Bytes& bytes = loader_.bytes();
    const bool marked = bytes.size >= et::Program::kMinHeadBytes && std::memcmp(bytes.data.get() + 4, "ET12", 4) == 0;
    if (!marked) fail(HARMONY_ARTIFACT_CORRUPT, where_, "", "is not an ExecuTorch program");
    et::Result<et::Program> program = et::Program::load(&loader_, et::Program::Verification::InternalConsistency);
    if (program.ok()) return std::move(*program);
    fail(HARMONY_ARTIFACT_CORRUPT, where_, "", "cannot be loaded by ExecuTorch: " + last_log(), kExportAgain);
  }

  void plan(const et::MethodMeta& meta) {
    for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
      const et::Result<int64_t> size = meta.memory_planned_buffer_size(i);
      if (!size.ok() || *size < 0 || *size > kMostPlannedBytes) refuse("plans an impossible amount of memory");
      buffers_.push_back(Bytes::make(static_cast<size_t>(*size)));
      spans_.emplace_back(buffers_.back().data.get(), buffers_.back().size);
    }
    planned_.emplace(et::Span<et::Span<uint8_t>>(spans_.data(), spans_.size()));
  }

  void load() {
    // The gradients' operators are no part of what a device needs to answer; they come with this library.
    static const bool kernels = ::dlopen("libexecutorch_kernels_optimized.so", RTLD_NOW | RTLD_GLOBAL) != nullptr;
    if (!kernels) {
      fail(HARMONY_ENGINE_UNAVAILABLE, where_, "", "libexecutorch_kernels_optimized.so is not beside this library");
    }
    manager_.emplace(&allocator_, &*planned_, &scratch_);
    et::Result<et::Method> method = program_.load_method(kMethod, &*manager_);
    if (!method.ok()) {
      fail(HARMONY_ARTIFACT_CORRUPT, where_, "", "cannot be loaded by ExecuTorch: " + last_log(), kExportAgain);
    }
    method_.emplace(std::move(*method));
  }

  void set_input(size_t index, const harmony_tensor& given) {
    const std::string port = "input " + std::to_string(index);
    if (given.data == nullptr || given.count != input_counts_[index]) {
      fail(HARMONY_INVALID_INPUT, where_, port, "is not " + std::to_string(input_counts_[index]) + " numbers");
    }
    if (!all_finite(given.data, given.count)) fail(HARMONY_INVALID_INPUT, where_, port, "is not finite");
    Shape& shape = inputs_[index];
    TensorImpl tensor(ScalarType::Float, static_cast<ssize_t>(shape.size()), shape.data(), given.data);
    if (method_->set_input(et::EValue(Tensor(&tensor)), index) != et::Error::Ok) {
      fail(HARMONY_ENGINE_ERROR, where_, port, "is not taken: " + last_log());
    }
  }

  void read_output(size_t index, const harmony_tensor& wanted) const {
    const et::EValue& value = method_->get_output(index);
    const std::string port = "output " + std::to_string(index);
    if (wanted.data == nullptr || wanted.count != output_counts_[index]) {
      fail(HARMONY_CONFIG_ERROR, where_, port, "has no room for " + std::to_string(output_counts_[index]) + " numbers");
    }
    const float* const found = value.isTensor() ? value.toTensor().const_data_ptr<float>() : nullptr;
    if (found == nullptr || static_cast<size_t>(value.toTensor().numel()) != wanted.count) {
      fail(HARMONY_ENGINE_ERROR, where_, port, "is not of the size that it was planned for");
    }
    std::memcpy(wanted.data, found, wanted.count * sizeof(float));
  }

  std::string where_;
  Segments loader_;
  et::Program program_;
  std::vector<Shape> inputs_;
  std::vector<size_t> input_counts_, output_counts_;
  std::vector<Bytes> buffers_;
  std::vector<et::Span<uint8_t>> spans_;
  std::optional<et::HierarchicalAllocator> planned_;
  MallocMemoryAllocator allocator_, scratch_;
  std::optional<et::MemoryManager> manager_;
  std::optional<et::Method> method_;
};

}  // namespace
}  // namespace harmony

struct harmony_step {
  std::unique_ptr<harmony::Step> step;
  std::mutex mutex;
};

using harmony::NoThreadPoolGuard;

harmony_status harmony_step_open(const void* program, size_t program_bytes, const size_t* inputs, size_t input_count,
                                 const size_t* outputs, size_t output_count, const char* where, harmony_step** step,
                                 harmony_error* error) {
  return harmony::caught(error, [=] {
    harmony::require(program, "program");
    harmony::require(inputs, "inputs");
    harmony::require(outputs, "outputs");
    harmony::require(step, "step");
    *step = nullptr;
    const NoThreadPoolGuard alone;
    const harmony::Guarded guarded;
    auto made = std::make_unique<harmony_step>();
    made->step = std::make_unique<harmony::Step>(
        harmony::copied(program, program_bytes), std::vector<size_t>(inputs, inputs + input_count),
        std::vector<size_t>(outputs, outputs + output_count), where == nullptr ? "" : where);
    *step = made.release();
  });
}

harmony_status harmony_step_run(harmony_step* step, const harmony_tensor* inputs, const harmony_tensor* outputs,
                                harmony_error* error) {
  return harmony::caught(error, [=] {
    harmony::require(step, "step");
    harmony::require(inputs, "inputs");
    harmony::require(outputs, "outputs");
    const std::lock_guard<std::mutex> one_at_a_time(step->mutex);
    const NoThreadPoolGuard alone;
    const harmony::Guarded guarded;
    step->step->run(inputs, outputs);
  });
}

void harmony_step_close(harmony_step* step) {
  const harmony::Guarded guarded;
  delete step;
}
