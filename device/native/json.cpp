#include "json.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace harmony {
namespace {

bool is_digit(char one) { return one >= '0' && one <= '9'; }

double to_double(const std::string& digits) {
  double value = 0;
#if defined(__cpp_lib_to_chars)
  const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  (void)end;  // the grammar was checked already
  // Too large or too small for a double. No sealed manifest has either, and infinity is refused.
  if (problem == std::errc::result_out_of_range) return std::numeric_limits<double>::infinity();
#else
  value = std::strtod(digits.c_str(), nullptr);  // Android's, which knows no decimal comma
#endif
  return value;
}

class Parser {
 public:
  Parser(const char* text, size_t size) : text_(text), size_(size) {}

  Json document() {
    Json value = parse(0);
    space();
    if (at_ != size_) refuse("has something after its end");
    return value;
  }

 private:
  [[noreturn]] void refuse(const char* problem) const { throw JsonError{problem, at_}; }

  // The next character; 0 at the end, which no JSON holds either.
  char peek() const { return at_ < size_ ? text_[at_] : '\0'; }

  void space() {
    while (at_ < size_ && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
  }

  void expect(char wanted, const char* problem) {
    space();
    if (peek() != wanted) refuse(problem);
    ++at_;
  }

  bool accept(char wanted) {
    space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  Json parse(int depth) {
    if (depth > kMaxJsonDepth) refuse("is nested too deep");
    if (++values_ > kMaxJsonValues) refuse("has too many values");
    space();
    switch (peek()) {
      case '{': return object(depth);
      case '[': return list(depth);
      case '"': return string();
      case 't': return word("true", Json::Kind::kBool, true);
      case 'f': return word("false", Json::Kind::kBool, false);
      case 'n': return word("null", Json::Kind::kNull, false);
      default: return number();
    }
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::Kind::kObject;
    ++at_;
    if (accept('}')) return value;
    do {
      space();
      if (peek() != '"') refuse("lacks a field's name");
      std::string name = string().text;
      for (const auto& field : value.fields) {
        if (field.first == name) refuse("names a field twice");
      }
      if (value.fields.size() == kMaxJsonFields) refuse("has too many fields");
      expect(':', "lacks a colon");
      value.fields.emplace_back(std::move(name), parse(depth + 1));
    } while (accept(','));
    expect('}', "lacks a comma or a closing brace");
    return value;
  }

  Json list(int depth) {
    Json value;
    value.kind = Json::Kind::kList;
    ++at_;
    if (accept(']')) return value;
    do {
      value.items.push_back(parse(depth + 1));
    } while (accept(','));
    expect(']', "lacks a comma or a closing bracket");
    return value;
  }

  Json word(const char* wanted, Json::Kind kind, bool truth) {
    const size_t length = std::strlen(wanted);
    if (size_ - at_ < length || std::memcmp(text_ + at_, wanted, length) != 0) refuse("has a word that is not JSON");
    at_ += length;
    Json value;
    value.kind = kind;
    value.truth = truth;
    return value;
  }

  void digits() {
    if (!is_digit(peek())) refuse("has a number that is not JSON");
    while (is_digit(peek())) ++at_;
  }

  Json number() {
    const size_t begin = at_;
    Json value;
    value.kind = Json::Kind::kNumber;
    value.whole = true;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    if (peek() == '.') {
      ++at_, value.whole = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_, value.whole = false;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    value.number = to_double(std::string(text_ + begin, at_ - begin));
    if (!std::isfinite(value.number)) refuse("has a number beyond all bounds");
    return value;
  }

  Json string() {
    Json value;
    value.kind = Json::Kind::kString;
    ++at_;
    while (peek() != '"') {
      const auto one = static_cast<unsigned char>(peek());
      if (at_ == size_ || one < 0x20) refuse("has an unfinished string");
      if (one == '\\') {
        escape(value.text);
      } else {
        character(value.text);
      }
    }
    ++at_;
    return value;
  }

  void escape(std::string& out) {
    ++at_;
    const char name = peek();
    const char* const found = name == '\0' ? nullptr : std::strchr("\"\\/bfnrt", name);
    if (found != nullptr) {
      out += "\"\\/\b\f\n\r\t"[found - std::strchr("\"\\/bfnrt", '"')];
      ++at_;
    } else if (name == 'u') {
      ++at_;
      append(out, code_point());
    } else {
      refuse("has an unknown escape");
    }
  }

  uint32_t quad() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char one = peek();
      const uint32_t digit = is_digit(one)                 ? one - '0'
                             : (one >= 'a' && one <= 'f') ? one - 'a' + 10
                             : (one >= 'A' && one <= 'F') ? one - 'A' + 10
                                                          : 16;
      if (digit == 16) refuse("has an unknown escape");
      value = value * 16 + digit;
    }
    return value;
  }

  uint32_t code_point() {
    const uint32_t first = quad();
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first > 0xdbff || peek() != '\\') refuse("has half a character");
    ++at_;
    if (peek() != 'u') refuse("has half a character");
    ++at_;
    const uint32_t second = quad();
    if (second < 0xdc00 || second > 0xdfff) refuse("has half a character");
    return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
  }

  static void append(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned char kLead[] = {0, 0xc0, 0xe0, 0xf0};
    out += static_cast<char>(kLead[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
  }

  // One character of UTF-8 (RFC 3629): no overlong form, no surrogate, nothing above U+10FFFF.
  void character(std::string& out) {
    const auto lead = static_cast<unsigned char>(peek());
    const int more = lead < 0x80 ? 0 : lead < 0xc2 ? -1 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : -1;
    if (more < 0 || size_ - at_ <= static_cast<size_t>(more)) refuse("is not UTF-8");
    uint32_t code = more == 0 ? lead : lead & (0x3f >> more);
    for (int i = 1; i <= more; ++i) {
      const auto next = static_cast<unsigned char>(text_[at_ + i]);
      if ((next & 0xc0) != 0x80) refuse("is not UTF-8");
      code = code << 6 | (next & 0x3f);
    }
    static constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff) refuse("is not UTF-8");
    out.append(text_ + at_, more + 1);
    at_ += more + 1;
  }

  const char* text_;
  size_t size_;
  size_t at_ = 0;
  size_t values_ = 0;
};

}  // namespace

Json parse_json(const char* text, size_t size) {
  if (size > kMaxJsonBytes) throw JsonError{"is too large", kMaxJsonBytes};
  return Parser(text, size).document();
}

std::string json_quoted(const std::string& text) {
  std::string out = "\"";
  for (const char one : text) {
    const auto byte = static_cast<unsigned char>(one);
    if (one == '"' || one == '\\') {
      out += '\\', out += one;
    } else if (byte < 0x20) {
      out += "\\u00", out += "0123456789abcdef"[byte >> 4], out += "0123456789abcdef"[byte & 15];
    } else {
      out += one;
    }
  }
  return out + '"';
}

}  // namespace harmony
