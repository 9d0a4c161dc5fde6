/* ai.lm2::ChunkAttention as an operator: reads and checks its inputs, chooses the instructions once, and deals the work out to the session's pool.

No arithmetic (chunk_attention_core.c and its levels) and no mutable state: a kernel is its session's function table, two attributes and its level. */

#include "chunk_attention.h"
#include "op_inputs.h"

#include <stdlib.h>

enum { INPUTS = 7, OUTPUTS = 3, WRITE_ROWS = 8, SMALL = 1 << 15, MOST_HEADS = 1 << 20 };
enum { X, PAST_KEY, PAST_VALUE, PAST_LENGTH, COS, SIN, BIAS };

static const char CHOICE[] = "LM2_ATTENTION"; /* environment: the level to use, for tests and comparisons */
static const char *const NAMES[INPUTS] = {"x", "past_key", "past_value", "past_length", "cos", "sin", "bias"};
static const size_t RANKS[INPUTS] = {3, 4, 4, 1, 2, 2, 4};

typedef struct {
    const OrtApi *api;
    const Lm2ALevel *level;
    size_t heads;
    float scale; /* 0: 1 / sqrt(e) */
} Kernel;

/* The best level of this processor, or the one that the environment names; NULL when it cannot be had. */
static const Lm2ALevel *choose(const char *named) {
    size_t count;
    const Lm2ALevel *levels = lm2_attention_x86(&count);
    for (size_t k = 0; k < count; k++)
        if ((named == NULL || strcmp(named, levels[k].name) == 0) && levels[k].there()) return &levels[k];
    return named == NULL || strcmp(named, LM2_A_PLAIN.name) == 0 ? &LM2_A_PLAIN : NULL;
}

static OrtStatus *ORT_API_CALL create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    char message[256];
    int64_t heads = 0;
    float scale = 0;
    const char *named = getenv(CHOICE);
    if (named != NULL && *named == 0) named = NULL;
    OrtStatus *status = LM2_ORT(api, KernelInfoGetAttribute_int64)(info, "heads", &heads);
    if (status != NULL) return (void)op, status;
    if (heads < 1 || heads > MOST_HEADS) {
        snprintf(message, sizeof message, "ChunkAttention: attribute heads is %" PRId64 "; it needs 1 to %d", heads, (int)MOST_HEADS);
        return refused(api, message);
    }
    status = LM2_ORT(api, KernelInfoGetAttribute_float)(info, "scale", &scale);
    if (status != NULL) { /* it is not there */
        LM2_ORT(api, ReleaseStatus)(status);
        scale = 0;
    }
    if (scale - scale != 0) {
        snprintf(message, sizeof message, "ChunkAttention: attribute scale is %g; it needs a finite number, or 0 for 1 / sqrt(e)", (double)scale);
        return refused(api, message);
    }
    const Lm2ALevel *level = choose(named);
    if (level == NULL) {
        snprintf(message, sizeof message, "ChunkAttention: this processor or library has no %.40s, which %s asks for; unset it", named, CHOICE);
        return refused(api, message);
    }
    Kernel *kernel = malloc(sizeof *kernel);
    if (kernel == NULL) return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_FAIL, "ChunkAttention: no memory");
    *kernel = (Kernel){api, level, (size_t)heads, scale};
    *out = kernel;
    return NULL;
}

static void ORT_API_CALL destroy(void *kernel) { free(kernel); }

static OrtStatus *read_input(const OrtApi *api, const OrtKernelContext *context, size_t index, Tensor *t) {
    char message[128];
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetInput)(context, index, &value);
    if (status != NULL) return status;
    if (value == NULL) {
        snprintf(message, sizeof message, "ChunkAttention: input %s is missing; all seven inputs are needed", NAMES[index]);
        return refused(api, message);
    }
    status = LM2_ORT(api, GetTensorTypeAndShape)(value, &info);
    if (status != NULL) return status;
    status = LM2_ORT(api, GetDimensionsCount)(info, &t->rank);
    if (status == NULL && t->rank == RANKS[index]) status = LM2_ORT(api, GetDimensions)(info, t->dims, t->rank);
    LM2_ORT(api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status == NULL && t->rank != RANKS[index]) {
        snprintf(message, sizeof message, "ChunkAttention: input %s has rank %zu; it needs rank %zu", NAMES[index], t->rank, RANKS[index]);
        return refused(api, message);
    }
    if (status == NULL) status = LM2_ORT(api, GetTensorMutableData)((OrtValue *)value, &t->data); /* read only; slot 51 has no const form */
    return status;
}

static int fits(const Tensor *in, int64_t h) {
    const int64_t *x = in[X].dims, *key = in[PAST_KEY].dims, *bias = in[BIAS].dims, e = key[3], k = key[1];
    const int64_t whole[4] = {x[0], h, x[1], key[2]};
    if (e < 1 || k < 1 || h % k != 0 || x[0] != key[0] || memcmp(key, in[PAST_VALUE].dims, 4 * sizeof *key) != 0) return 0;
    if (x[2] % e != 0 || (x[2] / e != h && x[2] / e != h + 2 * k)) return 0;
    if (in[PAST_LENGTH].dims[0] != 1 && in[PAST_LENGTH].dims[0] != x[0]) return 0;
    if (memcmp(in[COS].dims, in[SIN].dims, 2 * sizeof *x) != 0 || in[COS].dims[0] < 1 || in[COS].dims[1] > e / 2) return 0;
    for (int n = 0; n < 4; n++)
        if (bias[n] != 1 && bias[n] != whole[n]) return 0;
    return 1;
}

static OrtStatus *unfit(const OrtApi *api, const Tensor *in, size_t heads) {
    char room[INPUTS][96], message[1024];
    for (int n = 0; n < INPUTS; n++) shape_text(in + n, room[n], sizeof room[n]);
    snprintf(message, sizeof message,
             "ChunkAttention: inputs x %s, past_key %s, past_value %s, past_length %s, cos %s, sin %s, bias %s do not go together; with %zu heads they "
             "are x (b, t, (%zu + 2 k) e) or (b, t, %zu e), caches (b, k, W, e) with k a divisor of the heads, past_length (b) or (1), cos and sin "
             "(positions, e / 2 at most), bias (b or 1, %zu or 1, t or 1, W or 1)",
             room[X], room[PAST_KEY], room[PAST_VALUE], room[PAST_LENGTH], room[COS], room[SIN], room[BIAS], heads, heads, heads, heads);
    return refused(api, message);
}

/* Every sequence's place: room for what is written, and rows of the tables. */
static OrtStatus *places(const OrtApi *api, const Tensor *in, const Lm2AWork *w) {
    char message[256];
    const int64_t *length = in[PAST_LENGTH].data, rows = in[COS].dims[0];
    for (size_t n = 0; n < (w->own_length ? w->b : 1); n++) {
        const int64_t most = (int64_t)w->W - (w->writes ? (int64_t)w->t : 0);
        if (length[n] < 0 || length[n] > most) {
            snprintf(message, sizeof message,
                     "ChunkAttention: past_length of sequence %zu is %" PRId64 "; caches of %zu rows and %zu to be written need 0 to %" PRId64, n,
                     length[n], w->W, w->writes ? w->t : (size_t)0, most);
            return refused(api, message);
        }
        if (w->w != 0 && length[n] > rows - (int64_t)w->t) {
            snprintf(message, sizeof message,
                     "ChunkAttention: cos and sin have %" PRId64 " rows; sequence %zu at position %" PRId64 " with %zu more needs %" PRId64,
                     rows, n, length[n], w->t, length[n] + (int64_t)w->t);
            return refused(api, message);
        }
    }
    return NULL;
}

/* Sets what the inputs say, or refuses them. */
static OrtStatus *understand(const Kernel *kernel, const Tensor *in, Lm2AWork *w) {
    const int64_t *x = in[X].dims, *key = in[PAST_KEY].dims, *bias = in[BIAS].dims;
    if (!fits(in, (int64_t)kernel->heads)) return unfit(kernel->api, in, kernel->heads);
    *w = (Lm2AWork){.level = kernel->level, .x = in[X].data, .past = {in[PAST_KEY].data, in[PAST_VALUE].data}, .cos = in[COS].data,
                    .sin = in[SIN].data, .bias = in[BIAS].data, .length = in[PAST_LENGTH].data, .b = (size_t)x[0], .t = (size_t)x[1],
                    .h = kernel->heads, .k = (size_t)key[1], .W = (size_t)key[2], .e = (size_t)key[3], .w = (size_t)in[COS].dims[1],
                    .own_length = in[PAST_LENGTH].dims[0] != 1, .scale = kernel->scale};
    w->g = w->h / w->k;
    w->writes = (size_t)(x[2] / key[3]) != w->h;
    if (w->scale == 0) w->scale = 1.0f / __builtin_sqrtf((float)w->e);
    size_t step = 1;
    for (int n = 3; n >= 0; step *= (size_t)bias[n--]) w->bias_step[n] = bias[n] == 1 ? 0 : step;
    if (step == 1 && *w->bias == 0) w->bias = NULL;
    return places(kernel->api, in, w);
}

static OrtStatus *output(const OrtApi *api, OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, float **data) {
    OrtValue *value = NULL;
    void *memory = NULL;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetOutput)(context, index, dims, rank, &value);
    if (status == NULL && value != NULL) status = LM2_ORT(api, GetTensorMutableData)(value, &memory);
    *data = memory;
    return status;
}

static void copy_part(void *data, size_t n) { lm2_attention_copy(data, n); }
static void tile_part(void *data, size_t n) { lm2_attention_tile(data, n); }
static void span_part(void *data, size_t n) { lm2_attention_span(data, n); }
static void write_part(void *data, size_t n) {
    const Lm2AWork *w = data;
    const size_t first = n * WRITE_ROWS, last = first + WRITE_ROWS, all = w->b * w->t;
    lm2_attention_write(w, first, last < all ? last : all);
}

/* One part or little work stays with this thread. */
static OrtStatus *deal(const OrtApi *api, OrtKernelContext *context, void (*part)(void *, size_t), size_t parts, size_t work, Lm2AWork *w) {
    if (parts > 1 && work > SMALL) return LM2_ORT(api, KernelContext_ParallelFor)(context, part, parts, 0, w);
    for (size_t n = 0; n < parts; n++) part(w, n);
    return NULL;
}

static OrtStatus *attend(const OrtApi *api, OrtKernelContext *context, Lm2AWork *w) {
    const size_t floats = lm2_attention_rooms(w), tiles = w->b * w->k * w->tiles, products = w->b * w->t * w->h * w->e;
    float *room = malloc(floats * sizeof *room + 1);
    if (room == NULL) return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_FAIL, "ChunkAttention: no memory for the queries");
    lm2_attention_place(w, room);
    OrtStatus *status = deal(api, context, write_part, (w->b * w->t + WRITE_ROWS - 1) / WRITE_ROWS, products, w);
    if (status == NULL && w->spans == 0) status = deal(api, context, tile_part, tiles, products * w->most, w);
    if (status == NULL && w->spans != 0) status = deal(api, context, span_part, tiles * w->spans, products * w->most, w);
    for (size_t n = 0; status == NULL && w->spans != 0 && n < tiles; n++) lm2_attention_join(w, n);
    free(room);
    return status;
}

static OrtStatus *ORT_API_CALL compute(void *kernel, OrtKernelContext *context) {
    const Kernel *k = kernel;
    const OrtApi *api = k->api;
    Tensor in[INPUTS];
    Lm2AWork w;
    size_t outputs = 0;
    OrtStatus *status = LM2_ORT(api, KernelContext_GetOutputCount)(context, &outputs);
    for (size_t n = 0; status == NULL && n < INPUTS; n++) status = read_input(api, context, n, &in[n]);
    if (status == NULL) status = understand(k, in, &w);
    if (status != NULL) return status;
    const int64_t y[3] = {in[X].dims[0], in[X].dims[1], (int64_t)(w.h * w.e)};
    status = output(api, context, 0, y, 3, &w.y);
    for (size_t c = 0; status == NULL && c < 2 && c + 1 < outputs; c++) status = output(api, context, c + 1, in[PAST_KEY].dims, 4, &w.present[c]);
    if (status != NULL) return status;
    if ((w.present[0] == NULL) != (w.present[1] == NULL) || (w.writes && w.present[0] == NULL && w.b * w.W != 0))
        return refused(api, "ChunkAttention: outputs present_key and present_value go together, and are needed where x has keys and values");
    const size_t caches = w.b * w.k, floats = caches * w.W * w.e;
    if (floats != 0 && w.present[0] != NULL && (w.present[0] != w.past[0] || w.present[1] != w.past[1]))
        status = deal(api, context, copy_part, caches, floats, &w);
    if (status != NULL || w.b * w.t == 0) return status;
    return attend(api, context, &w);
}

static const char *ORT_API_CALL name(const OrtCustomOp *op) { return (void)op, "ChunkAttention"; }
static const char *ORT_API_CALL provider(const OrtCustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static size_t ORT_API_CALL input_count(const OrtCustomOp *op) { return (void)op, (size_t)INPUTS; }
static size_t ORT_API_CALL output_count(const OrtCustomOp *op) { return (void)op, (size_t)OUTPUTS; }
static int ORT_API_CALL op_version(const OrtCustomOp *op) { return (void)op, 1; }
static ONNXTensorElementDataType ORT_API_CALL input_type(const OrtCustomOp *op, size_t index) {
    return (void)op, (ONNXTensorElementDataType)(index == PAST_LENGTH ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}
static ONNXTensorElementDataType ORT_API_CALL output_type(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (ONNXTensorElementDataType)ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static OrtCustomOpInputOutputCharacteristic ORT_API_CALL required(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtCustomOpInputOutputCharacteristic)INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic ORT_API_CALL wanted(const OrtCustomOp *op, size_t index) {
    return (void)op, (OrtCustomOpInputOutputCharacteristic)(index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL);
}
static OrtMemType ORT_API_CALL memory(const OrtCustomOp *op, size_t index) {
    return (void)op, (void)index, (OrtMemType)OrtMemTypeDefault;
}

/* present_key may be past_key's memory, and present_value past_value's, where nobody reads them afterwards. */
static size_t ORT_API_CALL may_share(int **inputs, int **outputs) {
    static int caches[2] = {PAST_KEY, PAST_VALUE}, presents[2] = {1, 2}; /* only read */
    *inputs = caches;
    *outputs = presents;
    return 2;
}
static void ORT_API_CALL shared(int *inputs, int *outputs) { (void)inputs, (void)outputs; }

#define OPERATOR(VERSION) \
    .version = VERSION, .GetName = name, .GetExecutionProviderType = provider, .GetInputType = input_type, .GetInputTypeCount = input_count, \
    .GetOutputType = output_type, .GetOutputTypeCount = output_count, .KernelDestroy = destroy, .GetInputCharacteristic = required, \
    .GetOutputCharacteristic = wanted, .GetInputMemoryType = memory, .CreateKernelV2 = create, .KernelComputeV2 = compute, \
    .GetStartVersion = op_version, .GetEndVersion = op_version

const OrtCustomOp LM2_CHUNK_ATTENTION[2] = {
    {OPERATOR(LM2_ORT_API_VERSION)},
    {OPERATOR(LM2_ORT_SHARING_VERSION), .GetMayInplace = may_share, .ReleaseMayInplace = shared},
};
