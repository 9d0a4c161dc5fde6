/* ai.lm2::QLinear as an operator: reads and checks its inputs, chooses the instructions once, and deals tiles of outputs out to the session's pool.

No arithmetic (qlinear_plain.c, qlinear_x86*.c, qlinear_neon.c) and no mutable state: a kernel is its session's function table, its attributes, its level and the weights
that the file gives. How the work is dealt out changes no result: a tile belongs to one task, and its sums are made in one order. */

#include "qlinear.h"
#include "huge_pages.h"
#include "op_inputs.h"

#include <stdlib.h>

enum { INPUTS = 4, ROUND_ROWS = 8, TASKS = 64, TASK_PRODUCTS = 1 << 16, ALIGN = 64 };

static const char CHOICE[] = "LM2_QLINEAR"; /* environment: the level to use, for tests and comparisons */

typedef struct {
    const OrtApi *api;
    const Lm2QLevel *level;
    int bits;
    int64_t outputs;
    int known[INPUTS]; /* whether the file gives an input, which then is `given` for good */
    Tensor given[INPUTS];
} Kernel;

/* The best level of this processor, or the one that the environment names; NULL when it cannot be had. */
static const Lm2QLevel *choose(const char *named) {
    size_t count;
    const Lm2QLevel *levels = lm2_qlinear_levels(&count);
    for (size_t k = 0; k < count; k++)
        if ((named == NULL || strcmp(named, levels[k].name) == 0) && levels[k].there()) return &levels[k];
    return named == NULL || strcmp(named, LM2_QLINEAR_PLAIN.name) == 0 ? &LM2_QLINEAR_PLAIN : NULL;
}

static OrtStatus *read_value(const OrtApi *api, const OrtValue *value, Tensor *t) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    OrtStatus *status = LM2_ORT(api, GetTensorTypeAndShape)(value, &info);
    if (status != NULL) return status;
    status = LM2_ORT(api, GetDimensionsCount)(info, &t->rank);
    if (status == NULL && t->rank <= MAX_RANK) status = LM2_ORT(api, GetDimensions)(info, t->dims, t->rank);
    LM2_ORT(api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)((OrtValue *)value, &t->data); /* read only; slot 51 has no const form */
    return status;
}

static OrtStatus *read_input(const OrtApi *api, const OrtKernelContext *context, size_t index, Tensor *t) {
    const OrtValue *value = NULL;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetInput)(context, index, &value);
    if (status != NULL) return status;
    if (value == NULL) return refused(api, "QLinear: an input is missing; x, q, d and m are needed");
    return read_value(api, value, t);
}

/* Weights that the file gives are the same for every call, and read by each: on huge pages, where the system has them. */
static OrtStatus *know_weights(Kernel *kernel, const OrtKernelInfo *info) {
    OrtStatus *status = NULL;
    for (size_t index = 1; status == NULL && index < INPUTS; index++) {
        Tensor *t = kernel->given + index;
        const OrtValue *value = NULL;
        int constant = 0;
        status = LM2_ORT(kernel->api, KernelInfoGetConstantInput_tensor)(info, index, &constant, &value);
        if (status != NULL || !constant || value == NULL) continue;
        status = read_value(kernel->api, value, t);
        if (status != NULL || t->rank > MAX_RANK) continue;
        size_t bytes = index == 1 ? 1 : sizeof(uint16_t);
        for (size_t n = 0; n < t->rank; n++) bytes *= (size_t)t->dims[n];
        lm2_on_huge_pages(t->data, bytes);
        kernel->known[index] = 1;
    }
    return status;
}

static OrtStatus *ORT_API_CALL create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    char message[256];
    int64_t bits = 0, outputs = 0;
    const int expected = op == &LM2_QLINEAR[0] ? 4 : 8;
    const char *named = getenv(CHOICE);
    if (named != NULL && *named == 0) named = NULL;
    OrtStatus *status = LM2_ORT(api, KernelInfoGetAttribute_int64)(info, "bits", &bits);
    if (status == NULL) status = LM2_ORT(api, KernelInfoGetAttribute_int64)(info, "rows", &outputs);
    if (status != NULL) return status;
    if (bits != expected) {
        snprintf(message, sizeof message, "QLinear: attribute bits is %" PRId64 " and input q is %s; it needs 4 with uint8 or 8 with int8", bits,
                 expected == 4 ? "uint8" : "int8");
        return refused(api, message);
    }
    const Lm2QLevel *level = choose(named);
    if (level == NULL) {
        snprintf(message, sizeof message, "QLinear: this processor or library has no %.40s, which %s asks for; unset it", named, CHOICE);
        return refused(api, message);
    }
    Kernel *kernel = malloc(sizeof *kernel);
    if (kernel == NULL) return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_FAIL, "QLinear: no memory");
    *kernel = (Kernel){.api = api, .level = level, .bits = expected, .outputs = outputs};
    status = know_weights(kernel, info);
    if (status != NULL)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static void ORT_API_CALL destroy(void *kernel) { free(kernel); }

static int are(const Tensor *t, size_t rank, const int64_t *dims) {
    if (t->rank != rank) return 0;
    for (size_t n = 0; n < rank; n++)
        if (t->dims[n] != dims[n]) return 0;
    return 1;
}

static int fits(const Tensor *in, const Kernel *kernel) {
    const Tensor *x = in, *q = in + 1, *d = in + 2, *m = in + 3;
    if (x->rank < 1 || x->rank > MAX_RANK || q->rank != 5 || q->dims[0] < 1 || q->dims[1] < 1) return 0;
    const int64_t tiles = q->dims[0], blocks = q->dims[1], width = x->dims[x->rank - 1];
    if (kernel->outputs < 1 || (kernel->outputs - 1) / LM2_QTILE + 1 != tiles || width % LM2_QBLOCK != 0 || width / LM2_QBLOCK != blocks) return 0;
    const int64_t numbers[] = {tiles, blocks, kernel->bits, LM2_QTILE, 4}, scales[] = {tiles, blocks, LM2_QTILE}, one[] = {1, 1, 1};
    return are(q, 5, numbers) && are(d, 3, scales) && (are(m, 3, scales) || are(m, 3, one));
}

static OrtStatus *unfit(const OrtApi *api, const Tensor *in, const Kernel *kernel) {
    char x[160], q[112], d[64], m[64], message[720];
    snprintf(message, sizeof message,
             "QLinear: inputs x %s, q %s, d %s, m %s do not go together; with %d bits and %" PRId64 " rows of W they are x (.., 32 k), q (t, k, %d, 16, 4), "
             "d (t, k, 16), m (t, k, 16) or (1,1,1), t rows / 16 rounded up, t and k at least 1",
             shape_text(in, x, sizeof x), shape_text(in + 1, q, sizeof q), shape_text(in + 2, d, sizeof d), shape_text(in + 3, m, sizeof m),
             kernel->bits, kernel->outputs, kernel->bits);
    return refused(api, message);
}

typedef struct {
    const Lm2QLevel *level;
    const float *x;
    float *y;
    Lm2QMatrix w;
    Lm2QRows rounded;
    size_t rows, tiles, step;
} Work;

static void round_part(void *data, size_t index) {
    const Work *w = data;
    const size_t first = index * ROUND_ROWS, last = first + ROUND_ROWS;
    w->level->round(w->x, first, last < w->rows ? last : w->rows, &w->rounded);
}

static void tiles_part(void *data, size_t index) {
    const Work *w = data;
    const size_t first = index * w->step, last = first + w->step;
    w->level->tiles(&w->w, &w->rounded, w->rows, first, last < w->tiles ? last : w->tiles, w->y);
}

static OrtStatus *deal(const OrtApi *api, OrtKernelContext *context, void (*part)(void *, size_t), size_t parts, Work *work) {
    if (parts > 1) return LM2_ORT(api, KernelContext_ParallelFor)(context, part, parts, 0, work);
    part(work, 0);
    return NULL;
}

/* Room for the rounded rows in one piece; the caller frees it. */
static void *make_room(Work *w) {
    const size_t blocks = w->rows * w->w.blocks, numbers = blocks * LM2_QBLOCK;
    char *room = malloc(numbers * 4 + blocks * 8 + ALIGN); /* some times as large as x, so nothing overflows */
    if (room == NULL) return NULL;
    char *at = room + (ALIGN - (uintptr_t)room % ALIGN) % ALIGN;
    w->rounded = (Lm2QRows){.number = (int16_t *)(void *)at, .high = (int8_t *)at + 2 * numbers, .low = (int8_t *)at + 3 * numbers,
                            .step = (float *)(void *)(at + 4 * numbers), .sum = (int32_t *)(void *)(at + 4 * numbers) + blocks,
                            .blocks = w->w.blocks};
    return room;
}

static OrtStatus *ORT_API_CALL compute(void *kernel, OrtKernelContext *context) {
    const Kernel *k = kernel;
    const OrtApi *api = k->api;
    Tensor in[INPUTS];
    OrtValue *made = NULL;
    OrtStatus *status = NULL;
    for (size_t n = 0; status == NULL && n < INPUTS; n++) {
        if (k->known[n])
            in[n] = k->given[n];
        else
            status = read_input(api, context, n, &in[n]);
    }
    if (status != NULL) return status;
    if (!fits(in, k)) return unfit(api, in, k);
    Work work = {.level = k->level, .x = in[0].data, .rows = 1};
    const int one_minimum = in[3].dims[2] == 1;
    work.w = (Lm2QMatrix){in[1].data, in[2].data, in[3].data, (size_t)k->outputs, (size_t)in[1].dims[1], k->bits, one_minimum};
    work.tiles = (size_t)in[1].dims[0];
    for (size_t n = 0; n + 1 < in[0].rank; n++) work.rows *= (size_t)in[0].dims[n];
    void *y = NULL;
    in[0].dims[in[0].rank - 1] = k->outputs;
    status = LM2_ORT(api, KernelContext_GetOutput)(context, 0, in[0].dims, in[0].rank, &made);
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)(made, &y);
    if (status != NULL || work.rows == 0) return status;
    work.y = y;
    void *room = make_room(&work);
    if (room == NULL) return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_FAIL, "QLinear: no memory for the rounded rows of x");
    const size_t products = work.rows * work.w.blocks * LM2_QBLOCK * LM2_QTILE; /* of a tile */
    const size_t least = products < TASK_PRODUCTS ? TASK_PRODUCTS / products : 1, even = (work.tiles - 1) / TASKS + 1;
    work.step = least > even ? least : even;
    status = deal(api, context, round_part, (work.rows - 1) / ROUND_ROWS + 1, &work);
    if (status == NULL) status = deal(api, context, tiles_part, (work.tiles - 1) / work.step + 1, &work);
    free(room);
    return status;
}

static const char *ORT_API_CALL name(const OrtCustomOp *op) { return (void)op, "QLinear"; }
static const char *ORT_API_CALL provider(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static size_t ORT_API_CALL input_count(const OrtCustomOp *op) { return (void)op, (size_t)INPUTS; }
static size_t ORT_API_CALL output_count(const OrtCustomOp *op) { return (void)op, (size_t)1; }
static int ORT_API_CALL op_version(const OrtCustomOp *op) { return (void)op, 2; }
static ONNXTensorElementDataType ORT_API_CALL input_type(const OrtCustomOp *op, size_t index) {
    if (index == 0) return (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    if (index > 1) return (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    return (ONNXTensorElementDataType)(op == &LM2_QLINEAR[0] ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
}
static ONNXTensorElementDataType ORT_API_CALL output_type(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static OrtCustomOpInputOutputCharacteristic ORT_API_CALL required(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtCustomOpInputOutputCharacteristic)INPUT_OUTPUT_REQUIRED;
}
static OrtMemType ORT_API_CALL memory(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtMemType)OrtMemTypeDefault;
}

#define OPERATOR \
    { \
        .version = LM2_ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = input_type, \
        .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count, .KernelDestroy = destroy, \
        .GetInputCharacteristic = required, .GetOutputCharacteristic = required, .GetInputMemoryType = memory, .CreateKernelV2 = create, \
        .KernelComputeV2 = compute, .GetStartVersion = op_version, .GetEndVersion = op_version \
    }

const OrtCustomOp LM2_QLINEAR[2] = {OPERATOR, OPERATOR};
