/* A driver's load on a vhost-user block device, by libblkio's own loop: prints nanoseconds a request.
 *
 *     blkio SOCKET randread|read|randwrite DEPTH BYTES REQUESTS
 *
 * Every block of BYTES that is read must begin with its place on the disk in 64 bits (the first of them does, at least), and
 * every one that is written does: a server that gives something else, or an error, is the end of it. A read-only disk is
 * taken as one. A tenth of the requests comes before the time is taken.
 */
#include <blkio.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LARGEST_DEPTH 1024

struct load {
    struct blkioq *queue;
    char *buffers;
    uint64_t places[LARGEST_DEPTH]; /* where each request in flight reads or writes */
    uint64_t blocks, bytes, next, dice;
    int depth, random, writes;
};

static void fail(const char *what, int error)
{
    const char *more = blkio_get_error_msg();
    fprintf(stderr, "blkio: %s: %s%s%s\n", what, strerror(error), *more ? ": " : "", more);
    exit(1);
}

static void check(const char *what, int result)
{
    if (result < 0)
        fail(what, -result);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || end == text || value < least || value > most) {
        fprintf(stderr, "blkio: %s is no number between %llu and %llu\n", text, (unsigned long long)least,
                (unsigned long long)most);
        exit(2);
    }
    return value;
}

static uint64_t place(struct load *load)
{
    if (!load->random)
        return load->next++ % load->blocks * load->bytes;
    load->dice ^= load->dice << 13;
    load->dice ^= load->dice >> 7;
    load->dice ^= load->dice << 17;
    return load->dice % load->blocks * load->bytes;
}

static void submit(struct load *load, uintptr_t slot)
{
    char *buffer = load->buffers + slot * load->bytes;
    uint64_t at = load->places[slot] = place(load);
    if (load->writes) {
        memcpy(buffer, &at, sizeof at);
        blkioq_write(load->queue, at, buffer, load->bytes, (void *)slot, 0);
    } else {
        memset(buffer, 0xff, sizeof at);
        blkioq_read(load->queue, at, buffer, load->bytes, (void *)slot, 0);
    }
}

static void finish(struct load *load, const struct blkio_completion *done)
{
    uintptr_t slot = (uintptr_t)done->user_data;
    char *buffer = load->buffers + slot * load->bytes;
    if (done->ret)
        fail("a request failed", -done->ret);
    if (memcmp(buffer, &load->places[slot], sizeof load->places[slot])) {
        fprintf(stderr, "blkio: what came is not what is at %llu\n", (unsigned long long)load->places[slot]);
        exit(1);
    }
}

/* Do so many requests, with `depth` of them in flight. */
static void run(struct load *load, uint64_t requests)
{
    struct blkio_completion done[LARGEST_DEPTH];
    uint64_t started = 0, finished = 0;
    for (; started < requests && started < (uint64_t)load->depth; started++)
        submit(load, started);
    while (finished < requests) {
        int count = blkioq_do_io(load->queue, done, 1, load->depth, NULL);
        check("do_io", count);
        for (int i = 0; i < count; i++, finished++) {
            finish(load, &done[i]);
            if (started < requests) {
                submit(load, (uintptr_t)done[i].user_data);
                started++;
            }
        }
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
    static struct load load = {.dice = 88172645463325252ULL};
    struct blkio_mem_region region;
    struct blkio *disk;
    uint64_t capacity;

    if (argc != 6) {
        fprintf(stderr, "usage: blkio SOCKET randread|read|randwrite DEPTH BYTES REQUESTS\n");
        return 2;
    }
    load.random = !strncmp(argv[2], "rand", 4);
    load.writes = !strcmp(argv[2], "randwrite");
    if (!load.writes && strcmp(argv[2], "read") && strcmp(argv[2], "randread")) {
        fprintf(stderr, "blkio: there is no load %s\n", argv[2]);
        return 2;
    }
    load.depth = number(argv[3], 1, LARGEST_DEPTH);
    load.bytes = number(argv[4], 512, 1 << 24);
    uint64_t requests = number(argv[5], 1, 1ULL << 40);

    check("create", blkio_create("virtio-blk-vhost-user", &disk));
    check("path", blkio_set_str(disk, "path", argv[1]));
    if (!load.writes)
        check("read-only", blkio_set_bool(disk, "read-only", 1));
    check("connect", blkio_connect(disk));
    check("start", blkio_start(disk));
    check("capacity", blkio_get_uint64(disk, "capacity", &capacity));
    load.blocks = capacity / load.bytes;
    if (!load.blocks)
        fail("the disk is smaller than a request", ERANGE);
    check("memory", blkio_alloc_mem_region(disk, &region, load.depth * load.bytes));
    check("memory", blkio_map_mem_region(disk, &region));
    load.buffers = region.addr;
    load.queue = blkio_get_queue(disk, 0);

    run(&load, requests / 10);
    double began = now();
    run(&load, requests);
    printf("%.1f\n", (now() - began) / requests);
    blkio_destroy(&disk);
    return 0;
}
