#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <set>

#include "failure.h"
#include "sha256.h"
#include "signature.h"

namespace harmony {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kChunk = 64u << 10;
constexpr uint64_t kMostProgramBytes = 2ull << 30;
const std::string kCopyAgain = "copy the folder again";

class Handle {
 public:
  explicit Handle(int number) : number_(number) {}
  ~Handle() {
    if (number_ >= 0) ::close(number_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  int get() const { return number_; }

 private:
  int number_;
};

[[noreturn]] void unreadable(const std::string& path) {
  fail(HARMONY_ARTIFACT_MISSING, path, "", std::string("cannot be read: ") + std::strerror(errno),
       "check the path and its permissions, or " + kCopyAgain);
}

// A plain file of the folder, opened so that neither a link leads out of it nor a pipe makes us wait.
class PlainFile {
 public:
  PlainFile(const Handle& folder, const std::string& name, std::string path)
      : path_(std::move(path)),
        handle_(::openat(folder.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) {
    if (handle_.get() < 0 && errno == ELOOP) refuse("is not a plain file");
    if (handle_.get() < 0) unreadable(path_);
    struct stat status;
    if (::fstat(handle_.get(), &status) != 0) unreadable(path_);
    if (!S_ISREG(status.st_mode)) refuse("is not a plain file");
    size_ = static_cast<uint64_t>(status.st_size);
  }

  [[noreturn]] void refuse(const std::string& problem, const std::string& mend = "") const {
    fail(HARMONY_ARTIFACT_CORRUPT, path_, "", problem, mend);
  }

  uint64_t size() const { return size_; }

  // How many bytes could be had, `size` or less.
  size_t read(void* out, size_t size) const {
    size_t done = 0;
    while (done < size) {
      const ssize_t got = ::read(handle_.get(), static_cast<uint8_t*>(out) + done, size - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) unreadable(path_);
      if (got == 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }

 private:
  std::string path_;
  Handle handle_;
  uint64_t size_ = 0;
};

std::string read_small(const Handle& folder, const std::string& name, const std::string& path, size_t limit) {
  const PlainFile file(folder, name, path);
  if (file.size() > limit) file.refuse("is larger than " + std::to_string(limit) + " bytes");
  std::string text(file.size(), '\0');
  text.resize(file.read(text.data(), text.size()));
  return text;
}

std::optional<std::string> read_signatures(const Handle& folder, const std::string& where) {
  if (::faccessat(folder.get(), kSignatures, F_OK, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  return read_small(folder, kSignatures, where + "/" + kSignatures, kMaxSignatureBytes);
}

void check_names(const Handle& folder, const std::string& where, const Manifest& manifest) {
  const int again = ::dup(folder.get());
  std::unique_ptr<DIR, int (*)(DIR*)> listing(again < 0 ? nullptr : ::fdopendir(again), ::closedir);
  if (!listing) {
    if (again >= 0) ::close(again);
    unreadable(where);
  }
  std::set<std::string> absent{kManifest, kSeal};
  for (const auto& [name, entry] : manifest.files) absent.insert(name);
  while (const dirent* const found = ::readdir(listing.get())) {
    const std::string name = found->d_name;
    if (name == "." || name == ".." || name == kSignatures) continue;
    if (absent.erase(name) == 0) {
      fail(HARMONY_ARTIFACT_CORRUPT, where + "/" + name, "", "the manifest does not name this file",
           "remove it, or " + kCopyAgain);
    }
  }
  if (!absent.empty()) {
    fail(HARMONY_ARTIFACT_MISSING, where + "/" + *absent.begin(), "",
         "the manifest names this file, but it is not there", kCopyAgain);
  }
}

void check_size(const PlainFile& file, const FileEntry& entry) {
  if (file.size() == entry.size) return;
  file.refuse("has " + std::to_string(file.size()) + " bytes, the manifest says " + std::to_string(entry.size),
              kCopyAgain);
}

void check_hash(const PlainFile& file, const FileEntry& entry, const std::string& found) {
  if (found != entry.sha256) file.refuse("was changed after it was sealed (SHA-256 differs)", kCopyAgain);
}

void check_file(const Handle& folder, const std::string& where, const std::string& name, const FileEntry& entry) {
  const PlainFile file(folder, name, where + "/" + name);
  check_size(file, entry);
  const auto chunk = std::make_unique<uint8_t[]>(kChunk);
  Sha256 hash;
  while (const size_t got = file.read(chunk.get(), kChunk)) hash.update(chunk.get(), got);
  check_hash(file, entry, hash.hex());
}

// The bytes that were hashed are those that are returned: a file that is changed meanwhile changes nothing.
Bytes read_file(const Handle& folder, const std::string& where, const std::string& name, const FileEntry& entry) {
  const PlainFile file(folder, name, where + "/" + name);
  check_size(file, entry);
  if (entry.size > kMostProgramBytes) file.refuse("is larger than any program may be");
  Bytes bytes = Bytes::make(entry.size);
  bytes.size = file.read(bytes.data.get(), bytes.size);
  check_hash(file, entry, sha256_hex(bytes.data.get(), bytes.size));
  return bytes;
}

void require_program(const Manifest& manifest, const std::string& where) {
  if (manifest.program.empty()) {
    fail(HARMONY_ENGINE_UNAVAILABLE, where, "", "has no files for ExecuTorch", "export it again with that format");
  }
}

}  // namespace

void Freed::operator()(uint8_t* bytes) const { std::free(bytes); }

Bytes Bytes::make(size_t size) {
  void* found = nullptr;
  if (::posix_memalign(&found, kAlignment, size > 0 ? size : 1) != 0) throw std::bad_alloc();
  Bytes bytes;
  bytes.data.reset(static_cast<uint8_t*>(found));
  bytes.size = size;
  return bytes;
}

Bundle open_bundle(const std::string& folder, const std::vector<PublicKey>& trusted) {
  const Handle handle(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (handle.get() < 0) unreadable(folder);
  const std::string path = folder + "/" + kManifest;
  const std::string text = read_small(handle, kManifest, path, kMaxJsonBytes);
  const std::string stated = read_small(handle, kSeal, folder + "/" + kSeal, 256);
  const std::string hash = sha256_hex(text.data(), text.size());
  if (stated != hash + "  " + kManifest + "\n") {
    fail(HARMONY_ARTIFACT_CORRUPT, path, "", "was changed after it was sealed", "copy or write the folder again");
  }
  check_signatures(read_signatures(handle, folder), hash, trusted, folder);
  Bundle bundle;
  bundle.manifest = parse_manifest(text, path);
  check_names(handle, folder, bundle.manifest);
  for (const auto& [name, entry] : bundle.manifest.files) {
    if (name == bundle.manifest.program) {
      bundle.program = read_file(handle, folder, name, entry);
    } else {
      check_file(handle, folder, name, entry);
    }
  }
  require_program(bundle.manifest, folder);
  return bundle;
}

Bundle open_bundle(const std::string& manifest, const void* program, size_t size, const std::string& where) {
  Bundle bundle;
  bundle.manifest = parse_manifest(manifest, where + "/" + kManifest);
  require_program(bundle.manifest, where);
  if (sha256_hex(program, size) != bundle.manifest.files.at(bundle.manifest.program).sha256) {
    fail(HARMONY_ARTIFACT_CORRUPT, where + "/" + bundle.manifest.program, "", "is not what the manifest seals",
         kCopyAgain);
  }
  bundle.program = Bytes::make(size);
  std::memcpy(bundle.program.data.get(), program, size);
  return bundle;
}

}  // namespace harmony
