/*
 * What both formats of a ring need in C: memory of two regions, buffers in it, and a clock.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

enum { CHAINS = 256, LINKS = 3, MEMORY = 1 << 20, WARM_UP = 100 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct region { uint64_t start, size; uint8_t *at; };

static const uint32_t lengths[LINKS] = { 16, 64, 1 };

static void *translate(const struct region *regions, uint64_t addr, uint64_t *len)
{
    for (int i = 0; i < 2; i++) {
        const struct region *region = &regions[i];
        if (addr - region->start < region->size) {
            uint64_t left = region->size - (addr - region->start);
            *len = *len < left ? *len : left;
            return region->at + (addr - region->start);
        }
    }
    return NULL;
}

/* Add a buffer to `parts`, which has room for `most`, one a region that it crosses; the new count, or -1. */
static int add(const struct region *regions, struct iovec *parts, int count, int most, uint64_t addr, uint64_t len)
{
    while (len) {
        uint64_t part = len;
        void *at = translate(regions, addr, &part);
        if (!at || count == most)
            return -1;
        parts[count++] = (struct iovec){ at, part };
        addr += part;
        len -= part;
    }
    return count;
}

static void *zeroed(size_t size)
{
    void *memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (!memory)
        abort();
    return memset(memory, 0, size);
}

static void set_up_memory(struct region *regions)
{
    uint8_t *memory = zeroed(MEMORY);
    regions[0] = (struct region){ 0, MEMORY / 2, memory };
    regions[1] = (struct region){ MEMORY / 2, MEMORY / 2, memory + MEMORY / 2 };
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}
