/* An input of an operator as its checks see it, and how a call that does not fit is refused. Knows ONNX Runtime's interface; no operator. */
#ifndef LM2_OP_INPUTS_H
#define LM2_OP_INPUTS_H

#include <inttypes.h>
#include <stdio.h>

#include "ort_abi.h"

enum { MAX_RANK = 32 };

typedef struct {
    size_t rank;
    int64_t dims[MAX_RANK];
    void *data;
} Tensor;

static inline OrtStatus *refused(const OrtApi *api, const char *message) {
    return LM2_ORT(api, CreateStatus)((OrtErrorCode)ORT_INVALID_ARGUMENT, message);
}

static inline const char *shape_text(const Tensor *t, char *room, size_t size) {
    size_t used = (size_t)snprintf(room, size, "(");
    for (size_t k = 0; k < t->rank && k < MAX_RANK && used < size; k++)
        used += (size_t)snprintf(room + used, size - used, "%s%" PRId64, k ? "," : "", t->dims[k]);
    if (used < size) snprintf(room + used, size - used, ")");
    return room;
}

#endif
