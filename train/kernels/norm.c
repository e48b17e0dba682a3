/* GroupNorm (Wu & He 2018) with groups of 8 channels, an optional sum and an optional ReLU, forward and backward.

   Images lie channels last: (n, h·w, c), c a multiple of 8, so a group of a pixel is one vector of 8 floats. One group of
   one image is read three times in a row, from the nearest cache. PyTorch reads and writes the whole batch anew for each
   of normalisation, sum and ReLU, and its kernels for this order of memory are slow in bfloat16.

   Arithmetic is in float whatever the images are in; sums over h·w pixels run in four vectors side by side, always in the
   same order, so the same input gives the same bits. */

#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <string.h>

enum { LANES = 8, CHAINS = 4 };

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline lanes load_float(const float *at) {
    lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void store_float(float *at, lanes value) { memcpy(at, &value, sizeof value); }

static inline lanes load_bfloat16(const uint16_t *at) {
    halves raw;
    memcpy(&raw, at, sizeof raw);
    words wide = __builtin_convertvector(raw, words) << 16;
    lanes value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest, ties to even. */
static inline void store_bfloat16(uint16_t *at, lanes value) {
    words bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0x7fff + ((bits >> 16) & 1);
    halves raw = __builtin_convertvector(bits >> 16, halves);
    memcpy(at, &raw, sizeof raw);
}

static inline float total(lanes value) {
    return ((value[0] + value[4]) + (value[2] + value[6])) + ((value[1] + value[5]) + (value[3] + value[7]));
}

/* The value in those lanes where `told` is above 0, else 0. */
static inline lanes where_above(lanes told, lanes value) {
    words bits, mask = (words)(told > 0);
    memcpy(&bits, &value, sizeof bits);
    bits &= mask;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* x, sum, y: (n, pixels, channels); weight, bias: (channels); mean, rate: (n, channels / 8), kept for the way back, where
   rate is 1 / deviation. sum may be NULL: y = [relu](normalised(x) + sum). */
#define FORWARD(NAME, TYPE, LOAD, STORE)                                                                               \
    void NAME(const TYPE *x, const TYPE *sum, TYPE *y, const float *weight, const float *bias, float *mean,            \
              float *rate, int64_t n, int64_t pixels, int64_t channels, float epsilon, int relu) {                     \
        const int64_t groups = channels / LANES;                                                                       \
        for (int64_t at = 0; at < n * groups; at++) {                                                                  \
            const int64_t group = at % groups, start = (at / groups) * pixels * channels + group * LANES;              \
            const TYPE *from = x + start;                                                                              \
            lanes sums[CHAINS] = {{0}}, squares[CHAINS] = {{0}};                                                       \
            for (int64_t p = 0; p < pixels; p++) sums[p % CHAINS] += LOAD(from + p * channels);                        \
            const float centre = total((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)(LANES * pixels);           \
            for (int64_t p = 0; p < pixels; p++) {                                                                     \
                const lanes off = LOAD(from + p * channels) - centre;                                                  \
                squares[p % CHAINS] += off * off;                                                                      \
            }                                                                                                          \
            const float spread =                                                                                       \
                total((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)(LANES * pixels);                \
            const float inverse = 1 / sqrtf(spread + epsilon);                                                         \
            mean[at] = centre;                                                                                         \
            rate[at] = inverse;                                                                                        \
            const lanes scale = load_float(weight + group * LANES) * inverse;                                          \
            const lanes shift = load_float(bias + group * LANES) - centre * scale;                                     \
            for (int64_t p = 0; p < pixels; p++) {                                                                     \
                lanes value = LOAD(from + p * channels) * scale + shift;                                               \
                if (sum) value += LOAD(sum + start + p * channels);                                                    \
                STORE(y + start + p * channels, relu ? where_above(value, value) : value);                                       \
            }                                                                                                          \
        }                                                                                                              \
    }

FORWARD(norm_forward_float, float, load_float, store_float)
FORWARD(norm_forward_bfloat16, uint16_t, load_bfloat16, store_bfloat16)

/* slope: of y; to_x, to_sum: of x and of the sum (NULL: not asked for); to_weight, to_bias: (channels), added to. With
   ReLU, y tells where it was at work. */
#define BACKWARD(NAME, TYPE, LOAD, STORE)                                                                              \
    void NAME(const TYPE *slope, const TYPE *x, const TYPE *y, const float *weight, const float *mean,                 \
              const float *rate, TYPE *to_x, TYPE *to_sum, float *to_weight, float *to_bias, int64_t n,                \
              int64_t pixels, int64_t channels, int relu) {                                                            \
        const int64_t groups = channels / LANES;                                                                       \
        for (int64_t at = 0; at < n * groups; at++) {                                                                  \
            const int64_t group = at % groups, start = (at / groups) * pixels * channels + group * LANES;              \
            const float centre = mean[at], inverse = rate[at];                                                         \
            lanes plain[CHAINS] = {{0}}, along[CHAINS] = {{0}};                                                        \
            for (int64_t p = 0; p < pixels; p++) {                                                                     \
                const int64_t here = start + p * channels;                                                             \
                lanes push = LOAD(slope + here);                                                                       \
                if (relu) push = where_above(LOAD(y + here), push);                                                    \
                plain[p % CHAINS] += push;                                                                             \
                along[p % CHAINS] += push * ((LOAD(x + here) - centre) * inverse);                                     \
                if (to_sum) STORE(to_sum + here, push);                                                                \
            }                                                                                                          \
            const lanes pushes = (plain[0] + plain[1]) + (plain[2] + plain[3]);                                        \
            const lanes turns = (along[0] + along[1]) + (along[2] + along[3]);                                         \
            store_float(to_bias + group * LANES, load_float(to_bias + group * LANES) + pushes);                        \
            store_float(to_weight + group * LANES, load_float(to_weight + group * LANES) + turns);                     \
            const lanes scale = load_float(weight + group * LANES);                                                    \
            const float level = total(scale * pushes) / (float)(LANES * pixels);                                       \
            const float tilt = total(scale * turns) / (float)(LANES * pixels);                                         \
            for (int64_t p = 0; p < pixels; p++) {                                                                     \
                const int64_t here = start + p * channels;                                                             \
                lanes push = LOAD(slope + here);                                                                       \
                if (relu) push = where_above(LOAD(y + here), push);                                                    \
                const lanes unit = (LOAD(x + here) - centre) * inverse;                                                \
                STORE(to_x + here, (scale * push - level - unit * tilt) * inverse);                                    \
            }                                                                                                          \
        }                                                                                                              \
    }

BACKWARD(norm_backward_float, float, load_float, store_float)
BACKWARD(norm_backward_bfloat16, uint16_t, load_bfloat16, store_bfloat16)
