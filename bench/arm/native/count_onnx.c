/* count-onnxruntime EXIT1.onnx EXIT2.onnx CHANNELS HEIGHT WIDTH GATE RUNS: what the engine of a bundle's ONNX files
 * costs, for the plugin to count. One thread and no arena, as harmony.device runs it; images are noise.
 *
 * The marks, in pairs: nothing; open both; exit 1 × RUNS; exit 2 × RUNS. Prints one line of JSON with two logits that
 * show that the answers depend on the images.
 *
 * The wheel has the library but no header. Its C API is a table of functions to which releases only append, so the few
 * that are used are taken by their place in it, as documented in onnxruntime_c_api.h. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "mark.h"

typedef struct OrtStatus OrtStatus;
typedef struct OrtThing OrtThing; /* env, options, session, memory info, value: never looked into */
typedef void (*OrtFunction)(void);
struct OrtApiBase {
  const OrtFunction* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
};
const struct OrtApiBase* OrtGetApiBase(void);

enum { /* places in the table of version 1 */
  GetErrorMessage = 2, CreateEnv = 3, CreateSession = 7, Run = 9, CreateSessionOptions = 10, DisableCpuMemArena = 19,
  SetIntraOpNumThreads = 24, SetInterOpNumThreads = 25, CreateTensorWithDataAsOrtValue = 49, GetTensorMutableData = 51,
  CreateCpuMemoryInfo = 69
};
enum { kWarning = 2, kError = 3, kFloat = 1, kDeviceAllocator = 0, kDefaultMemory = 0, kMostOutputs = 3 };

static const OrtFunction* api;

static int complain(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

static void require(OrtStatus* status) {
  if (status != NULL) complain(((const char* (*)(const OrtStatus*))api[GetErrorMessage])(status));
}

/* A segment: its session, names and tensors. */
struct segment {
  OrtThing* session;
  OrtThing* input;
  OrtThing* output[kMostOutputs];
  const char* input_name;
  const char* output_name[kMostOutputs];
  size_t outputs;
};

static void open_session(struct segment* segment, const OrtThing* env, const char* path) {
  OrtThing* options;
  require(((OrtStatus * (*)(OrtThing**)) api[CreateSessionOptions])(&options));
  require(((OrtStatus * (*)(OrtThing*)) api[DisableCpuMemArena])(options));
  require(((OrtStatus * (*)(OrtThing*, int)) api[SetIntraOpNumThreads])(options, 1));
  require(((OrtStatus * (*)(OrtThing*, int)) api[SetInterOpNumThreads])(options, 1));
  require(((OrtStatus * (*)(const OrtThing*, const char*, const OrtThing*, OrtThing**)) api[CreateSession])(
      env, path, options, &segment->session));
}

/* The first run lets the engine make the outputs, later ones write to the same. */
static void run(struct segment* segment) {
  const OrtThing* inputs[1] = {segment->input};
  require(((OrtStatus * (*)(OrtThing*, const OrtThing*, const char* const*, const OrtThing* const*, size_t,
                            const char* const*, size_t, OrtThing**)) api[Run])(
      segment->session, NULL, &segment->input_name, inputs, 1, segment->output_name, segment->outputs,
      segment->output));
}

static float* values_of(OrtThing* tensor) {
  void* values;
  require(((OrtStatus * (*)(OrtThing*, void**)) api[GetTensorMutableData])(tensor, &values));
  return values;
}

static OrtThing* tensor_of(float* values, const int64_t* shape, size_t rank) {
  OrtThing *memory, *tensor;
  size_t bytes = sizeof(float);
  for (size_t i = 0; i < rank; ++i) bytes *= (size_t)shape[i];
  require(((OrtStatus * (*)(int, int, OrtThing**)) api[CreateCpuMemoryInfo])(kDeviceAllocator, kDefaultMemory,
                                                                             &memory));
  require(((OrtStatus * (*)(const OrtThing*, void*, size_t, const int64_t*, size_t, int, OrtThing**))
               api[CreateTensorWithDataAsOrtValue])(memory, values, bytes, shape, rank, kFloat, &tensor));
  return tensor;
}

/* A linear congruential generator with Knuth's constants of MMIX. */
static void fill(float* values, size_t count, uint64_t state) {
  for (size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    values[i] = (float)(uint32_t)(state >> 40) / 8388608.0f - 1.0f;
  }
}

int main(int count, char** arguments) {
  if (count != 8) complain("count-onnxruntime EXIT1 EXIT2 CHANNELS HEIGHT WIDTH GATE RUNS");
  const int64_t shape[4] = {1, atoi(arguments[3]), atoi(arguments[4]), atoi(arguments[5])};
  const size_t pixels = (size_t)(shape[1] * shape[2] * shape[3]), outputs = atoi(arguments[6]) ? 3 : 2;
  const int runs = atoi(arguments[7]);
  struct segment first = {.input_name = "image", .output_name = {"hidden", "logits1", "gate1"}, .outputs = outputs};
  struct segment second = {.input_name = "hidden", .output_name = {"feature", "logits2", "gate2"}, .outputs = outputs};
  float* image = malloc(pixels * sizeof(float));
  float logit[2] = {0, 0};
  OrtThing* env;
  if (image == NULL) complain("memory ran out");
  api = OrtGetApiBase()->GetApi(1);
  require(((OrtStatus * (*)(int, const char*, OrtThing**)) api[CreateEnv])(kError, "count", &env));
  mark();
  mark();
  mark();
  open_session(&first, env, arguments[1]);
  open_session(&second, env, arguments[2]);
  mark();
  first.input = tensor_of(image, shape, 4);
  for (int i = 0; i < runs; ++i) {
    fill(image, pixels, (uint64_t)i);
    mark();
    run(&first);
    mark();
    logit[i % 2] = values_of(first.output[1])[0];
  }
  second.input = first.output[0];
  for (int i = 0; i < runs; ++i) {
    mark();
    run(&second);
    mark();
  }
  printf("{\"scores\": [%.9g, %.9g]}\n", (double)logit[0], (double)logit[1]);
  return 0;
}
