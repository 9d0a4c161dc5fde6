/* The operator library: hands ai.lm2::GatedMemoryUpdate, BlockSums (block_sums.c) and ChunkAttention (chunk_attention.c), version 1, and QLinear
(qlinear.c), version 2, to an ONNX Runtime session.

Knows ONNX Runtime's C ABI (ort_abi.h) and the kernels' signatures, no arithmetic. One exported function, RegisterCustomOps. No mutable
state: the operators below are constants, a kernel is nothing but the session's function table (QLinear's and ChunkAttention's: and their choice of
instructions and attributes), so any number of sessions and threads may use it. Built with LM2_OPS_CUDA it also registers the kernels for CUDAExecutionProvider. */

#include <inttypes.h>
#include <stdio.h>

#include "block_sums.h"
#include "chunk_attention.h"
#include "gated_memory_update.h"
#include "ort_abi.h"
#include "qlinear.h"

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#elif defined(__GNUC__)
#define EXPORTED __attribute__((visibility("default")))
#else
#define EXPORTED
#endif

enum { INPUTS = 4, MAX_RANK = 32, PARALLEL_BLOCK = 8192 };

static const char *const INPUT_NAMES[INPUTS] = {"i", "f", "z", "old"};

typedef struct {
    ONNXTensorElementDataType type;
    size_t rank, elements;
    int64_t dims[MAX_RANK];
} Shape;

static OrtStatus *invalid(const OrtApi *api, const char *message) {
    return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_INVALID_ARGUMENT, message);
}

static const char *type_name(ONNXTensorElementDataType type, char *room, size_t size) {
    if (type == (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return "float32";
    if (type == (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return "float16";
    snprintf(room, size, "element type %d", (int)type);
    return room;
}

/* `(2,3)` into a buffer; cut short, never overrun, when it does not fit. */
static const char *shape_text(const Shape *shape, char *room, size_t size) {
    size_t used = (size_t)snprintf(room, size, "(");
    for (size_t k = 0; k < shape->rank && used < size; k++) {
        used += (size_t)snprintf(room + used, size - used, "%s%" PRId64, k ? "," : "", shape->dims[k]);
    }
    if (used < size) snprintf(room + used, size - used, ")");
    return room;
}

static OrtStatus *read_info(const OrtApi *api, const OrtTensorTypeAndShapeInfo *info, const char *name, Shape *out) {
    OrtStatus *status = LM2_ORT(api, GetTensorElementType)(info, &out->type);
    if (status == NULL) status = LM2_ORT(api, GetDimensionsCount)(info, &out->rank);
    if (status != NULL) return status;
    if (out->rank > MAX_RANK) {
        char message[128];
        snprintf(message, sizeof message, "GatedMemoryUpdate: input %s has rank %zu; at most %d is supported", name, out->rank,
                 (int)MAX_RANK);
        return invalid(api, message);
    }
    status = LM2_ORT(api, GetDimensions)(info, out->dims, out->rank);
    out->elements = 1;
    for (size_t k = 0; status == NULL && k < out->rank; k++) out->elements *= (size_t)out->dims[k];
    return status;
}

static OrtStatus *read_input(const OrtApi *api, const OrtKernelContext *context, size_t index, Shape *shape, const void **data) {
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    void *memory = NULL;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetInput)(context, index, &value);
    if (status != NULL) return status;
    if (value == NULL) {
        char message[96];
        snprintf(message, sizeof message, "GatedMemoryUpdate: input %s is missing; all four inputs are needed", INPUT_NAMES[index]);
        return invalid(api, message);
    }
    status = LM2_ORT(api, GetTensorTypeAndShape)(value, &info);
    if (status != NULL) return status;
    status = read_info(api, info, INPUT_NAMES[index], shape);
    LM2_ORT(api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)((OrtValue *)value, &memory); /* read only; slot 51 has no const form */
    *data = memory;
    return status;
}

static int same_shape(const Shape *a, const Shape *b) {
    if (a->rank != b->rank) return 0;
    for (size_t k = 0; k < a->rank; k++) {
        if (a->dims[k] != b->dims[k]) return 0;
    }
    return 1;
}

static OrtStatus *not_alike(const OrtApi *api, const Shape *first, const Shape *other, size_t index) {
    char a[160], b[160], ta[32], tb[32], message[512];
    snprintf(message, sizeof message,
             "GatedMemoryUpdate: input %s is %s %s and input %s is %s %s; the four inputs i, f, z, old need one shape and one type, "
             "float32 or float16",
             INPUT_NAMES[0], type_name(first->type, ta, sizeof ta), shape_text(first, a, sizeof a), INPUT_NAMES[index],
             type_name(other->type, tb, sizeof tb), shape_text(other, b, sizeof b));
    return invalid(api, message);
}

/* Reads and checks the four inputs and makes the output. */
static OrtStatus *prepare(const OrtApi *api, OrtKernelContext *context, Shape *shape, const void *in[INPUTS], void **out) {
    Shape other;
    OrtValue *value = NULL;
    OrtStatus *status = read_input(api, context, 0, shape, &in[0]);
    for (size_t k = 1; status == NULL && k < INPUTS; k++) {
        status = read_input(api, context, k, &other, &in[k]);
        if (status == NULL && (other.type != shape->type || !same_shape(shape, &other))) status = not_alike(api, shape, &other, k);
    }
    if (status == NULL) status = LM2_ORT(api, KernelContext_GetOutput)(context, 0, shape->dims, shape->rank, &value);
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)(value, out);
    return status;
}

typedef struct {
    const void *in[INPUTS];
    void *out;
    size_t elements;
    int half;
} Work;

static void run_range(const Work *w, size_t at, size_t n) {
    if (w->half) {
        lm2_gated_memory_update_f16((const uint16_t *)w->in[0] + at, (const uint16_t *)w->in[1] + at, (const uint16_t *)w->in[2] + at,
                                    (const uint16_t *)w->in[3] + at, (uint16_t *)w->out + at, n);
    } else {
        lm2_gated_memory_update_f32((const float *)w->in[0] + at, (const float *)w->in[1] + at, (const float *)w->in[2] + at,
                                    (const float *)w->in[3] + at, (float *)w->out + at, n);
    }
}

static void run_block(void *data, size_t index) {
    const Work *w = data;
    const size_t at = index * PARALLEL_BLOCK, left = w->elements - at;
    run_range(w, at, left < PARALLEL_BLOCK ? left : PARALLEL_BLOCK);
}

static OrtStatus *ORT_API_CALL compute_cpu(void *kernel, OrtKernelContext *context) {
    const OrtApi *api = kernel;
    Shape shape;
    Work work;
    OrtStatus *status = prepare(api, context, &shape, work.in, &work.out);
    if (status != NULL || shape.elements == 0) return status;
    work.elements = shape.elements;
    work.half = shape.type == (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    const size_t blocks = (shape.elements - 1) / PARALLEL_BLOCK + 1;
    if (blocks > 1) return LM2_ORT(api, KernelContext_ParallelFor)(context, run_block, blocks, 0, &work);
    run_range(&work, 0, work.elements);
    return NULL;
}

#ifdef LM2_OPS_CUDA
static OrtStatus *ORT_API_CALL compute_cuda(void *kernel, OrtKernelContext *context) {
    const OrtApi *api = kernel;
    Shape shape;
    const void *in[INPUTS];
    void *out = NULL, *stream = NULL;
    OrtStatus *status = prepare(api, context, &shape, in, &out);
    if (status == NULL) status = LM2_ORT(api, KernelContext_GetGPUComputeStream)(context, &stream);
    if (status != NULL || shape.elements == 0) return status;
    const int half = shape.type == (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    const int code = half ? lm2_gated_memory_update_cuda_f16(in[0], in[1], in[2], in[3], out, shape.elements, stream)
                          : lm2_gated_memory_update_cuda_f32(in[0], in[1], in[2], in[3], out, shape.elements, stream);
    if (code == 0) return NULL;
    char message[256];
    snprintf(message, sizeof message, "GatedMemoryUpdate: the CUDA kernel was not launched: %s (error %d)", lm2_cuda_error(code), code);
    return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_FAIL, message);
}
#endif

static OrtStatus *ORT_API_CALL create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)op, (void)info;
    *kernel = (void *)api;
    return NULL;
}

static void ORT_API_CALL destroy(void *kernel) { (void)kernel; }

static const char *ORT_API_CALL name(const OrtCustomOp *op) { return (void)op, "GatedMemoryUpdate"; }
static const char *ORT_API_CALL on_cpu(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static size_t ORT_API_CALL input_count(const OrtCustomOp *op) { return (void)op, (size_t)INPUTS; }
static size_t ORT_API_CALL output_count(const OrtCustomOp *op) { return (void)op, (size_t)1; }
static int ORT_API_CALL op_version(const OrtCustomOp *op) { return (void)op, 1; }

static ONNXTensorElementDataType ORT_API_CALL single(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static ONNXTensorElementDataType ORT_API_CALL half(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}
static OrtCustomOpInputOutputCharacteristic ORT_API_CALL required(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtCustomOpInputOutputCharacteristic)INPUT_OUTPUT_REQUIRED;
}
static OrtMemType ORT_API_CALL default_memory(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtMemType)OrtMemTypeDefault;
}

#define OPERATOR(PROVIDER, TYPE, COMPUTE) \
    { \
        .version = LM2_ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = PROVIDER, .GetInputType = TYPE, \
        .GetInputTypeCount = input_count, .GetOutputType = TYPE, .GetOutputTypeCount = output_count, .KernelDestroy = destroy, \
        .GetInputCharacteristic = required, .GetOutputCharacteristic = required, .GetInputMemoryType = default_memory, \
        .CreateKernelV2 = create, .KernelComputeV2 = COMPUTE, .GetStartVersion = op_version, .GetEndVersion = op_version \
    }

#ifdef LM2_OPS_CUDA
static const char *ORT_API_CALL on_cuda(const OrtCustomOp *op) { return (void)op, "CUDAExecutionProvider"; }
#endif

static const OrtCustomOp OPERATORS[] = {
    OPERATOR(on_cpu, single, compute_cpu),
    OPERATOR(on_cpu, half, compute_cpu),
#ifdef LM2_OPS_CUDA
    OPERATOR(on_cuda, single, compute_cuda),
    OPERATOR(on_cuda, half, compute_cuda),
#endif
};

#ifndef LM2_OPS_CUDA
/* 32 of ONNX Runtime 1.32.0: its newest API version. Asking GetApi for one that is not there would write to stderr. */
static int minor_version(const OrtApiBase *base) {
    int minor = 0;
    return sscanf(base->GetVersionString(), "1.%d", &minor) == 1 ? minor : 0;
}
#endif

/* ONNX Runtime calls this by its name. The session keeps the domain for its whole life and has no moment at which a library could release
it: about a hundred bytes stay allocated for every session that registers. */
EXPORTED OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(LM2_ORT_API_VERSION);
    OrtCustomOpDomain *domain = NULL;
    if (api == NULL) {
        const OrtApi *first = base->GetApi(1); /* CreateStatus is slot 0 of every version */
        char message[256];
        snprintf(message, sizeof message,
                 "ai.lm2 operator library: this ONNX Runtime is %s and lacks API version %d; use ONNX Runtime 1.%d or newer, or run "
                 "without the library",
                 base->GetVersionString(), LM2_ORT_API_VERSION, LM2_ORT_API_VERSION);
        if (first != NULL) return LM2_ORT(first, CreateStatus)((OrtErrorCode)ORT_NOT_IMPLEMENTED, message);
        fprintf(stderr, "%s\n", message); /* no status can be made; nothing is registered, so the model's own function body runs */
        return NULL;
    }
    OrtStatus *status = LM2_ORT(api, CreateCustomOpDomain)("ai.lm2", &domain);
    if (status != NULL) return status;
    for (size_t k = 0; status == NULL && k < sizeof OPERATORS / sizeof OPERATORS[0]; k++) {
        status = LM2_ORT(api, CustomOpDomain_Add)(domain, &OPERATORS[k]);
    }
#ifndef LM2_OPS_CUDA /* on a device their function bodies stay there */
    if (status == NULL) status = LM2_ORT(api, CustomOpDomain_Add)(domain, &LM2_BLOCK_SUMS);
    if (status == NULL) status = LM2_ORT(api, CustomOpDomain_Add)(domain, &LM2_QLINEAR[0]);
    if (status == NULL) status = LM2_ORT(api, CustomOpDomain_Add)(domain, &LM2_QLINEAR[1]);
    if (status == NULL) status = LM2_ORT(api, CustomOpDomain_Add)(domain, &LM2_CHUNK_ATTENTION[minor_version(base) >= LM2_ORT_SHARING_VERSION]);
#endif
    if (status == NULL) status = LM2_ORT(api, AddCustomOpDomain)(options, domain);
    if (status != NULL) LM2_ORT(api, ReleaseCustomOpDomain)(domain);
    return status;
}
