#include "ed25519.h"

#include <algorithm>
#include <optional>

#include "sha512.h"

namespace harmony {
namespace {

using Bytes32 = std::array<uint8_t, 32>;
__extension__ typedef unsigned __int128 Wide;

// An integer modulo 2^255 − 19 as five limbs of 51 bits, each a little more between operations.
struct Number {
  std::array<uint64_t, 5> limb;
};

constexpr uint64_t kLow = (uint64_t{1} << 51) - 1;

Number whole(uint64_t value) { return {{value & kLow, value >> 51, 0, 0, 0}}; }

// Limbs below 2^52 again. What overflows the top comes back times 19, since 2^255 = 19.
Number carried(Number a) {
  for (size_t i = 0; i < 4; ++i) a.limb[i + 1] += a.limb[i] >> 51, a.limb[i] &= kLow;
  a.limb[0] += 19 * (a.limb[4] >> 51);
  a.limb[4] &= kLow;
  return a;
}

Number operator+(const Number& a, const Number& b) {
  Number sum;
  for (size_t i = 0; i < 5; ++i) sum.limb[i] = a.limb[i] + b.limb[i];
  return carried(sum);
}

Number operator-(const Number& a, const Number& b) {
  // Four times the modulus is added first, so that no limb becomes negative.
  Number difference;
  for (size_t i = 0; i < 5; ++i) difference.limb[i] = a.limb[i] + 4 * (i == 0 ? kLow - 18 : kLow) - b.limb[i];
  return carried(difference);
}

Number operator*(const Number& a, const Number& b) {
  std::array<Wide, 5> sum{};
  for (size_t i = 0; i < 5; ++i) {
    for (size_t k = 0; k < 5; ++k) {
      const Wide part = static_cast<Wide>(a.limb[i]) * b.limb[k];
      sum[(i + k) % 5] += i + k < 5 ? part : 19 * part;
    }
  }
  Number product;
  Wide carry = 0;
  for (size_t i = 0; i < 5; ++i) {
    carry += sum[i];
    product.limb[i] = static_cast<uint64_t>(carry) & kLow;
    carry >>= 51;
  }
  const Wide first = product.limb[0] + 19 * carry;
  product.limb[0] = static_cast<uint64_t>(first) & kLow;
  product.limb[1] += static_cast<uint64_t>(first >> 51);
  return product;
}

Number power(const Number& base, const Bytes32& exponent) {
  Number out = whole(1);
  for (size_t bit = 256; bit-- > 0;) {
    out = out * out;
    if (exponent[bit / 8] >> bit % 8 & 1) out = out * base;
  }
  return out;
}

// The bytes of a number that is 0xff but for its first and last byte, as the exponents below are.
Bytes32 exponent(uint8_t first, uint8_t last) {
  Bytes32 bytes;
  bytes.fill(0xff);
  bytes[0] = first, bytes[31] = last;
  return bytes;
}

Number inverse(const Number& a) { return power(a, exponent(0xeb, 0x7f)); }  // 2^255 − 21, Fermat

Bytes32 to_bytes(Number a) {
  a = carried(carried(a));
  // Now below 2^255 + a little: subtract the modulus if adding 19 reaches 2^255.
  uint64_t over = (a.limb[0] + 19) >> 51;
  for (size_t i = 1; i < 5; ++i) over = (a.limb[i] + over) >> 51;
  a.limb[0] += 19 * over;
  for (size_t i = 0; i < 4; ++i) a.limb[i + 1] += a.limb[i] >> 51, a.limb[i] &= kLow;
  a.limb[4] &= kLow;
  Bytes32 out{};
  for (size_t bit = 0; bit < 255; ++bit) {
    out[bit / 8] = static_cast<uint8_t>(out[bit / 8] | (a.limb[bit / 51] >> bit % 51 & 1) << bit % 8);
  }
  return out;
}

Number from_bytes(const Bytes32& bytes) {
  Number out{};
  for (size_t bit = 0; bit < 255; ++bit) {
    out.limb[bit / 51] |= static_cast<uint64_t>(bytes[bit / 8] >> bit % 8 & 1) << bit % 51;
  }
  return out;
}

bool operator==(const Number& a, const Number& b) { return to_bytes(a) == to_bytes(b); }

// A point of the curve −x² + y² = 1 + d·x²·y² in extended coordinates (Hisil et al. 2008):
// x = X/Z, y = Y/Z, T = X·Y/Z.
struct Point {
  Number x, y, z, t;
};

const Number& curve_d() {
  static const Number d = (whole(0) - whole(121665)) * inverse(whole(121666));
  return d;
}

// Complete: also right for equal points and for the neutral one.
Point operator+(const Point& p, const Point& q) {
  const Number a = (p.y - p.x) * (q.y - q.x), b = (p.y + p.x) * (q.y + q.x);
  const Number c = p.t * q.t * (curve_d() + curve_d()), d = (p.z + p.z) * q.z;
  const Number e = b - a, f = d - c, g = d + c, h = b + a;
  return {e * f, g * h, f * g, e * h};
}

Point neutral() { return {whole(0), whole(1), whole(1), whole(0)}; }

Point negative(const Point& p) { return {whole(0) - p.x, p.y, p.z, whole(0) - p.t}; }

// RFC 8032, section 5.1.3.
std::optional<Point> decode(const Bytes32& bytes) {
  const Number y = from_bytes(bytes);
  Bytes32 canonical = to_bytes(y);
  const uint8_t sign = bytes[31] >> 7;
  canonical[31] = static_cast<uint8_t>(canonical[31] | sign << 7);
  if (canonical != bytes) return std::nullopt;
  const Number squared = y * y, u = squared - whole(1), v = curve_d() * squared + whole(1);
  // A square root of u/v: u·v³·(u·v⁷)^((p−5)/8), or that times the root of −1.
  const Number v3 = v * v * v;
  Number x = u * v3 * power(u * v3 * v3 * v, exponent(0xfd, 0x0f));
  if (!(v * x * x == u)) {
    static const Number root = power(whole(2), exponent(0xfb, 0x1f));  // 2^((p−1)/4)
    x = x * root;
    if (!(v * x * x == u)) return std::nullopt;
  }
  const Bytes32 found = to_bytes(x);
  if (found == Bytes32{} && sign == 1) return std::nullopt;
  if ((found[0] & 1) != sign) x = whole(0) - x;
  return Point{x, y, whole(1), x * y};
}

Bytes32 encode(const Point& p) {
  const Number scale = inverse(p.z);
  Bytes32 bytes = to_bytes(p.y * scale);
  bytes[31] = static_cast<uint8_t>(bytes[31] | (to_bytes(p.x * scale)[0] & 1) << 7);
  return bytes;
}

const Point& base_point() {
  static const Point base = *decode(to_bytes(whole(4) * inverse(whole(5))));
  return base;
}

// The order of the base point, 2^252 + 27742317777372353535851937790883648493, little-endian.
constexpr Bytes32 kOrder{0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7,
                         0xa2, 0xde, 0xf9, 0xde, 0x14, 0,    0,    0,    0,    0,    0,
                         0,    0,    0,    0,    0,    0,    0,    0,    0,    0x10};

bool below_order(const Bytes32& a) {
  return std::lexicographical_compare(a.rbegin(), a.rend(), kOrder.rbegin(), kOrder.rend());
}

// 64 bytes, little-endian, modulo the order: bit by bit, which is quick enough for one signature.
Bytes32 reduced(const std::array<uint8_t, 64>& wide) {
  Bytes32 rest{};
  for (size_t bit = 512; bit-- > 0;) {
    unsigned carry = wide[bit / 8] >> bit % 8 & 1;
    for (uint8_t& one : rest) {
      carry |= static_cast<unsigned>(one) << 1;
      one = static_cast<uint8_t>(carry);
      carry >>= 8;
    }
    if (below_order(rest)) continue;
    int borrow = 0;
    for (size_t i = 0; i < 32; ++i) {
      borrow += rest[i] - kOrder[i];
      rest[i] = static_cast<uint8_t>(borrow);
      borrow >>= 8;
    }
  }
  return rest;
}

// a·p + b·q, both at once.
Point combined(const Bytes32& a, const Point& p, const Bytes32& b, const Point& q) {
  const std::array<Point, 4> sums{neutral(), p, q, p + q};
  Point out = neutral();
  for (size_t bit = 256; bit-- > 0;) {
    out = out + out;
    const size_t which = static_cast<size_t>((a[bit / 8] >> bit % 8 & 1) | (b[bit / 8] >> bit % 8 & 1) << 1);
    if (which != 0) out = out + sums[which];
  }
  return out;
}

}  // namespace

bool verifies(const PublicKey& key, const Signature& signature, const std::string& message) {
  Bytes32 commitment, scalar;
  std::copy(signature.begin(), signature.begin() + 32, commitment.begin());
  std::copy(signature.begin() + 32, signature.end(), scalar.begin());
  const std::optional<Point> owner = decode(key);
  if (!owner || !below_order(scalar)) return false;
  std::string hashed(commitment.begin(), commitment.end());
  hashed.append(key.begin(), key.end());
  const Bytes32 challenge = reduced(sha512(hashed + message));
  return encode(combined(scalar, base_point(), challenge, negative(*owner))) == commitment;
}

}  // namespace harmony
