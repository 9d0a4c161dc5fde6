/* The part of ONNX Runtime's C ABI that an operator library needs, written for this project: no ONNX Runtime header is used to build.

The ABI is append-only: OrtApi is a table of function pointers whose order never changes and that grows at its end; GetApi(version) promises
that all slots known to that version are there. Slot numbers and field order below are those of API version 17 (ONNX Runtime 1.17) and of
every later one. tests/export/test_op_abi.py compares numbers, fields and signatures with a real onnxruntime_c_api.h where one is installed:
for that it defines LM2_ORT_NAMES_ONLY, which leaves out every type of the real header. */

#ifndef LM2_ORT_ABI_H
#define LM2_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define LM2_ORT_API_VERSION 17
#define LM2_ORT_SHARING_VERSION 18 /* the first whose operators say which outputs may be in an input's memory */

/* X(slot, name, arguments): functions of OrtApi that return an OrtStatus*, NULL when they succeed. */
#define LM2_ORT_FUNCTIONS(X) \
    X(0, CreateStatus, (OrtErrorCode code, const char *message)) \
    X(26, CreateCustomOpDomain, (const char *domain, OrtCustomOpDomain **out)) \
    X(27, CustomOpDomain_Add, (OrtCustomOpDomain *domain, const OrtCustomOp *op)) \
    X(28, AddCustomOpDomain, (OrtSessionOptions *options, OrtCustomOpDomain *domain)) \
    X(51, GetTensorMutableData, (OrtValue *value, void **out)) \
    X(60, GetTensorElementType, (const OrtTensorTypeAndShapeInfo *info, enum ONNXTensorElementDataType *out)) \
    X(61, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out)) \
    X(62, GetDimensions, (const OrtTensorTypeAndShapeInfo *info, int64_t *values, size_t length)) \
    X(65, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorTypeAndShapeInfo **out)) \
    X(85, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out)) \
    X(86, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out)) \
    X(89, KernelContext_GetOutputCount, (const OrtKernelContext *context, size_t *out)) \
    X(90, KernelContext_GetInput, (const OrtKernelContext *context, size_t index, const OrtValue **out)) \
    X(91, KernelContext_GetOutput, (OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, OrtValue **out)) \
    X(193, KernelContext_GetGPUComputeStream, (const OrtKernelContext *context, void **out)) \
    X(249, KernelInfoGetConstantInput_tensor, (const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **out)) \
    X(274, KernelContext_ParallelFor, \
      (const OrtKernelContext *context, void (*work)(void *, size_t), size_t total, size_t batches, void *data))

/* The same for functions that return nothing. */
#define LM2_ORT_RELEASES(X) \
    X(93, ReleaseStatus, (OrtStatus *status)) \
    X(99, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo *info)) \
    X(101, ReleaseCustomOpDomain, (OrtCustomOpDomain *domain))

/* X(result, name, arguments): the fields of OrtCustomOp after `version`, in order. The last four came with version 18: ONNX Runtime does not look at
them where `version` is 17. */
#define LM2_ORT_OP_FIELDS(X) \
    X(void *, CreateKernel, (const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info)) \
    X(const char *, GetName, (const struct OrtCustomOp *op)) \
    X(const char *, GetExecutionProviderType, (const struct OrtCustomOp *op)) \
    X(ONNXTensorElementDataType, GetInputType, (const struct OrtCustomOp *op, size_t index)) \
    X(size_t, GetInputTypeCount, (const struct OrtCustomOp *op)) \
    X(ONNXTensorElementDataType, GetOutputType, (const struct OrtCustomOp *op, size_t index)) \
    X(size_t, GetOutputTypeCount, (const struct OrtCustomOp *op)) \
    X(void, KernelCompute, (void *kernel, OrtKernelContext *context)) \
    X(void, KernelDestroy, (void *kernel)) \
    X(OrtCustomOpInputOutputCharacteristic, GetInputCharacteristic, (const struct OrtCustomOp *op, size_t index)) \
    X(OrtCustomOpInputOutputCharacteristic, GetOutputCharacteristic, (const struct OrtCustomOp *op, size_t index)) \
    X(OrtMemType, GetInputMemoryType, (const struct OrtCustomOp *op, size_t index)) \
    X(int, GetVariadicInputMinArity, (const struct OrtCustomOp *op)) \
    X(int, GetVariadicInputHomogeneity, (const struct OrtCustomOp *op)) \
    X(int, GetVariadicOutputMinArity, (const struct OrtCustomOp *op)) \
    X(int, GetVariadicOutputHomogeneity, (const struct OrtCustomOp *op)) \
    X(OrtStatus *, CreateKernelV2, (const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel)) \
    X(OrtStatus *, KernelComputeV2, (void *kernel, OrtKernelContext *context)) \
    X(OrtStatus *, InferOutputShapeFn, (const struct OrtCustomOp *op, OrtShapeInferContext *context)) \
    X(int, GetStartVersion, (const struct OrtCustomOp *op)) \
    X(int, GetEndVersion, (const struct OrtCustomOp *op)) \
    X(size_t, GetMayInplace, (int **inputs, int **outputs)) \
    X(void, ReleaseMayInplace, (int *inputs, int *outputs)) \
    X(size_t, GetAliasMap, (int **inputs, int **outputs)) \
    X(void, ReleaseAliasMap, (int *inputs, int *outputs))

/* X(value, name): enumeration constants. */
#define LM2_ORT_CONSTANTS(X) \
    X(1, ORT_FAIL) \
    X(2, ORT_INVALID_ARGUMENT) \
    X(9, ORT_NOT_IMPLEMENTED) \
    X(1, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) \
    X(2, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) \
    X(3, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) \
    X(7, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) \
    X(10, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) \
    X(0, INPUT_OUTPUT_REQUIRED) \
    X(1, INPUT_OUTPUT_OPTIONAL) \
    X(0, OrtMemTypeDefault)

#ifndef LM2_ORT_NAMES_ONLY

#ifdef _WIN32
#define ORT_API_CALL __stdcall
#else
#define ORT_API_CALL
#endif

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtCustomOp OrtCustomOp;

/* Enumerations; their other constants are not used here. A large one keeps the compiler from choosing a smaller integer. */
#define LM2_ORT_CONSTANT(value, name) name = value,
enum LM2OrtConstants { LM2_ORT_CONSTANTS(LM2_ORT_CONSTANT) LM2_ORT_WIDEST = 0x7fffffff };
typedef enum OrtErrorCode { LM2_ORT_ERROR_WIDEST = 0x7fffffff } OrtErrorCode;
typedef enum ONNXTensorElementDataType { LM2_ORT_ELEMENT_WIDEST = 0x7fffffff } ONNXTensorElementDataType;
typedef enum OrtCustomOpInputOutputCharacteristic { LM2_ORT_CHARACTERISTIC_WIDEST = 0x7fffffff } OrtCustomOpInputOutputCharacteristic;
typedef enum OrtMemType { LM2_ORT_MEMORY_NARROWEST = -0x7fffffff } OrtMemType;

/* A table of pointers; LM2_ORT(api, Name)(...) calls the one called Name through its own type. */
typedef struct OrtApi {
    void (*slots[275])(void);
} OrtApi;

#define LM2_ORT_FUNCTION(slot, name, arguments) typedef OrtStatus *(ORT_API_CALL *LM2Ort_##name) arguments;
#define LM2_ORT_RELEASE(slot, name, arguments) typedef void(ORT_API_CALL *LM2Ort_##name) arguments;
#define LM2_ORT_SLOT(slot, name, arguments) LM2OrtSlot_##name = slot,
LM2_ORT_FUNCTIONS(LM2_ORT_FUNCTION)
LM2_ORT_RELEASES(LM2_ORT_RELEASE)
enum LM2OrtSlot { LM2_ORT_FUNCTIONS(LM2_ORT_SLOT) LM2_ORT_RELEASES(LM2_ORT_SLOT) };
#define LM2_ORT(api, name) ((LM2Ort_##name)(api)->slots[LM2OrtSlot_##name])

typedef struct OrtApiBase {
    const OrtApi *(ORT_API_CALL *GetApi)(uint32_t version);
    const char *(ORT_API_CALL *GetVersionString)(void);
} OrtApiBase;

#define LM2_ORT_FIELD(result, name, arguments) result(ORT_API_CALL *name) arguments;
struct OrtCustomOp {
    uint32_t version;
    LM2_ORT_OP_FIELDS(LM2_ORT_FIELD)
};

#endif
#endif
