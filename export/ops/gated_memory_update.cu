/* ai.lm2::GatedMemoryUpdate on a CUDA device: new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise, float32 and float16.

Knows device memory and a stream; no ONNX Runtime, no shapes. No state: launches may come from any number of threads. The arithmetic is
float32 for both types, with CUDA's own expf and tanhf (a few ulp), and rounded once for float16. NaN and infinities as in the CPU kernel.
*/

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "gated_memory_update.h"

namespace {

constexpr int THREADS = 256;
constexpr size_t MAX_BLOCKS = 65535;
constexpr int LOAD_BYTES = 16; /* what one thread loads at once, the widest load there is: 4 float32 or 8 float16 */

__host__ __device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__host__ __device__ inline float update(float i, float f, float z, float old) { return sigmoid(i) * tanhf(z) + sigmoid(f) * old; }

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(__half x) { return __half2float(x); }
__device__ inline void narrowed(float x, float *out) { *out = x; }
__device__ inline void narrowed(float x, __half *out) { *out = __float2half_rn(x); }

template <typename T>
struct alignas(LOAD_BYTES) Pack {
    static constexpr int SIZE = LOAD_BYTES / sizeof(T);
    T at[SIZE];
};

template <typename T>
__device__ inline T updated(T i, T f, T z, T old) {
    T out;
    narrowed(update(widened(i), widened(f), widened(z), widened(old)), &out);
    return out;
}

template <typename T>
__global__ void one_by_one(const T *i, const T *f, const T *z, const T *old, T *out, size_t n) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t k = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < n; k += stride)
        out[k] = updated(i[k], f[k], z[k], old[k]);
}

template <typename T>
__global__ void packed(const Pack<T> *i, const Pack<T> *f, const Pack<T> *z, const Pack<T> *old, Pack<T> *out, size_t packs) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t k = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < packs; k += stride) {
        const Pack<T> pi = i[k], pf = f[k], pz = z[k], pold = old[k];
        Pack<T> result;
#pragma unroll
        for (int e = 0; e < Pack<T>::SIZE; e++) result.at[e] = updated(pi.at[e], pf.at[e], pz.at[e], pold.at[e]);
        out[k] = result;
    }
}

unsigned blocks_for(size_t work) {
    const size_t blocks = (work + THREADS - 1) / THREADS;
    return static_cast<unsigned>(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}

bool aligned(const void *p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <typename T>
int launch(const void *i, const void *f, const void *z, const void *old, void *out, size_t n, void *stream) {
    if (n == 0) return 0;
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    constexpr size_t size = Pack<T>::SIZE;
    const bool whole = n % size == 0 && aligned(i, LOAD_BYTES) && aligned(f, LOAD_BYTES) && aligned(z, LOAD_BYTES) &&
                       aligned(old, LOAD_BYTES) && aligned(out, LOAD_BYTES);
    if (whole) {
        using P = Pack<T>;
        packed<T><<<blocks_for(n / size), THREADS, 0, queue>>>(static_cast<const P *>(i), static_cast<const P *>(f),
                                                               static_cast<const P *>(z), static_cast<const P *>(old),
                                                               static_cast<P *>(out), n / size);
    } else {
        one_by_one<T><<<blocks_for(n), THREADS, 0, queue>>>(static_cast<const T *>(i), static_cast<const T *>(f), static_cast<const T *>(z),
                                                            static_cast<const T *>(old), static_cast<T *>(out), n);
    }
    return static_cast<int>(cudaGetLastError());
}

}  // namespace

extern "C" int lm2_gated_memory_update_cuda_f32(const void *i, const void *f, const void *z, const void *old, void *out, size_t n,
                                                void *stream) {
    return launch<float>(i, f, z, old, out, n, stream);
}

extern "C" int lm2_gated_memory_update_cuda_f16(const void *i, const void *f, const void *z, const void *old, void *out, size_t n,
                                                void *stream) {
    return launch<__half>(i, f, z, old, out, n, stream);
}

extern "C" const char *lm2_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
