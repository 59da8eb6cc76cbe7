/*
 * The device half of a split virtqueue in C: what ours is measured against.
 *
 *   ring lean BATCHES        chains are taken into an array that is used again
 *   ring allocating BATCHES  libvhost-user's manner: an element is allocated for each chain, and freed when it is used
 *
 * A batch is 256 chains of 3 descriptors (16 and 64 bytes to read, 1 to write) over a ring of 1,024 entries and memory of
 * two regions, all of it in the cache; each batch is published in one go, with the fences and the look at whether the
 * driver wants to know. Both bound chains, check every index and address, and follow indirect tables. Prints the
 * nanoseconds a chain took.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "ring.h"

enum { SIZE = 1024, NO_INTERRUPT = 1 };

struct descriptor { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct available { uint16_t flags, idx, ring[SIZE], used_event; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[SIZE]; uint16_t avail_event; };

struct queue {
    struct descriptor *table;
    struct available *available;
    struct used *used;
    struct region regions[2];
    uint16_t base, next;
    bool broken;
};

struct element {
    unsigned int index, out_count, in_count;
    struct iovec *in, *out;
};

static struct descriptor read_descriptor(const struct descriptor *table, unsigned int index)
{
    struct descriptor copy;
    copy.addr = __atomic_load_n(&table[index].addr, __ATOMIC_RELAXED);
    copy.len = __atomic_load_n(&table[index].len, __ATOMIC_RELAXED);
    copy.flags = __atomic_load_n(&table[index].flags, __ATOMIC_RELAXED);
    copy.next = __atomic_load_n(&table[index].next, __ATOMIC_RELAXED);
    return copy;
}

/* Follow the chain at `head` into `parts`; how many are readable, and all in `*count`; -1 if it is broken. */
static int walk(struct queue *queue, unsigned int head, struct iovec *parts, int *count)
{
    const struct descriptor *table = queue->table;
    unsigned int max = SIZE, index = head, steps = 0;
    int total = 0, readable = 0;

    while (index < max && steps++ < SIZE) {
        struct descriptor d = read_descriptor(table, index);
        if (d.flags & INDIRECT) {
            uint64_t len = d.len;
            if (table != queue->table || d.flags & NEXT || d.len % sizeof(d) || d.len == 0)
                return -1;
            table = translate(queue->regions, d.addr, &len);
            if (!table || len != d.len)
                return -1;
            max = d.len / sizeof(d);
            index = 0;
            continue;
        }
        if (!(d.flags & WRITE) && total > readable)
            return -1;
        total = add(queue->regions, parts, total, SIZE, d.addr, d.len);
        if (total < 0)
            return -1;
        if (!(d.flags & WRITE))
            readable = total;
        if (!(d.flags & NEXT)) {
            *count = total;
            return readable;
        }
        index = d.next;
    }
    return -1;
}

static int waiting(struct queue *queue)
{
    uint16_t count = __atomic_load_n(&queue->available->idx, __ATOMIC_ACQUIRE) - queue->base;
    return count <= SIZE ? count : -1;
}

static unsigned int next_head(struct queue *queue)
{
    return __atomic_load_n(&queue->available->ring[queue->base % SIZE], __ATOMIC_RELAXED);
}

static void give(struct queue *queue, unsigned int head, uint32_t len)
{
    queue->used->ring[queue->next % SIZE].id = head;
    queue->used->ring[queue->next % SIZE].len = len;
    queue->next++;
}

static bool publish(struct queue *queue)
{
    __atomic_store_n(&queue->used->idx, queue->next, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return !(__atomic_load_n(&queue->available->flags, __ATOMIC_RELAXED) & NO_INTERRUPT);
}

/* ---- lean ---- */

static bool serve_lean(struct queue *queue)
{
    static struct iovec parts[SIZE];

    for (int left = waiting(queue), count; left > 0; left--) {
        unsigned int head = next_head(queue);
        if (walk(queue, head, parts, &count) < 0)
            queue->broken = true;
        queue->base++;
        give(queue, head, (uint32_t)parts[count - 1].iov_len);
    }
    return publish(queue);
}

/* ---- allocating ---- */

static struct element *allocate(unsigned int out_count, unsigned int in_count)
{
    struct element *element = malloc(sizeof(*element) + (out_count + in_count) * sizeof(struct iovec));
    if (!element)
        abort();
    element->out_count = out_count;
    element->in_count = in_count;
    element->in = (struct iovec *)(element + 1);
    element->out = element->in + in_count;
    return element;
}

static struct element *pop(struct queue *queue)
{
    struct iovec parts[SIZE];
    int count = 0, readable;

    if (waiting(queue) <= 0)
        return NULL;
    unsigned int head = next_head(queue);
    readable = walk(queue, head, parts, &count);
    if (readable < 0) {
        queue->broken = true;
        return NULL;
    }
    struct element *element = allocate((unsigned int)readable, (unsigned int)(count - readable));
    element->index = head;
    for (int i = 0; i < readable; i++)
        element->out[i] = parts[i];
    for (int i = readable; i < count; i++)
        element->in[i - readable] = parts[i];
    queue->base++;
    return element;
}

static bool serve_allocating(struct queue *queue)
{
    for (struct element *element; (element = pop(queue));) {
        give(queue, element->index, (uint32_t)element->in[element->in_count - 1].iov_len);
        free(element);
    }
    return publish(queue);
}

/* ---- the driver ---- */

static void set_up(struct queue *queue)
{
    set_up_memory(queue->regions);
    queue->table = zeroed(SIZE * sizeof(*queue->table));
    queue->available = zeroed(sizeof(*queue->available));
    queue->used = zeroed(sizeof(*queue->used));
    for (unsigned int i = 0; i < CHAINS * LINKS; i++) {
        bool last = i % LINKS == LINKS - 1;
        queue->table[i] = (struct descriptor){ i * 64, lengths[i % LINKS], last ? WRITE : NEXT, last ? 0 : (uint16_t)(i + 1) };
    }
    for (unsigned int i = 0; i < SIZE; i++)
        queue->available->ring[i] = (uint16_t)(i % CHAINS * LINKS);
}

int main(int argc, char **argv)
{
    static struct queue queue;
    bool lean = argc == 3 && strcmp(argv[1], "lean") == 0, allocating = argc == 3 && strcmp(argv[1], "allocating") == 0;
    long batches = argc == 3 ? atol(argv[2]) : 0, notified = 0;
    uint64_t start = 0;

    if ((!lean && !allocating) || batches < 1) {
        fprintf(stderr, "ring: give lean or allocating, and a number of batches above 0\n");
        return 2;
    }
    set_up(&queue);
    for (long i = 0; i < WARM_UP + batches; i++) {
        if (i == WARM_UP)
            start = now();
        __atomic_store_n(&queue.available->idx, (uint16_t)(queue.base + CHAINS), __ATOMIC_RELEASE);
        notified += lean ? serve_lean(&queue) : serve_allocating(&queue);
    }
    uint64_t end = now();
    if (queue.broken || notified != WARM_UP + batches || queue.used->idx != (uint16_t)(notified * CHAINS))
        return 1;
    printf("%.2f\n", (double)(end - start) / (double)(batches * CHAINS));
    return 0;
}
