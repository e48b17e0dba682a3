/* A training step of HARMONY in ExecuTorch, without Python: weights and a batch in, loss and next weights out.
 *
 * What the ports mean is written in docs/personalize.md. The caller keeps the weights; a step keeps nothing between two
 * calls. As in harmony.h, every function but harmony_step_close returns a status and fills `error` on failure.
 */
#ifndef HARMONY_STEP_H
#define HARMONY_STEP_H

#include "harmony.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct harmony_step harmony_step;

/* One tensor of a step, contiguous float32. */
typedef struct harmony_tensor {
  float* data;
  size_t count;
} harmony_tensor;

/* Load a program of one method, `forward`. Its bytes were hashed by the caller, and may be freed afterwards. It must
 * take and give exactly so many tensors of these counts of numbers: ContractMismatch otherwise. `where` names it in
 * errors. */
HARMONY_API harmony_status harmony_step_open(const void* program, size_t program_bytes, const size_t* inputs,
                                             size_t input_count, const size_t* outputs, size_t output_count,
                                             const char* where, harmony_step** step, harmony_error* error);

/* Run it once. `inputs` are read, `outputs` written; they must not overlap. InvalidInput if an input is not
 * finite; whether the outputs are is for the caller to judge. */
HARMONY_API harmony_status harmony_step_run(harmony_step* step, const harmony_tensor* inputs,
                                            const harmony_tensor* outputs, harmony_error* error);

/* NULL is allowed. */
HARMONY_API void harmony_step_close(harmony_step* step);

#ifdef __cplusplus
}
#endif
#endif
