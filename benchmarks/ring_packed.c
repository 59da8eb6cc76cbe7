/*
 * The device half of a packed virtqueue in C, lean: what ours is measured against.
 *
 *   ring_packed BATCHES
 *
 * A batch is 256 chains as in ring.c; a ring of 768 entries is full of it, so the wrap counters change with each. Each batch
 * is published in one go, the flags of its first used descriptor last, with the fences and the look at whether the driver
 * wants to know. Chains are bounded, every id and address is checked, indirect tables are followed. Prints the nanoseconds
 * that a chain took the device; what the driver does is not counted.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "ring.h"

enum { SIZE = CHAINS * LINKS, AVAIL = 1 << 7, USED = 1 << 15, DISABLE = 1 };

struct descriptor { uint64_t addr; uint32_t len; uint16_t id, flags; };
struct event { uint16_t descriptor, flags; };

struct queue {
    struct descriptor *ring;
    struct event *driver;
    struct region regions[2];
    unsigned int next, used, first, batch;
    uint16_t next_mark, used_mark, first_flags;
    bool broken;
};

struct chain { unsigned int id, entries; int readable, count; };

static struct descriptor read_descriptor(const struct descriptor *at, uint16_t flags)
{
    struct descriptor copy;
    copy.addr = __atomic_load_n(&at->addr, __ATOMIC_RELAXED);
    copy.len = __atomic_load_n(&at->len, __ATOMIC_RELAXED);
    copy.id = __atomic_load_n(&at->id, __ATOMIC_RELAXED);
    copy.flags = flags;
    return copy;
}

/* Add one descriptor's buffer; false if the chain is broken. */
static bool lay(struct queue *queue, struct iovec *parts, struct chain *chain, const struct descriptor *d)
{
    if (!(d->flags & WRITE) && chain->count > chain->readable)
        return false;
    chain->count = add(queue->regions, parts, chain->count, SIZE, d->addr, d->len);
    if (!(d->flags & WRITE))
        chain->readable = chain->count;
    return chain->count >= 0;
}

static bool lay_table(struct queue *queue, struct iovec *parts, struct chain *chain, const struct descriptor *d)
{
    uint64_t len = d->len;
    const struct descriptor *table = translate(queue->regions, d->addr, &len);
    if (d->flags & NEXT || !table || len != d->len || len == 0 || len % sizeof(*d) || len / sizeof(*d) > SIZE)
        return false;
    for (unsigned int i = 0; i < len / sizeof(*d); i++) {
        struct descriptor entry = read_descriptor(&table[i], __atomic_load_n(&table[i].flags, __ATOMIC_RELAXED));
        if (entry.flags & INDIRECT || !lay(queue, parts, chain, &entry))
            return false;
    }
    return true;
}

/* Follow the next chain into `parts`: 1, or 0 if none is available, or -1 if it is broken. */
static int take(struct queue *queue, struct iovec *parts, struct chain *chain)
{
    unsigned int slot = queue->next;
    uint16_t mark = queue->next_mark;

    *chain = (struct chain){ 0, 0, 0, 0 };
    while (chain->entries < SIZE) {
        uint16_t flags = __atomic_load_n(&queue->ring[slot].flags, __ATOMIC_RELAXED);
        if ((flags & (AVAIL | USED)) != mark)
            return chain->entries ? -1 : 0;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        struct descriptor d = read_descriptor(&queue->ring[slot], flags);
        if (flags & INDIRECT ? chain->entries || !lay_table(queue, parts, chain, &d) : !lay(queue, parts, chain, &d))
            return -1;
        chain->entries++;
        if (++slot == SIZE) {
            slot = 0;
            mark ^= AVAIL | USED;
        }
        if (!(flags & NEXT)) {
            chain->id = d.id;
            queue->next = slot;
            queue->next_mark = mark;
            return d.id < SIZE ? 1 : -1;
        }
    }
    return -1;
}

static void give(struct queue *queue, const struct chain *chain, uint32_t len)
{
    struct descriptor *d = &queue->ring[queue->used];
    uint16_t flags = queue->used_mark | (len ? WRITE : 0);

    __atomic_store_n(&d->id, (uint16_t)chain->id, __ATOMIC_RELAXED);
    __atomic_store_n(&d->len, len, __ATOMIC_RELAXED);
    if (queue->batch++) {
        __atomic_store_n(&d->flags, flags, __ATOMIC_RELAXED);
    } else {
        queue->first = queue->used;
        queue->first_flags = flags;
    }
    queue->used += chain->entries;
    if (queue->used >= SIZE) {
        queue->used -= SIZE;
        queue->used_mark ^= AVAIL | USED;
    }
}

static bool publish(struct queue *queue)
{
    if (!queue->batch)
        return false;
    queue->batch = 0;
    __atomic_store_n(&queue->ring[queue->first].flags, queue->first_flags, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&queue->driver->flags, __ATOMIC_RELAXED) != DISABLE;
}

static bool serve(struct queue *queue)
{
    static struct iovec parts[SIZE];
    struct chain chain;
    int took;

    while ((took = take(queue, parts, &chain)) > 0)
        give(queue, &chain, (uint32_t)parts[chain.count - 1].iov_len);
    if (took < 0)
        queue->broken = true;
    return publish(queue);
}

/* What the driver writes into the ring in a round. */
static void describe(struct descriptor *ring, uint16_t mark)
{
    for (unsigned int i = 0; i < SIZE; i++) {
        uint16_t flags = i % LINKS == LINKS - 1 ? WRITE : NEXT;
        ring[i] = (struct descriptor){ i * 64, lengths[i % LINKS], (uint16_t)(i / LINKS * LINKS), flags | mark };
    }
}

int main(int argc, char **argv)
{
    static struct queue queue = { .next_mark = AVAIL, .used_mark = AVAIL | USED };
    static struct descriptor rounds[2][SIZE];
    long batches = argc == 2 ? atol(argv[1]) : 0, notified = 0;
    uint64_t spent = 0;

    if (batches < 1) {
        fprintf(stderr, "ring_packed: give a number of batches above 0\n");
        return 2;
    }
    set_up_memory(queue.regions);
    queue.ring = zeroed(SIZE * sizeof(*queue.ring));
    queue.driver = zeroed(sizeof(*queue.driver));
    describe(rounds[0], AVAIL);
    describe(rounds[1], USED);
    for (long i = 0; i < WARM_UP + batches; i++) {
        memcpy(queue.ring, rounds[i & 1], sizeof(rounds[0]));
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        uint64_t start = now();
        notified += serve(&queue);
        spent += i < WARM_UP ? 0 : now() - start;
    }
    if (queue.broken || notified != WARM_UP + batches || queue.next != 0)
        return 1;
    printf("%.2f\n", (double)spent / (double)(batches * CHAINS));
    return 0;
}
