/* The kernels of ai.lm2::GatedMemoryUpdate, version 1, on plain arrays. float16 travels as its bits. */

#ifndef LM2_GATED_MEMORY_UPDATE_H
#define LM2_GATED_MEMORY_UPDATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define LM2_RESTRICT
#else
#define LM2_RESTRICT restrict
#endif

/* out[k] = sigmoid(i[k]) * tanh(z[k]) + sigmoid(f[k]) * old[k] for k < n. Any alignment of the type; n may be 0. */
void lm2_gated_memory_update_f32(const float *i, const float *f, const float *z, const float *old, float *LM2_RESTRICT out, size_t n);
void lm2_gated_memory_update_f16(const uint16_t *i, const uint16_t *f, const uint16_t *z, const uint16_t *old, uint16_t *LM2_RESTRICT out,
                                 size_t n);

/* The same on a CUDA device: pointers into device memory, `stream` a cudaStream_t. Queues the work and returns at once; the result is a
cudaError_t, 0 when the launch was accepted. */
int lm2_gated_memory_update_cuda_f32(const void *i, const void *f, const void *z, const void *old, void *out, size_t n, void *stream);
int lm2_gated_memory_update_cuda_f16(const void *i, const void *f, const void *z, const void *old, void *out, size_t n, void *stream);
const char *lm2_cuda_error(int code);

#ifdef __cplusplus
}
#endif

#endif
