/*
 * The smallest honest SHMEM pair: what every other pair in these benchmarks is measured against.
 *
 *   pair frontend --fd N [--safe] [--window BYTES]
 *   pair backend --fd N [--file-fd M] [--window BYTES] --count PAIRS --len BYTES [--live K]
 *
 * fd N is one end of a connected AF_UNIX stream socketpair: the back-end channel. The front-end serves until EOF, with
 * --safe it checks what it maps. The back-end leaves K mappings live, then maps, waits for the ack, unmaps, waits for
 * the ack, PAIRS times, and prints the nanoseconds a pair took. Without --file-fd it maps a memfd of its own. A message
 * is read as real peers do it: the header with room for fds, then the payload; it is sent by one sendmsg.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SHMEM_MAP = 9, SHMEM_UNMAP = 10 };
enum { REQUEST_FLAGS = 0x9 /* version 1, need_reply */, ACK_FLAGS = 0x5 /* version 1, reply */ };
enum { MAP_READ_WRITE = 1, PAGE = 4096, MAX_FDS = 8, MAX_LIVE = 16384, WARM_UP = 100 };

struct header { uint32_t request, flags, size; };

struct mapping {
    uint8_t shmid, padding[7];
    uint64_t fd_offset, shm_offset, len, flags;
};

struct message {
    struct header header;
    union { struct mapping mapping; uint64_t status; } payload;
    int fd; /* the one fd it carried, or -1 */
};

_Static_assert(sizeof(struct header) == 12 && sizeof(struct mapping) == 40, "sizes on the wire");

struct options {
    const char *role;
    int fd, file_fd;
    bool safe;
    uint64_t window, count, len, live;
};

/* The front-end's window; what is live in it is noted with --safe only. */
struct region {
    uint8_t *base;
    uint64_t size;
    size_t live;
    struct interval { uint64_t start, end; } intervals[MAX_LIVE]; /* sorted, disjoint */
};

static void fail(const char *what)
{
    fprintf(stderr, "pair: %s (errno %d)\n", what, errno);
    exit(1);
}

/* ---- messages ---- */

static void send_message(int socket, uint32_t request, uint32_t flags, const void *payload, uint32_t size, int fd)
{
    struct header header = { request, flags, size };
    uint8_t bytes[sizeof(struct header) + sizeof(struct mapping)];
    union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec vector = { bytes, sizeof(header) + size };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

    memcpy(bytes, &header, sizeof(header));
    memcpy(bytes + sizeof(header), payload, size);
    if (fd >= 0) {
        control.align = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    errno = 0;
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != (ssize_t)vector.iov_len)
        fail("sendmsg");
}

/* Take the one fd a message may carry; more than one ends the connection. */
static int take_fd(struct msghdr *message)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    int fd;

    if (!control)
        return -1;
    if (control->cmsg_len != CMSG_LEN(sizeof(int)) || (message->msg_flags & MSG_CTRUNC))
        fail("fds");
    memcpy(&fd, CMSG_DATA(control), sizeof(fd));
    return fd;
}

/* Read one message; false at the end of the stream. */
static bool read_message(int socket, struct message *into)
{
    union { struct cmsghdr align; char room[CMSG_SPACE(MAX_FDS * sizeof(int))]; } control;
    struct iovec vector = { &into->header, sizeof(into->header) };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof(control) };
    errno = 0;
    ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    if (got == 0)
        return false;
    if (got != sizeof(into->header) || into->header.size > sizeof(into->payload))
        fail("header");
    into->fd = take_fd(&message);
    if (recv(socket, &into->payload, into->header.size, MSG_WAITALL) != (ssize_t)into->header.size)
        fail("payload");
    return true;
}

/* ---- --safe: the sorted intervals, the checks ---- */

/* The index of the first interval that ends after `offset`. */
static size_t find(const struct region *region, uint64_t offset)
{
    size_t low = 0, high = region->live;

    while (low < high) {
        size_t middle = (low + high) / 2;
        if (region->intervals[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert(struct region *region, size_t at, const struct mapping *map)
{
    memmove(region->intervals + at + 1, region->intervals + at, (region->live - at) * sizeof(*region->intervals));
    region->intervals[at] = (struct interval){ map->shm_offset, map->shm_offset + map->len };
    region->live++;
}

static void drop(struct region *region, size_t at)
{
    region->live--;
    memmove(region->intervals + at, region->intervals + at + 1, (region->live - at) * sizeof(*region->intervals));
}

static bool is_in_region(const struct region *region, const struct mapping *map)
{
    return map->shmid == 0 && map->len != 0 && (map->shm_offset | map->len) % PAGE == 0 &&
           map->shm_offset <= region->size && map->len <= region->size - map->shm_offset;
}

static bool is_in_file(int fd, const struct mapping *map)
{
    struct stat status;
    if (map->fd_offset % PAGE || (map->flags & ~(uint64_t)MAP_READ_WRITE) || fstat(fd, &status) != 0)
        return false;
    uint64_t size = (uint64_t)status.st_size;
    return S_ISREG(status.st_mode) && map->fd_offset <= size && map->len <= size - map->fd_offset;
}

static bool may_map(const struct region *region, const struct mapping *map, int fd, size_t *at)
{
    if (!is_in_region(region, map) || !is_in_file(fd, map))
        return false;
    *at = find(region, map->shm_offset);
    bool is_free = *at == region->live || region->intervals[*at].start >= map->shm_offset + map->len;
    return is_free && region->live < MAX_LIVE;
}

/* ---- the front-end ---- */

static int protection(const struct mapping *map)
{
    return map->flags & MAP_READ_WRITE ? PROT_READ | PROT_WRITE : PROT_READ;
}

static bool map_minimal(struct region *region, const struct mapping *map, int fd)
{
    return mmap(region->base + map->shm_offset, map->len, protection(map), MAP_SHARED | MAP_FIXED, fd,
                (off_t)map->fd_offset) != MAP_FAILED;
}

/* Map where the kernel likes, then move: the window has no hole even when the file can't be mapped. */
static bool map_safely(struct region *region, const struct mapping *map, int fd)
{
    size_t at;
    if (!may_map(region, map, fd, &at))
        return false;
    void *scratch = mmap(NULL, map->len, protection(map), MAP_SHARED, fd, (off_t)map->fd_offset);
    if (scratch == MAP_FAILED)
        return false;
    void *address = region->base + map->shm_offset;
    if (mremap(scratch, map->len, map->len, MREMAP_MAYMOVE | MREMAP_FIXED, address) == MAP_FAILED) {
        munmap(scratch, map->len);
        return false;
    }
    insert(region, at, map);
    return true;
}

static bool unmap_minimal(struct region *region, const struct mapping *map)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

    return mmap(region->base + map->shm_offset, map->len, PROT_NONE, flags, -1, 0) != MAP_FAILED;
}

static bool unmap_safely(struct region *region, const struct mapping *map)
{
    size_t at = find(region, map->shm_offset);
    const struct interval *live = region->intervals + at;

    if (map->shmid != 0 || at == region->live || live->start != map->shm_offset || live->end - live->start != map->len)
        return false;
    drop(region, at);
    return unmap_minimal(region, map);
}

static bool perform(struct region *region, const struct message *request, bool safe)
{
    const struct mapping *map = &request->payload.mapping;

    if (request->header.size != sizeof(*map) || request->header.flags != REQUEST_FLAGS)
        return false;
    if (request->header.request == SHMEM_MAP)
        return safe ? map_safely(region, map, request->fd) : map_minimal(region, map, request->fd);
    if (request->header.request == SHMEM_UNMAP)
        return safe ? unmap_safely(region, map) : unmap_minimal(region, map);
    return false;
}

static void serve(const struct options *options)
{
    static struct region region;
    struct message request;

    region.size = options->window;
    region.base = mmap(NULL, region.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region.base == MAP_FAILED)
        fail("window");
    while (read_message(options->fd, &request)) {
        uint64_t status = perform(&region, &request, options->safe) ? 0 : 1;
        if (request.fd >= 0)
            close(request.fd);
        send_message(options->fd, request.header.request, ACK_FLAGS, &status, sizeof(status), -1);
    }
}

/* ---- the back-end ---- */

static void call(int socket, uint32_t request, const struct mapping *map, int fd)
{
    struct message ack;

    send_message(socket, request, REQUEST_FLAGS, map, sizeof(*map), fd);
    if (!read_message(socket, &ack) || ack.header.request != request || ack.header.flags != ACK_FLAGS ||
        ack.header.size != sizeof(ack.payload.status) || ack.payload.status != 0)
        fail("the front-end refused or broke off");
}

/* Live single pages below and above the measured mapping, never side by side: the kernel can't merge them. */
static void leave_live(const struct options *options, const struct mapping *measured, int file_fd)
{
    struct mapping page = { .len = PAGE, .flags = MAP_READ_WRITE };

    for (uint64_t i = 0; i < options->live; i++) {
        page.shm_offset = i * 2 * PAGE + (i < options->live / 2 ? 0 : measured->len + PAGE);
        call(options->fd, SHMEM_MAP, &page, file_fd);
    }
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int new_file(uint64_t len)
{
    int fd = memfd_create("pair", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)len) != 0)
        fail("memfd");
    return fd;
}

static void measure(const struct options *options)
{
    int file_fd = options->file_fd < 0 ? new_file(options->len) : options->file_fd;
    struct mapping measured = { 0, { 0 }, 0, options->live / 2 * 2 * PAGE, options->len, MAP_READ_WRITE };
    uint64_t start = 0;

    leave_live(options, &measured, file_fd);
    for (uint64_t i = 0; i < WARM_UP + options->count; i++) {
        if (i == WARM_UP)
            start = now();
        call(options->fd, SHMEM_MAP, &measured, file_fd);
        call(options->fd, SHMEM_UNMAP, &measured, -1);
    }
    printf("%.1f\n", (double)(now() - start) / (double)options->count);
}

/* ---- the command line ---- */

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {
        { "fd", 1, 0, 'f' },    { "file-fd", 1, 0, 'm' }, { "safe", 0, 0, 's' }, { "window", 1, 0, 'w' },
        { "count", 1, 0, 'c' }, { "len", 1, 0, 'l' },     { "live", 1, 0, 'k' }, { 0 } };
    struct options options = { .fd = -1, .file_fd = -1, .window = 1u << 28, .count = 1, .len = 2u << 20 };

    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;
        switch (name) {
        case 'f': options.fd = (int)value; break;
        case 'm': options.file_fd = (int)value; break;
        case 's': options.safe = true; break;
        case 'w': options.window = value; break;
        case 'c': options.count = value; break;
        case 'l': options.len = value; break;
        case 'k': options.live = value; break;
        default: exit(2);
        }
    }
    options.role = optind < argc ? argv[optind] : "";
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    bool frontend = strcmp(options.role, "frontend") == 0, backend = strcmp(options.role, "backend") == 0;
    uint64_t needed = options.len + (options.live + 1) * 2 * PAGE;

    if (options.fd < 0 || frontend == backend || (backend && (options.count == 0 || needed > options.window))) {
        fprintf(stderr, "pair: give frontend or backend, --fd, --count above 0, a --window with room for --live\n");
        return 2;
    }
    frontend ? serve(&options) : measure(&options);
    return 0;
}
