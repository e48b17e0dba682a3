#include "images.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "failure.h"

namespace harmony {
namespace {

constexpr size_t kMostHeaderBytes = 1u << 16;
constexpr const char* kSaveAgain = "save it with numpy.save";
constexpr uint64_t kMostImages = uint64_t{1} << 32;

// Reads the header of a .npy file, a Python dictionary with three known keys
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
class Header {
 public:
  Header(const std::string& text, const std::string& path) : text_(text), path_(path) {}

  [[noreturn]] void refuse(const std::string& problem) const {
    fail(HARMONY_DATA_FOREIGN, path_, "", problem, kSaveAgain);
  }

  std::string type() const { return quoted(after("'descr':")); }

  bool fortran() const { return text_.compare(after("'fortran_order':"), 4, "True") == 0; }

  std::vector<uint64_t> shape() const {
    size_t at = after("'shape':");
    if (at >= text_.size() || text_[at++] != '(') refuse("has no shape");
    std::vector<uint64_t> sides;
    while (at < text_.size() && text_[at] != ')' && sides.size() < 8) {
      uint64_t side = 0;
      const size_t begin = at;
      for (; at < text_.size() && text_[at] >= '0' && text_[at] <= '9' && side < kMostImages; ++at) {
        side = side * 10 + static_cast<uint64_t>(text_[at] - '0');
      }
      if (at == begin || side >= kMostImages) refuse("has an impossible shape");
      sides.push_back(side);
      while (at < text_.size() && (text_[at] == ',' || text_[at] == ' ')) ++at;
    }
    if (at >= text_.size() || text_[at] != ')') refuse("has an impossible shape");
    return sides;
  }

 private:
  size_t after(const char* key) const {
    size_t at = text_.find(key);
    if (at == std::string::npos) refuse("has a header that is none of numpy's");
    at += std::strlen(key);
    while (at < text_.size() && text_[at] == ' ') ++at;
    return at;
  }

  std::string quoted(size_t at) const {
    const size_t end = at < text_.size() && text_[at] == '\'' ? text_.find('\'', at + 1) : std::string::npos;
    if (end == std::string::npos) refuse("has a header that is none of numpy's");
    return text_.substr(at + 1, end - at - 1);
  }

  const std::string& text_;
  const std::string& path_;
};

std::string read_header(FILE* file, const std::string& path) {
  const auto refuse = [&path](const char* problem) { fail(HARMONY_DATA_FOREIGN, path, "", problem, kSaveAgain); };
  unsigned char head[12];
  if (std::fread(head, 1, 10, file) != 10 || std::memcmp(head, "\x93NUMPY", 6) != 0) refuse("is no .npy file");
  size_t size = head[8] | size_t{head[9]} << 8;
  if (head[6] > 1) {  // since version 2 the length has four bytes
    if (std::fread(head + 10, 1, 2, file) != 2) refuse("ends in its header");
    size |= size_t{head[10]} << 16 | size_t{head[11]} << 24;
  }
  if (size > kMostHeaderBytes) refuse("has a header without end");
  std::string text(size, '\0');
  if (std::fread(text.data(), 1, size, file) != size) refuse("ends in its header");
  return text;
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string text;
  for (const uint64_t side : shape) text += (text.empty() ? "" : "x") + std::to_string(side);
  return text;
}

// How many images an array of this shape holds, if they are such as `info` says; 0 otherwise.
bool fits(std::vector<uint64_t> shape, const harmony_info& info, uint64_t& count) {
  const std::vector<uint64_t> image{static_cast<uint64_t>(info.image_height), static_cast<uint64_t>(info.image_width),
                                    static_cast<uint64_t>(info.image_channels)};
  if (info.image_channels == 1 && shape.size() >= 2 && shape.back() != 1) shape.push_back(1);
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  if (shape.size() != 4) return false;
  count = shape[0];
  return std::vector<uint64_t>(shape.begin() + 1, shape.end()) == image;
}

}  // namespace

Images::Images(const std::string& path, const harmony_info& info)
    : path_(path), file_(std::fopen(path.c_str(), "rbe"), std::fclose), image_bytes_(info.image_bytes) {
  if (!file_) {
    fail(HARMONY_DATA_MISSING, path, "", std::string("cannot be read: ") + std::strerror(errno), "check the path");
  }
  struct stat status;
  if (::fstat(::fileno(file_.get()), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail(HARMONY_DATA_FOREIGN, path, "", "is not a plain file");
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (path.size() > 4 && path.compare(path.size() - 4, 4, ".npy") == 0) {
    open_array(info);
    const auto begin = static_cast<uint64_t>(std::ftell(file_.get()));
    if (size - begin != count_ * image_bytes_) {
      fail(HARMONY_DATA_FOREIGN, path, "", "is shorter or longer than its header says", kSaveAgain);
    }
    return;
  }
  count_ = size / image_bytes_;
  if (count_ * image_bytes_ != size) {
    fail(HARMONY_DATA_FOREIGN, path, "", "has " + std::to_string(size) + " bytes, which are no whole images of " +
                                             std::to_string(image_bytes_) + " bytes");
  }
}

void Images::open_array(const harmony_info& info) {
  const std::string text = read_header(file_.get(), path_);
  const Header header(text, path_);
  if (header.fortran()) header.refuse("is in Fortran's order");
  const std::vector<uint64_t> shape = header.shape();
  if (header.type() != (info.image_is_float ? "<f4" : "|u1") || !fits(shape, info, count_)) {
    fail(HARMONY_INVALID_INPUT, path_, "",
         "holds " + shape_text(shape) + " " + header.type() + ", the model takes n images of " +
             std::to_string(info.image_height) + "x" + std::to_string(info.image_width) + "x" +
             std::to_string(info.image_channels) + (info.image_is_float ? " float32" : " uint8"));
  }
}

void Images::next(void* image) {
  if (std::fread(image, 1, image_bytes_, file_.get()) == image_bytes_) return;
  fail(HARMONY_DATA_FOREIGN, path_, "", "was cut short while it was read");
}

}  // namespace harmony
