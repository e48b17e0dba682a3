#include "program.h"

#include <dlfcn.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstring>
#include <optional>

#include "failure.h"
#include "image.h"
#include "platform.h"
#include "segments.h"

namespace harmony {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::threadpool::NoThreadPoolGuard;
using Shape = std::vector<int32_t>;

constexpr const char* kMethods[] = {"exit1", "exit2"};
constexpr int64_t kMostPlannedBytes = int64_t{1} << 31;
const std::string kExportAgain = "export the bundle again";

std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (const int32_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
  return text + ")";
}

size_t count_of(const Shape& shape) {
  size_t count = 1;
  for (const int32_t side : shape) count *= static_cast<size_t>(side);
  return count;
}

// The shape of a port of a method; ContractMismatch unless it is a float32 tensor of a fixed, contiguous shape.
Shape read_port(const et::Result<et::TensorInfo>& info, const std::string& where, const std::string& port) {
  if (!info.ok()) fail(HARMONY_CONTRACT_MISMATCH, where, port, "is no tensor", kExportAgain);
  bool fits = info->scalar_type() == ScalarType::Float && info->sizes().size() <= 8;
  for (size_t i = 0; i < info->dim_order().size(); ++i) {
    fits = fits && info->dim_order()[i] == i;  // any other order would be read as this one, silently
  }
  Shape shape(info->sizes().begin(), info->sizes().end());
  for (const int32_t side : shape) fits = fits && side > 0;
  if (!fits) fail(HARMONY_CONTRACT_MISMATCH, where, port, "is not a contiguous float32 tensor", kExportAgain);
  return shape;
}

void require_shape(const Shape& found, const Shape& wanted, const std::string& where, const std::string& port) {
  if (found == wanted) return;
  fail(HARMONY_CONTRACT_MISMATCH, where, port,
       "is " + shape_text(found) + ", the manifest needs " + shape_text(wanted), kExportAgain);
}

// The operators outside the delegate, where a program has some. A megabyte of memory, so only then.
bool load_kernels() {
  static const bool loaded = ::dlopen("libexecutorch_kernels_optimized.so", RTLD_NOW | RTLD_GLOBAL) != nullptr;
  return loaded;
}

// One method, with the memory that it lives in.
class Segment {
 public:
  Segment(const et::Program& program, const char* name, const std::string& where, size_t outputs)
      : name_(name), where_(where) {
    const et::Result<et::MethodMeta> meta = program.method_meta(name);
    if (!meta.ok()) refuse("", "has no such method");
    if (meta->num_inputs() != 1 || meta->num_outputs() != outputs) {
      refuse("", "takes " + std::to_string(meta->num_inputs()) + " and gives " + std::to_string(meta->num_outputs()) +
                     " tensors, the manifest needs 1 and " + std::to_string(outputs));
    }
    input_ = read_port(meta->input_tensor_meta(0), where, name_ + ".input");
    for (size_t i = 0; i < outputs; ++i) {
      outputs_.push_back(read_port(meta->output_tensor_meta(i), where, name_ + ".output " + std::to_string(i)));
    }
    plan(*meta);
  }

  // Apart from the constructor, since all ports are checked before the delegate packs its weights.
  void load(const et::Program& program) {
    manager_.emplace(&allocator_, &*planned_, &scratch_);
    et::Error error = try_load(program);
    if (error == et::Error::OperatorMissing && load_kernels()) error = try_load(program);
    if (error == et::Error::Ok) return;
    fail(HARMONY_ARTIFACT_CORRUPT, where_, name_, "cannot be loaded by ExecuTorch: " + last_log(), kExportAgain);
  }

  Outputs run(const float* input) {
    set_input(input);
    const Clock::time_point begin = Clock::now();
    const et::Error error = method_->execute();
    const Clock::time_point end = Clock::now();
    if (error != et::Error::Ok) fail(HARMONY_ENGINE_ERROR, where_, name_, "ExecuTorch failed: " + last_log());
    const float* found[3] = {};
    for (size_t i = 0; i < outputs_.size(); ++i) found[i] = output(i);
    return {found[0], found[1], found[2], begin, end};
  }

  const Shape& input() const { return input_; }
  const Shape& output_shape(size_t index) const { return outputs_[index]; }
  void require(size_t index, const Shape& wanted) const {
    require_shape(outputs_[index], wanted, where_, name_ + ".output " + std::to_string(index));
  }

 private:
  [[noreturn]] void refuse(const std::string& port, const std::string& problem) const {
    fail(HARMONY_CONTRACT_MISMATCH, where_, name_ + port, problem, kExportAgain);
  }

  void plan(const et::MethodMeta& meta) {
    for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
      const et::Result<int64_t> size = meta.memory_planned_buffer_size(i);
      if (!size.ok() || *size < 0 || *size > kMostPlannedBytes) refuse("", "plans an impossible amount of memory");
      buffers_.push_back(Bytes::make(static_cast<size_t>(*size)));
      spans_.emplace_back(buffers_.back().data.get(), buffers_.back().size);
    }
    planned_.emplace(et::Span<et::Span<uint8_t>>(spans_.data(), spans_.size()));
  }

  et::Error try_load(const et::Program& program) {
    et::Result<et::Method> method = program.load_method(name_.c_str(), &*manager_);
    if (method.ok()) method_.emplace(std::move(*method));
    return method.error();
  }

  void set_input(const float* values) {
    using executorch::aten::TensorImpl;
    TensorImpl tensor(ScalarType::Float, static_cast<ssize_t>(input_.size()), input_.data(),
                      const_cast<float*>(values));  // it is copied, or only read
    const et::Error error = method_->set_input(et::EValue(executorch::aten::Tensor(&tensor)), 0);
    if (error != et::Error::Ok) fail(HARMONY_ENGINE_ERROR, where_, name_, "takes no input: " + last_log());
  }

  const float* output(size_t index) const {
    const et::EValue& value = method_->get_output(index);
    const std::string port = name_ + ".output " + std::to_string(index);
    if (!value.isTensor()) fail(HARMONY_ENGINE_ERROR, where_, port, "is no tensor");
    const auto& tensor = value.toTensor();
    const float* const found = tensor.const_data_ptr<float>();
    const size_t count = count_of(outputs_[index]);
    if (found == nullptr || static_cast<size_t>(tensor.numel()) != count) {
      fail(HARMONY_ENGINE_ERROR, where_, port, "is not of the size that it was planned for");
    }
    if (!all_finite(found, count)) fail(HARMONY_ENGINE_ERROR, where_, port, "holds values that are not finite");
    return found;
  }

  std::string name_;
  std::string where_;
  Shape input_;
  std::vector<Shape> outputs_;
  std::vector<Bytes> buffers_;
  std::vector<et::Span<uint8_t>> spans_;
  std::optional<et::HierarchicalAllocator> planned_;
  MallocMemoryAllocator allocator_, scratch_;
  std::optional<et::MemoryManager> manager_;
  std::optional<et::Method> method_;
};

et::Program load(Segments& loader, const std::string& where) {
  const Bytes& bytes = loader.bytes();
  const bool marked = bytes.size >= et::Program::kMinHeadBytes && std::memcmp(bytes.data.get() + 4, "ET12", 4) == 0;
  if (!marked) fail(HARMONY_ARTIFACT_CORRUPT, where, "", "is not an ExecuTorch program");
  et::Result<et::Program> program = et::Program::load(&loader, et::Program::Verification::InternalConsistency);
  if (!program.ok()) {
    fail(HARMONY_ARTIFACT_CORRUPT, where, "", "cannot be loaded by ExecuTorch: " + last_log(), kExportAgain);
  }
  return std::move(*program);
}

}  // namespace

// In the order in which one needs the other; destroyed in reverse.
struct Program::Parts {
  Segments loader;
  et::Program program;
  Segment first, second;

  Parts(Bytes bytes, const std::string& where, size_t outputs)
      : loader(std::move(bytes)),
        program(load(loader, where)),
        first(program, kMethods[0], where, outputs),
        second(program, kMethods[1], where, outputs) {}
};

Program::Program(Bytes bytes, const Manifest& manifest, const std::string& where) {
  // Before the first program is loaded, and again around every call: XNNPACK then starts no threads at all.
  const NoThreadPoolGuard alone;
  const Guarded guarded;
  const auto side = [](size_t value) { return static_cast<int32_t>(value); };
  const Shape image{1, side(manifest.image.channels), side(manifest.image.height), side(manifest.image.width)};
  const Shape feature{1, side(manifest.feature.channels), side(manifest.feature.height), side(manifest.feature.width)};
  parts_ = std::make_unique<Parts>(std::move(bytes), where, manifest.gate ? 3 : 2);
  Segment &first = parts_->first, &second = parts_->second;
  require_shape(first.input(), image, where, "exit1.input");
  require_shape(second.input(), first.output_shape(0), where, "exit2.input");
  second.require(0, feature);
  for (const Segment* one : {&first, &second}) {
    one->require(1, {1, side(manifest.own.size())});
    if (manifest.gate) one->require(2, {1, side(manifest.names.size())});
  }
  first.load(parts_->program);
  second.load(parts_->program);
  parts_->loader.give_back();
}

Program::~Program() {
  const Guarded guarded;
  parts_.reset();
}

Outputs Program::run(int exit, const float* input) {
  const NoThreadPoolGuard alone;
  const Guarded guarded;
  return (exit == 0 ? parts_->first : parts_->second).run(input);
}

size_t Program::input_size(int exit) const { return count_of((exit == 0 ? parts_->first : parts_->second).input()); }

const std::vector<int32_t>& Program::hidden_shape() const { return parts_->second.input(); }

}  // namespace harmony
