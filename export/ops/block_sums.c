/* ai.lm2::BlockSums on a CPU, arithmetic and operator in one: a row is a few hundred numbers, and what it saves is three operators' calls.

No mutable state; a kernel is nothing but the session's function table. Every sum is made in the same order wherever its block stands. */

#include "block_sums.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK = 32, LANES = 8, MAX_RANK = 32, PARALLEL_ROWS = 64 };

typedef struct {
    const float *x;
    float *out;
    size_t rows, width; /* width: d */
} Work;

static void append_sums(const float *x, float *out, size_t width) {
    memcpy(out, x, width * sizeof *x);
    for (size_t k = 0; k < width / BLOCK; k++) {
        const float *block = x + k * BLOCK;
        float lanes[LANES];
        for (size_t j = 0; j < LANES; j++) lanes[j] = (block[j] + block[j + 8]) + (block[j + 16] + block[j + 24]);
        out[width + k] = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
}

static void run_block(void *data, size_t index) {
    const Work *w = data;
    const size_t first = index * PARALLEL_ROWS, left = w->rows - first, made = w->width + w->width / BLOCK;
    for (size_t r = first; r < first + (left < PARALLEL_ROWS ? left : PARALLEL_ROWS); r++)
        append_sums(w->x + r * w->width, w->out + r * made, w->width);
}

static OrtStatus *refused(const OrtApi *api, size_t rank, int64_t width) {
    char message[160];
    snprintf(message, sizeof message, "BlockSums: input x has rank %zu and last axis %lld; it needs rank 1 to %d and a last axis of a multiple of %d",
             rank, (long long)width, (int)MAX_RANK, (int)BLOCK);
    return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *ORT_API_CALL compute(void *kernel, OrtKernelContext *context) {
    const OrtApi *api = kernel;
    const OrtValue *value = NULL;
    OrtValue *made = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    int64_t dims[MAX_RANK] = {0};
    size_t rank = 0;
    void *x = NULL, *out = NULL;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetInput)(context, 0, &value);
    if (status != NULL) return status;
    if (value == NULL) return refused(api, 0, 0);
    status = LM2_ORT(api, GetTensorTypeAndShape)(value, &info);
    if (status != NULL) return status;
    status = LM2_ORT(api, GetDimensionsCount)(info, &rank);
    if (status == NULL && rank >= 1 && rank <= MAX_RANK) status = LM2_ORT(api, GetDimensions)(info, dims, rank);
    LM2_ORT(api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status != NULL) return status;
    if (rank < 1 || rank > MAX_RANK) return refused(api, rank, 0);
    const int64_t width = dims[rank - 1];
    if (width % BLOCK) return refused(api, rank, width);
    Work work = {.rows = 1, .width = (size_t)width};
    for (size_t k = 0; k + 1 < rank; k++) work.rows *= (size_t)dims[k];
    dims[rank - 1] = width + width / BLOCK;
    status = LM2_ORT(api, GetTensorMutableData)((OrtValue *)value, &x); /* read only; slot 51 has no const form */
    if (status == NULL) status = LM2_ORT(api, KernelContext_GetOutput)(context, 0, dims, rank, &made);
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)(made, &out);
    if (status != NULL || work.rows == 0 || width == 0) return status;
    work.x = x;
    work.out = out;
    const size_t blocks = (work.rows - 1) / PARALLEL_ROWS + 1;
    if (blocks > 1) return LM2_ORT(api, KernelContext_ParallelFor)(context, run_block, blocks, 0, &work);
    run_block(&work, 0);
    return NULL;
}

static OrtStatus *ORT_API_CALL create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)op, (void)info;
    *kernel = (void *)api;
    return NULL;
}

static void ORT_API_CALL destroy(void *kernel) { (void)kernel; }
static const char *ORT_API_CALL name(const OrtCustomOp *op) { return (void)op, "BlockSums"; }
static const char *ORT_API_CALL provider(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static size_t ORT_API_CALL one(const OrtCustomOp *op) { return (void)op, (size_t)1; }
static int ORT_API_CALL op_version(const OrtCustomOp *op) { return (void)op, 1; }
static ONNXTensorElementDataType ORT_API_CALL type(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static OrtCustomOpInputOutputCharacteristic ORT_API_CALL required(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtCustomOpInputOutputCharacteristic)INPUT_OUTPUT_REQUIRED;
}
static OrtMemType ORT_API_CALL memory(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtMemType)OrtMemTypeDefault;
}

const OrtCustomOp LM2_BLOCK_SUMS = {
    .version = LM2_ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = type, .GetInputTypeCount = one,
    .GetOutputType = type, .GetOutputTypeCount = one, .KernelDestroy = destroy, .GetInputCharacteristic = required,
    .GetOutputCharacteristic = required, .GetInputMemoryType = memory, .CreateKernelV2 = create, .KernelComputeV2 = compute,
    .GetStartVersion = op_version, .GetEndVersion = op_version,
};
