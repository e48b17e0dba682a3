#include "sha256_hardware.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

namespace harmony {

#if defined(__x86_64__)
namespace {

__m128i load(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

// The instructions want the state as (a, b, e, f) and (c, d, g, h), from the highest lane to the lowest.
__attribute__((target("sha,sse4.1"))) void blocks_x86(Sha256State& state, const uint8_t* data, size_t blocks,
                                                      const uint32_t* round) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i badc = _mm_shuffle_epi32(load(&state[0]), 0xb1), hgfe = _mm_shuffle_epi32(load(&state[4]), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
  for (; blocks > 0; --blocks, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i words[16];
    for (int i = 0; i < 16; ++i) {
      if (i < 4) {
        words[i] = _mm_shuffle_epi8(load(data + 16 * i), swap);
      } else {
        const __m128i early = _mm_sha256msg1_epu32(words[i - 4], words[i - 3]);
        const __m128i middle = _mm_alignr_epi8(words[i - 1], words[i - 2], 4);
        words[i] = _mm_sha256msg2_epu32(_mm_add_epi32(early, middle), words[i - 1]);
      }
      const __m128i keyed = _mm_add_epi32(words[i], load(round + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[0]), _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[4]), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

Sha256Blocks sha256_hardware() {
  // Leaf 7: bit 29 of EBX says whether there are SHA instructions; compilers older than 2024 know no name for it.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (ebx >> 29 & 1) != 0 && __builtin_cpu_supports("sse4.1") ? blocks_x86 : nullptr;
}

#elif defined(__aarch64__) && defined(__linux__)
namespace {

__attribute__((target("+crypto"))) void blocks_arm(Sha256State& state, const uint8_t* data, size_t blocks,
                                                   const uint32_t* round) {
  uint32x4_t abcd = vld1q_u32(&state[0]), efgh = vld1q_u32(&state[4]);
  for (; blocks > 0; --blocks, data += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t words[16];
    for (int i = 0; i < 16; ++i) {
      words[i] = i < 4 ? vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)))
                       : vsha256su1q_u32(vsha256su0q_u32(words[i - 4], words[i - 3]), words[i - 2], words[i - 1]);
      const uint32x4_t keyed = vaddq_u32(words[i], vld1q_u32(round + 4 * i)), before = abcd;
      abcd = vsha256hq_u32(abcd, efgh, keyed);
      efgh = vsha256h2q_u32(efgh, before, keyed);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(&state[0], abcd);
  vst1q_u32(&state[4], efgh);
}

}  // namespace

Sha256Blocks sha256_hardware() {
  constexpr unsigned long kSha2 = 1ul << 6;  // HWCAP_SHA2
  return (getauxval(AT_HWCAP) & kSha2) != 0 ? blocks_arm : nullptr;
}

#else

Sha256Blocks sha256_hardware() { return nullptr; }

#endif

}  // namespace harmony
