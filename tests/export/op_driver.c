/* Drives the operator library with a made-up ONNX Runtime, so that sanitizers and valgrind see all of it and nothing else.

    op_driver fuzz SEED ROUNDS    random shapes, types, values and mistakes, each processor level, against libm in double
    op_driver old                 an ONNX Runtime whose GetApi knows version 1 only: prints the status it is given
    op_driver none                one whose GetApi knows nothing: registration must not crash

Buffers are exactly as long as their data and aligned to one element only. Prints `ok ...` and returns 0, or says what is wrong and
returns 1. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "gated_memory_update.c"
#include "ort_abi.h"

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

struct OrtStatus {
    int code;
    char text[600];
};
struct OrtTensorTypeAndShapeInfo {
    int type;
    size_t rank;
    int64_t dims[64];
};
struct OrtValue {
    struct OrtTensorTypeAndShapeInfo info;
    char *raw;
    void *data;
};
struct OrtKernelContext {
    struct OrtValue *in[4];
    struct OrtValue out;
};
struct OrtCustomOpDomain {
    const OrtCustomOp *ops[8];
    int count;
};
struct OrtSessionOptions {
    OrtCustomOpDomain *domain;
};

static int live_infos;
static uint64_t seed;

static uint32_t draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static size_t count(const struct OrtTensorTypeAndShapeInfo *info) {
    size_t n = 1;
    for (size_t k = 0; k < info->rank; k++) n *= (size_t)info->dims[k];
    return n;
}

static size_t width(int type) {
    return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 8;
}

static void allocate(struct OrtValue *v) {
    const size_t size = width(v->info.type), bytes = count(&v->info) * size, shift = size * (1 + draw() % 3);
    v->raw = malloc(bytes + shift); /* ends where the data ends */
    if (v->raw == NULL) fail("no memory");
    v->data = v->raw + shift;
    memset(v->raw, 0xff, bytes + shift); /* NaN of every type: what a kernel leaves out is not what the block held before */
}

static OrtStatus *create_status(OrtErrorCode code, const char *message) {
    OrtStatus *s = malloc(sizeof *s);
    if (s == NULL) fail("no memory");
    s->code = (int)code;
    snprintf(s->text, sizeof s->text, "%s", message);
    return s;
}
static OrtStatus *create_domain(const char *name, OrtCustomOpDomain **out) {
    if (strcmp(name, "ai.lm2") != 0) fail("domain");
    *out = calloc(1, sizeof **out);
    return NULL;
}
static OrtStatus *domain_add(OrtCustomOpDomain *domain, const OrtCustomOp *op) {
    return domain->ops[domain->count++] = op, (OrtStatus *)NULL;
}
static OrtStatus *add_domain(OrtSessionOptions *options, OrtCustomOpDomain *domain) { return options->domain = domain, (OrtStatus *)NULL; }
static OrtStatus *mutable_data(OrtValue *value, void **out) { return *out = value->data, (OrtStatus *)NULL; }
static OrtStatus *element_type(const OrtTensorTypeAndShapeInfo *info, enum ONNXTensorElementDataType *out) {
    return *out = (ONNXTensorElementDataType)info->type, (OrtStatus *)NULL;
}
static OrtStatus *dimensions_count(const OrtTensorTypeAndShapeInfo *info, size_t *out) { return *out = info->rank, (OrtStatus *)NULL; }
static OrtStatus *dimensions(const OrtTensorTypeAndShapeInfo *info, int64_t *values, size_t length) {
    if (length != info->rank) fail("length of dimensions");
    memcpy(values, info->dims, length * sizeof *values);
    return NULL;
}
static OrtStatus *type_and_shape(const OrtValue *value, OrtTensorTypeAndShapeInfo **out) {
    *out = malloc(sizeof **out);
    if (*out == NULL) fail("no memory");
    **out = value->info;
    live_infos++;
    return NULL;
}
static void release_info(OrtTensorTypeAndShapeInfo *info) {
    live_infos--;
    free(info);
}
static void release_domain(OrtCustomOpDomain *domain) { free(domain); }
static OrtStatus *get_input(const OrtKernelContext *context, size_t index, const OrtValue **out) {
    return *out = context->in[index], (OrtStatus *)NULL;
}
static OrtStatus *get_output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, OrtValue **out) {
    if (index != 0) fail("output index");
    context->out.info.type = context->in[0]->info.type;
    context->out.info.rank = rank;
    memcpy(context->out.info.dims, dims, rank * sizeof *dims);
    allocate(&context->out);
    *out = &context->out;
    return NULL;
}
static OrtStatus *parallel_for(const OrtKernelContext *context, void (*work)(void *, size_t), size_t total, size_t batches, void *data) {
    (void)context, (void)batches;
    while (total > 0) work(data, --total); /* in an order that no caller may rely on */
    return NULL;
}

static OrtApi api;
static uint32_t newest;
static const OrtApi *get_api(uint32_t version) { return version <= newest ? &api : NULL; }
static const char *version_string(void) { return "1.0.made-up"; }
static const OrtApiBase base = {get_api, version_string};

static void fill_api(void) {
#define PUT(name, function) api.slots[LM2OrtSlot_##name] = (void (*)(void))function
    PUT(CreateStatus, create_status);
    PUT(CreateCustomOpDomain, create_domain);
    PUT(CustomOpDomain_Add, domain_add);
    PUT(AddCustomOpDomain, add_domain);
    PUT(GetTensorMutableData, mutable_data);
    PUT(GetTensorElementType, element_type);
    PUT(GetDimensionsCount, dimensions_count);
    PUT(GetDimensions, dimensions);
    PUT(GetTensorTypeAndShape, type_and_shape);
    PUT(ReleaseTensorTypeAndShapeInfo, release_info);
    PUT(ReleaseCustomOpDomain, release_domain);
    PUT(KernelContext_GetInput, get_input);
    PUT(KernelContext_GetOutput, get_output);
    PUT(KernelContext_ParallelFor, parallel_for);
}

static float random_value(void) {
    static const float odd[] = {INFINITY, -INFINITY, NAN,    0.0f,   -0.0f,   3e38f,    -3e38f,
                                1e-40f,   88.0f,     -87.0f, 200.0f, -200.0f, 65519.0f, 6e-8f};
    if (draw() % 12 == 0) return odd[draw() % (sizeof odd / sizeof odd[0])];
    return ((float)draw() / 2147483648.0f - 0.5f) * (draw() % 2 ? 8.0f : 60.0f);
}

static double gate(double x) { return x < -87.3 ? 0.0 : 1.0 / (1.0 + exp(-x)); }

static float element(const struct OrtValue *v, size_t k) {
    return v->info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? ((const float *)v->data)[k] : from_half(((const uint16_t *)v->data)[k]);
}

static void compare(struct OrtValue *const in[4], const struct OrtValue *out) {
    const int half = out->info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    for (size_t k = 0, n = count(&out->info); k < n; k++) {
        const double written = gate(element(in[0], k)) * tanh(element(in[2], k)), kept = gate(element(in[1], k)) * element(in[3], k);
        const double want = written + kept, got = element(out, k), parts = fabs(written) + fabs(kept);
        const double largest = half ? 65520.0 : 3.4028235677973366e38, near = parts * (half ? 1e-3 : 6e-7) + (half ? 6e-8 : 2e-38);
        if (isnan(want) && isnan(got)) continue;
        if (isinf(got) && signbit(got) == signbit(want) && fabs(want) >= largest * (1 - 1e-6)) continue;
        if (!(fabs(got - want) <= near)) {
            fprintf(stderr, "element %zu: i %g f %g z %g old %g gave %.9g, expected %.9g\n", k, (double)element(in[0], k),
                    (double)element(in[1], k), (double)element(in[2], k), (double)element(in[3], k), got, want);
            fail("value");
        }
    }
}

static void levels(struct OrtValue *const in[4], struct OrtValue *out) {
    const size_t n = count(&out->info);
    const void *a[4] = {in[0]->data, in[1]->data, in[2]->data, in[3]->data};
    memset(out->data, 0xff, n * width(out->info.type));
    if (out->info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        floats_base(a[0], a[1], a[2], a[3], out->data, n);
    } else {
        halves_base(a[0], a[1], a[2], a[3], out->data, n);
    }
    compare(in, out);
#if X86_LEVELS
    if (level() < 1) return;
    memset(out->data, 0xff, n * width(out->info.type));
    if (out->info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        floats_avx2(a[0], a[1], a[2], a[3], out->data, n);
    } else {
        halves_avx2(a[0], a[1], a[2], a[3], out->data, n);
    }
    compare(in, out);
#endif
}

static void every_half(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        const float wide = from_half((uint16_t)h);
        if (wide != wide) {
            if ((h & 0x7fffu) <= 0x7c00u || (to_half(wide) & 0x7fffu) <= 0x7c00u)
                fail("a half that is a number became NaN, or the reverse");
        } else if (to_half(wide) != h) {
            fail("a half did not come back from float");
        }
    }
}

static int fuzz(int rounds) {
    OrtSessionOptions options = {NULL};
    int runs = 0, refused = 0;
    OrtStatus *status = RegisterCustomOps(&options, &base);
    if (status != NULL || options.domain == NULL || options.domain->count != 6) fail("registration");
    every_half();
    for (int round = 0; round < rounds; round++) {
        const int half = (int)(draw() % 2), mistake = draw() % 4 == 0 ? 1 + (int)(draw() % 5) : 0;
        const OrtCustomOp *op = options.domain->ops[half];
        struct OrtValue values[4];
        OrtKernelContext context = {{&values[0], &values[1], &values[2], &values[3]}, {{0, 0, {0}}, NULL, NULL}};
        void *kernel = NULL;
        struct OrtTensorTypeAndShapeInfo info = {(int)op->GetInputType(op, 0), draw() % 5, {0}};
        for (size_t k = 0; k < info.rank; k++) info.dims[k] = draw() % 40 == 0 ? 0 : 1 + (int64_t)(draw() % (info.rank < 3 ? 150 : 9));
        if (draw() % 50 == 0) info.rank = 1, info.dims[0] = 8192 * 2 + (int64_t)(draw() % 9) - 4; /* more than one block */
        const size_t wrong = 1 + draw() % 3;
        for (size_t k = 0; k < 4; k++) {
            values[k].info = info;
            if (mistake == 1 && k == wrong) values[k].info.rank++, values[k].info.dims[info.rank] = 1;
            if (mistake == 2 && k == wrong && info.rank) values[k].info.dims[0] += 1;
            if (mistake == 3 && k == wrong) values[k].info.type = 1 + 10 - info.type;
            if (mistake == 4) {
                values[k].info.rank = 33 + draw() % 31;
                for (size_t e = 0; e < values[k].info.rank; e++) values[k].info.dims[e] = 1;
            }
            allocate(&values[k]);
            for (size_t e = 0, n = count(&values[k].info); e < n; e++) {
                const float x = random_value();
                if (values[k].info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
                    ((float *)values[k].data)[e] = x;
                else
                    ((uint16_t *)values[k].data)[e] = to_half(x);
            }
        }
        if (mistake == 5) context.in[wrong] = NULL;
        status = op->CreateKernelV2(op, &api, NULL, &kernel);
        if (status == NULL) status = op->KernelComputeV2(kernel, &context);
        op->KernelDestroy(kernel);
        const int expected = mistake != 0 && !(mistake == 2 && info.rank == 0);
        if ((status != NULL) != expected) fail(expected ? "a mistake was accepted" : status->text);
        if (status != NULL) {
            if (status->code != ORT_INVALID_ARGUMENT || strstr(status->text, "GatedMemoryUpdate: input ") != status->text)
                fail(status->text);
            refused++;
        } else {
            compare(context.in, &context.out);
            levels(context.in, &context.out);
            runs++;
        }
        free(status);
        free(context.out.raw);
        for (size_t k = 0; k < 4; k++) free(values[k].raw);
        if (live_infos != 0) fail("a shape was not released");
    }
    free(options.domain);
    printf("ok %d runs, %d refused\n", runs, refused);
    return 0;
}

int main(int argc, char **argv) {
    OrtSessionOptions options = {NULL};
    OrtStatus *status;
    fill_api();
    if (argc == 4 && strcmp(argv[1], "fuzz") == 0) {
        newest = LM2_ORT_API_VERSION;
        seed = strtoull(argv[2], NULL, 10);
        return fuzz(atoi(argv[3]));
    }
    if (argc != 2) return 2;
    newest = strcmp(argv[1], "old") == 0 ? 16 : 0;
    status = RegisterCustomOps(&options, &base);
    if (options.domain != NULL) fail("something was registered");
    if ((status != NULL) != (newest == 16)) fail("status");
    printf("ok %d %s\n", status ? status->code : 0, status ? status->text : "");
    free(status);
    return 0;
}
