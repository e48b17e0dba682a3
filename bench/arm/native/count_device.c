/* count-executorch MANIFEST PROGRAM RUNS: what a device's answers cost, for the plugin to count.
 *
 * Opens a bundle from its two files and asks for RUNS answers, each between two marks, then for the feature's frame if
 * the answer would go to the cloud, then runs the segments by themselves. The images are noise, the same everywhere.
 * The marks, in pairs: nothing; open; answer × RUNS; frame (where there is one); exit 1; exit 2.
 * Prints one line of JSON: whether there was a frame, and two scores that show that the answers depend on the images. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harmony.h"
#include "mark.h"

static int complain(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

static void* room(size_t bytes) {
  void* found = malloc(bytes ? bytes : 1);
  if (found == NULL) complain("memory ran out");
  return found;
}

static char* read_whole(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) complain(path);
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  char* content = room(*bytes);
  if (fread(content, 1, *bytes, file) != *bytes) complain(path);
  fclose(file);
  return content;
}

/* A linear congruential generator with Knuth's constants of MMIX. */
static uint32_t noise(uint64_t* state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(*state >> 40);
}

static float between(uint64_t* state) { return (float)noise(state) / 8388608.0f - 1.0f; }

static void fill(const harmony_info* info, void* image, uint64_t seed) {
  const size_t values = info->image_bytes / (info->image_is_float ? sizeof(float) : 1);
  for (size_t i = 0; i < values; ++i) {
    if (info->image_is_float) {
      ((float*)image)[i] = between(&seed);
    } else {
      ((uint8_t*)image)[i] = (uint8_t)noise(&seed);
    }
  }
}

static void run_segments(harmony_device* device, const harmony_info* info, harmony_error* error) {
  const size_t pixels = (size_t)info->image_channels * (size_t)info->image_height * (size_t)info->image_width;
  float* image = room(pixels * sizeof(float));
  harmony_outputs outputs;
  uint64_t seed = 7;
  size_t hidden = 1;
  for (size_t i = 0; i < pixels; ++i) image[i] = between(&seed);
  for (int32_t i = 0; i < info->hidden_rank; ++i) hidden *= (size_t)info->hidden_shape[i];
  float* carried = room(hidden * sizeof(float));
  mark();
  if (harmony_exit1(device, image, pixels, &outputs, error)) complain(error->message);
  mark();
  memcpy(carried, outputs.carried, hidden * sizeof(float));
  if (harmony_exit2(device, carried, hidden, &outputs, error)) complain(error->message); /* once for its set-up */
  mark();
  if (harmony_exit2(device, carried, hidden, &outputs, error)) complain(error->message);
  mark();
}

int main(int count, char** arguments) {
  if (count != 4) complain("count-executorch MANIFEST PROGRAM RUNS");
  size_t manifest_bytes, program_bytes;
  char* manifest = read_whole(arguments[1], &manifest_bytes);
  char* program = read_whole(arguments[2], &program_bytes);
  const int runs = atoi(arguments[3]);
  harmony_device* device = NULL;
  harmony_error error;
  harmony_info info;
  mark();
  mark();
  mark();
  if (harmony_open_memory(manifest, manifest_bytes, program, program_bytes, "bundle", &device, &error)) {
    complain(error.message);
  }
  mark();
  if (harmony_describe(device, &info, &error)) complain(error.message);
  void* image = room(info.image_bytes);
  harmony_decision decision;
  float score[2] = {0, 0};
  for (int i = 0; i < runs; ++i) {
    fill(&info, image, (uint64_t)i);
    mark();
    if (harmony_answer(device, image, info.image_bytes, &decision, &error)) complain(error.message);
    mark();
    score[i % 2] = decision.score[decision.scores - 1];
  }
  if (decision.would_offload) {
    const uint8_t* frame;
    size_t frame_bytes;
    if (harmony_frame(device, &frame, &frame_bytes, &error)) complain(error.message); /* once for its set-up */
    mark();
    if (harmony_frame(device, &frame, &frame_bytes, &error)) complain(error.message);
    mark();
  }
  run_segments(device, &info, &error);
  printf("{\"frame\": %s, \"exit\": %d, \"scores\": [%.9g, %.9g]}\n", decision.would_offload ? "true" : "false",
         decision.exit, (double)score[0], (double)score[1]);
  harmony_close(device);
  return 0;
}
