/* See huge_pages.h. A model's weights are read whole for every token; with pages of 4 KB most of the misses of a step's address translation are theirs. */

#ifdef __linux__
#define _DEFAULT_SOURCE
#endif

#include "huge_pages.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; an older one refuses it */
#endif

static const char SWITCH[] = "LM2_HUGE_PAGES"; /* environment: "off" for comparisons */

void lm2_on_huge_pages(const void *data, size_t bytes) {
    const uintptr_t page = (uintptr_t)1 << 21, start = (uintptr_t)data, first = (start + page - 1) & ~(page - 1);
    const uintptr_t end = (start + bytes + page - 1) & ~(page - 1);
    const char *named = getenv(SWITCH);
    if (first - start >= bytes || (named != NULL && strcmp(named, "off") == 0)) return; /* no huge page begins in it */
    (void)madvise((void *)first, end - first, MADV_COLLAPSE); /* what it cannot do it leaves as it was: there is nothing to undo */
}

#else
void lm2_on_huge_pages(const void *data, size_t bytes) { (void)data, (void)bytes; }
#endif
