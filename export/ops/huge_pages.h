/* Memory that is read again and again, on huge pages where the system has them (Linux 6.1 and later). Knows addresses; no operator. */

#ifndef LM2_HUGE_PAGES_H
#define LM2_HUGE_PAGES_H

#include <stddef.h>

/* Asks the system to put the `bytes` at `data` on huge pages, now. What is there stays as it is and where it is; where it cannot be done, nothing happens.
A huge page has its first byte in one tensor: that tensor asks for it, with what stands behind its own end, so nobody asks twice. LM2_HUGE_PAGES=off in the
environment leaves everything as it is. */
void lm2_on_huge_pages(const void *data, size_t bytes);

#endif
