// harmony-run BUNDLE IMAGES: the device's early-exit loop as a program of its own, one line of JSON an image.

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "failure.h"
#include "harmony.h"
#include "images.h"
#include "json.h"

namespace {

using harmony::fail;
using harmony::Failure;
using Clock = std::chrono::steady_clock;

constexpr const char* kHelp =
    "harmony-run BUNDLE IMAGES [--trust PUB]… [--features DIR] [--limit N] [--fixed] [--time]\n"
    "\n"
    "Answers images with the ExecuTorch program of a device bundle, and prints one line of JSON for each.\n"
    "IMAGES: a .npy file (n, height, width, channels), or the same bytes without a header.\n"
    "\n"
    "  --trust PUB     a file of public keys, of which one must have signed the bundle; repeatable\n"
    "  --features DIR  write the feature of every image that no exit was sure of to DIR/NUMBER.hff,\n"
    "                  a frame as the cloud takes it\n"
    "  --limit N       only the first N images\n"
    "  --fixed         exit 2's threshold does not follow the stream\n"
    "  --time          a last line: median microseconds of every stage by the exit taken, and the peak memory\n"
    "\n"
    "Exit code 2 and one line on stderr for whatever is wrong.\n";

struct Options {
  std::string bundle, images, features;
  std::vector<std::string> trust;
  uint64_t limit = UINT64_MAX;
  bool time = false, fixed = false;
};

uint64_t read_number(const char* text) {
  char* end = nullptr;
  errno = 0;
  const uint64_t value = std::strtoull(text, &end, 10);
  const bool fits = text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
  if (!fits) fail(HARMONY_CONFIG_ERROR, "--limit", "", std::string("'") + text + "' is no number");
  return value;
}

Options read_options(int count, char** arguments) {
  Options options;
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string one = arguments[i];
    const bool valued = one == "--features" || one == "--limit" || one == "--trust";
    if (valued && i + 1 == count) fail(HARMONY_CONFIG_ERROR, one, "", "needs a value", "see --help");
    if (one == "--features") {
      options.features = arguments[++i];
    } else if (one == "--trust") {
      options.trust.emplace_back(arguments[++i]);
    } else if (one == "--limit") {
      options.limit = read_number(arguments[++i]);
    } else if (one == "--fixed") {
      options.fixed = true;
    } else if (one == "--time") {
      options.time = true;
    } else if (one.rfind("--", 0) == 0) {
      fail(HARMONY_CONFIG_ERROR, one, "", "is no option", "see --help");
    } else {
      places.push_back(one);
    }
  }
  if (places.size() != 2) fail(HARMONY_CONFIG_ERROR, "", "", "a bundle and a file of images are needed", "see --help");
  options.bundle = places[0], options.images = places[1];
  return options;
}

constexpr size_t kMaxKeys = 256;
constexpr size_t kMaxKeyBytes = 64u << 10;

void require(harmony_status status, const harmony_error& error) {
  if (status != HARMONY_OK) throw Failure{status, error.message};
}

// The keys in these files. A file without any is refused: an empty list would look like trust, and check nothing.
std::vector<harmony_key> read_trust(const std::vector<std::string>& paths) {
  std::vector<harmony_key> keys;
  for (const std::string& path : paths) {
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
    std::string text(kMaxKeyBytes + 1, '\0');
    if (file) text.resize(std::fread(text.data(), 1, text.size(), file.get()));
    if (!file || std::ferror(file.get()) != 0) {
      fail(HARMONY_CONFIG_ERROR, path, "", std::string("cannot be read: ") + std::strerror(errno), "check the path");
    }
    if (text.size() > kMaxKeyBytes) fail(HARMONY_CONFIG_ERROR, path, "", "is too large", "give a key file");
    std::vector<harmony_key> found(kMaxKeys);
    size_t count = found.size();
    harmony_error error;
    require(harmony_read_keys(text.data(), text.size(), path.c_str(), found.data(), &count, &error), error);
    if (count == 0) fail(HARMONY_CONFIG_ERROR, path, "", "names no trusted key", "give the NAME.pub of harmony keygen");
    keys.insert(keys.end(), found.begin(), found.begin() + static_cast<ptrdiff_t>(count));
  }
  return keys;
}

// An opened bundle; a failed call becomes a Failure.
class Device {
 public:
  Device(const std::string& bundle, const std::vector<harmony_key>& trusted) {
    require(harmony_open(bundle.c_str(), trusted.data(), trusted.size(), &device_, &error_));
    require(harmony_describe(device_, &info_, &error_));
  }
  ~Device() { harmony_close(device_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const harmony_info& info() const { return info_; }

  void fix_threshold() { require(harmony_fix_threshold(device_, &error_)); }

  harmony_decision answer(const std::vector<uint8_t>& image) {
    harmony_decision decision;
    require(harmony_answer(device_, image.data(), image.size(), &decision, &error_));
    return decision;
  }

  std::pair<const uint8_t*, size_t> frame() {
    std::pair<const uint8_t*, size_t> bytes;
    require(harmony_frame(device_, &bytes.first, &bytes.second, &error_));
    return bytes;
  }

  std::string class_name(int32_t label) const { return harmony_class_name(device_, label); }

 private:
  void require(harmony_status status) const { ::require(status, error_); }

  harmony_device* device_ = nullptr;
  harmony_info info_{};
  harmony_error error_{};
};

// Times of the images that left at one place, in nanoseconds.
struct Times {
  std::vector<int64_t> prepare, engine1, engine2, total, frame;

  void add(const harmony_decision& decision) {
    prepare.push_back(decision.prepare_ns);
    engine1.push_back(decision.engine_ns[0]);
    if (decision.scores > 1) engine2.push_back(decision.engine_ns[1]);
    total.push_back(decision.total_ns);
  }
};

void print_median(const char* name, std::vector<int64_t> values) {
  if (values.empty()) return;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  std::printf(", \"%s\": %.3f", name, static_cast<double>(*middle) / 1e3);
}

void print_times(const char* name, const Times& times, bool first) {
  std::printf("%s\"%s\": {\"images\": %zu", first ? "" : ", ", name, times.total.size());
  print_median("prepare", times.prepare);
  print_median("exit1", times.engine1);
  print_median("exit2", times.engine2);
  print_median("total", times.total);
  print_median("frame", times.frame);
  std::printf("}");
}

void print_decision(uint64_t number, const harmony_decision& decision, const std::string& name) {
  // %.9g and %.17g give back the same float and double when they are read.
  std::printf("{\"image\": %" PRIu64 ", \"exit\": \"exit%d\", \"label\": %d, \"class\": %s", number, decision.exit,
              decision.label, harmony::json_quoted(name).c_str());
  std::printf(", \"probability\": %.17g", decision.probability);
  std::printf(", \"scores\": [%.9g", static_cast<double>(decision.score[0]));
  if (decision.scores > 1) std::printf(", %.9g", static_cast<double>(decision.score[1]));
  std::printf("], \"threshold\": %.17g, \"would_offload\": %s}\n", decision.threshold,
              decision.would_offload ? "true" : "false");
}

// The most memory that this process ever held, in KiB; 0 where the kernel does not say.
unsigned long peak_kib() {
  const std::unique_ptr<FILE, int (*)(FILE*)> status(std::fopen("/proc/self/status", "re"), std::fclose);
  char line[256];
  unsigned long found = 0;
  while (status && std::fgets(line, sizeof line, status.get()) != nullptr) {
    if (std::sscanf(line, "VmHWM: %lu kB", &found) == 1) break;
  }
  return found;
}

void write_frame(const std::string& folder, uint64_t number, std::pair<const uint8_t*, size_t> bytes) {
  char name[32];
  std::snprintf(name, sizeof name, "/%06" PRIu64 ".hff", number);
  const std::string path = folder + name;
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "wbe"), std::fclose);
  const bool written = file && std::fwrite(bytes.first, 1, bytes.second, file.get()) == bytes.second &&
                       std::fflush(file.get()) == 0;
  if (!written) fail(HARMONY_STORAGE_ERROR, path, "", std::string("cannot be written: ") + std::strerror(errno));
}

void make_folder(const std::string& folder) {
  if (folder.empty() || ::mkdir(folder.c_str(), 0777) == 0 || errno == EEXIST) return;
  fail(HARMONY_STORAGE_ERROR, folder, "", std::string("cannot be made: ") + std::strerror(errno));
}

void run(const Options& options) {
  Device device(options.bundle, read_trust(options.trust));
  if (options.fixed) device.fix_threshold();
  harmony::Images images(options.images, device.info());
  make_folder(options.features);
  std::vector<uint8_t> image(device.info().image_bytes);
  Times times[3];  // left at exit 1, at exit 2, unsure at both
  const uint64_t count = std::min(images.count(), options.limit);
  for (uint64_t number = 0; number < count; ++number) {
    images.next(image.data());
    const harmony_decision decision = device.answer(image);
    print_decision(number, decision, device.class_name(decision.label));
    Times& mine = times[decision.would_offload ? 2 : decision.exit - 1];
    if (options.time) mine.add(decision);
    if (!decision.would_offload || (options.features.empty() && !options.time)) continue;
    const Clock::time_point begin = Clock::now();
    const auto frame = device.frame();
    if (options.time) mine.frame.push_back(std::chrono::nanoseconds(Clock::now() - begin).count());
    if (!options.features.empty()) write_frame(options.features, number, frame);
  }
  if (!options.time) return;
  std::printf("{\"microseconds\": {");
  print_times("exit1", times[0], true);
  print_times("exit2", times[1], false);
  print_times("unsure", times[2], false);
  std::printf("}, \"peak_kib\": %lu}\n", peak_kib());
}

int complain(harmony_status status, const std::string& text) {
  harmony_error line;
  harmony::write_error(&line, status, text);
  std::fprintf(stderr, "harmony-run: %s: %s\n", harmony_status_name(status), line.message);
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    for (int i = 1; i < count; ++i) {
      if (std::strcmp(arguments[i], "--help") == 0 || std::strcmp(arguments[i], "-h") == 0) {
        std::fputs(kHelp, stdout);
        return 0;
      }
    }
    run(read_options(count, arguments));
    if (std::fflush(stdout) != 0) fail(HARMONY_STORAGE_ERROR, "stdout", "", std::strerror(errno));
    return 0;
  } catch (const Failure& failure) {
    return complain(failure.status, failure.message);
  } catch (const std::exception& error) {
    return complain(HARMONY_ENGINE_ERROR, error.what());
  }
}
