/* ai.lm2::BlockSums, version 1: x (..., d) with the sums of its blocks of 32 appended to the last axis, (..., d + d / 32). float32. */

#ifndef LM2_BLOCK_SUMS_H
#define LM2_BLOCK_SUMS_H

#include "ort_abi.h"

/* The operator as ONNX Runtime takes it, for CPUExecutionProvider. */
extern const OrtCustomOp LM2_BLOCK_SUMS;

#endif
