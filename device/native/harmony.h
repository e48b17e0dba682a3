/* HARMONY on a device, without Python: open a sealed bundle, answer images, hand out features for the cloud.
 *
 *     harmony_device* device = NULL;
 *     harmony_error error;
 *     if (harmony_open("bundles/client-000", NULL, 0, &device, &error) != HARMONY_OK) puts(error.message);
 *     harmony_decision decision;
 *     harmony_answer(device, pixels, sizeof pixels, &decision, &error);
 *     if (decision.would_offload) harmony_frame(device, &bytes, &size, &error);   // for the cloud
 *     harmony_close(device);
 *
 * Every function but harmony_close returns a status, and on failure fills `error` (which may be NULL) with one line
 * that names the file, the field and the mend. Nothing throws, aborts or prints. Calls for one device wait for each
 * other, and what they hand out lasts until the next; several devices are independent.
 */
#ifndef HARMONY_H
#define HARMONY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define HARMONY_API __attribute__((visibility("default")))
#else
#define HARMONY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with every change of this file that an already compiled caller would notice. */
#define HARMONY_ABI 2

/* The named errors of core/errors.py that a device can meet. */
typedef enum harmony_status {
  HARMONY_OK = 0,
  HARMONY_ARTIFACT_MISSING = 1,   /* no such folder, or a file of it is gone */
  HARMONY_ARTIFACT_CORRUPT = 2,   /* not what was sealed, or sealed nonsense */
  HARMONY_ARTIFACT_TOO_NEW = 3,   /* written by a later format version */
  HARMONY_CONTRACT_MISMATCH = 4,  /* program and manifest disagree about shapes */
  HARMONY_ENGINE_UNAVAILABLE = 5, /* no files for ExecuTorch, or a library is missing */
  HARMONY_ENGINE_ERROR = 6,       /* the program failed, or memory ran out */
  HARMONY_INVALID_INPUT = 7,      /* an image of another size, or values that are not finite */
  HARMONY_CONFIG_ERROR = 8,       /* a wrong argument */
  HARMONY_DATA_MISSING = 9,       /* harmony-run: no such file of images */
  HARMONY_DATA_FOREIGN = 10,      /* harmony-run: images in another format */
  HARMONY_STORAGE_ERROR = 11,     /* harmony-run: a file cannot be written */
  HARMONY_ARTIFACT_UNTRUSTED = 12 /* no trusted key signed it */
} harmony_status;

typedef struct harmony_error {
  harmony_status status;
  char message[512]; /* one line of UTF-8 */
} harmony_error;

typedef struct harmony_device harmony_device;

/* What a bundle expects and gives. */
typedef struct harmony_info {
  int32_t image_height, image_width, image_channels;
  int32_t image_is_float; /* 0: uint8, 1: float32 */
  size_t image_bytes;     /* of one image (height, width, channels) */
  int32_t feature_channels, feature_height, feature_width;
  int32_t hidden_rank;
  int32_t hidden_shape[8];
  int32_t own_classes, classes;
  int32_t gate; /* 1: exits have gate heads */
} harmony_info;

/* What the device says of one image. Times are of the monotonic clock. */
typedef struct harmony_decision {
  int32_t exit;          /* 1 or 2: the exit that the answer comes from */
  int32_t would_offload; /* 1: no exit was sure enough, the cloud should be asked */
  int32_t label;         /* index of the class name */
  int32_t scores;        /* how many exits were passed */
  float score[2];
  double probability;    /* softmax of the label over the own classes */
  double threshold;      /* that the last of the scores was held against */
  int64_t prepare_ns;    /* scaling the image and handing it to ExecuTorch */
  int64_t engine_ns[2];  /* inside ExecuTorch, by exit; 0 if not reached */
  int64_t total_ns;
} harmony_decision;

/* Outputs of one segment: the device's own buffers, valid until the same segment runs again. */
typedef struct harmony_outputs {
  const float* carried; /* hidden, or the feature */
  const float* logits;  /* one for each own class */
  const float* gate;    /* one for each class, or NULL */
} harmony_outputs;

HARMONY_API uint32_t harmony_abi(void);

/* The name of a status in core/errors.py, for example "ArtifactCorrupt". */
HARMONY_API const char* harmony_status_name(harmony_status status);

/* The 32 bytes of an Ed25519 public key. */
typedef struct harmony_key {
  uint8_t bytes[32];
} harmony_key;

/* The keys in the text of a NAME.pub, or of several one after the other. `count` is what `keys` has room for, then what
 * there are; ConfigError if that is more, or if the text holds something else. */
HARMONY_API harmony_status harmony_read_keys(const char* text, size_t text_bytes, const char* where, harmony_key* keys,
                                             size_t* count, harmony_error* error);

/* Open a bundle's folder. Every file is hashed before anything parses it. With keys, one of them must have signed the
 * bundle; without (NULL, 0), whoever could write it is trusted. */
HARMONY_API harmony_status harmony_open(const char* bundle, const harmony_key* trusted, size_t keys,
                                        harmony_device** device, harmony_error* error);

/* Open a bundle whose manifest and program are in memory, for example an app's assets. The manifest is trusted, so its
 * seal or signature was checked by the caller; the program is hashed here. Both may be freed afterwards. `where` names
 * the bundle in errors. */
HARMONY_API harmony_status harmony_open_memory(const char* manifest, size_t manifest_bytes, const void* program,
                                               size_t program_bytes, const char* where, harmony_device** device,
                                               harmony_error* error);

/* NULL is allowed. */
HARMONY_API void harmony_close(harmony_device* device);

HARMONY_API harmony_status harmony_describe(const harmony_device* device, harmony_info* info, harmony_error* error);

/* The name of a class, valid as long as the device; NULL for a label that it does not have. */
HARMONY_API const char* harmony_class_name(const harmony_device* device, int32_t label);

/* The whole early-exit loop for one image (height, width, channels), unscaled, of info.image_bytes bytes. */
HARMONY_API harmony_status harmony_answer(harmony_device* device, const void* image, size_t image_bytes,
                                          harmony_decision* decision, harmony_error* error);

/* From now on exit 2 has the fixed threshold of the manifest. Without this call it follows the stream of images, if the
 * manifest has held-out scores: until something foreign comes, nothing is sent (docs/bundle.md). */
HARMONY_API harmony_status harmony_fix_threshold(harmony_device* device, harmony_error* error);

/* The feature of the last answer that reached exit 2: (channels, height, width). The device's own buffer, valid until
 * the next answer. ConfigError if it did not get so far. */
HARMONY_API harmony_status harmony_feature(const harmony_device* device, const float** feature, harmony_error* error);

/* The same as one frame of core/wire.py, in the manifest's codec. Valid until the next call. */
HARMONY_API harmony_status harmony_frame(harmony_device* device, const uint8_t** frame, size_t* frame_bytes,
                                         harmony_error* error);

/* The segments by themselves, for checks: a scaled image (channels, height, width), and hidden as exit 1 gave it. */
HARMONY_API harmony_status harmony_exit1(harmony_device* device, const float* image, size_t count,
                                         harmony_outputs* outputs, harmony_error* error);
HARMONY_API harmony_status harmony_exit2(harmony_device* device, const float* hidden, size_t count,
                                         harmony_outputs* outputs, harmony_error* error);

#ifdef __cplusplus
}
#endif

#endif
