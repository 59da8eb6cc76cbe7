/* Random reads, writes, mappings and truncates of one file, each compared with a copy in memory: `exercise FILE OPS SEED`.
 *
 * What a file system with pages in several places gets wrong shows here. Prints what was done, or the first difference.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 5 << 20, LONGEST = 1 << 16 };
static unsigned char expected[MOST], buffer[LONGEST];
static size_t size;
static unsigned long long state;
static long done[8];
static const char *const names[] = {"reads", "writes", "mapped reads", "mapped writes", "truncates", "syncs", "reopenings", "holes"};

static unsigned dice(unsigned sides)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(state >> 33) % sides;
}

static void fail(const char *what, long op, size_t at)
{
    printf("operation %ld, %s, at byte %zu of %zu: %s\n", op, what, at, size, errno ? strerror(errno) : "wrong data");
    exit(1);
}

static void compare(const unsigned char *got, size_t start, size_t length, const char *what, long op)
{
    for (size_t at = 0; at < length; at++)
        if (got[at] != expected[start + at]) {
            errno = 0;
            fail(what, op, start + at);
        }
}

static void fill(size_t length)
{
    unsigned char first = dice(255) + 1;

    for (size_t at = 0; at < length; at++)
        buffer[at] = first + at;
}

int main(int count, char **words)
{
    long operations = count == 4 ? atol(words[2]) : 0;
    int fd = count == 4 ? open(words[1], O_RDWR | O_CREAT | O_TRUNC, 0644) : -1;
    struct stat found;

    if (fd < 0) {
        perror("exercise FILE OPS SEED");
        return 2;
    }
    state = strtoull(words[3], NULL, 0);
    for (long op = 0; op < operations; op++) {
        int what = dice(100);
        size_t start = dice(MOST - LONGEST), length = dice(LONGEST) + 1;

        errno = 0;
        what = what < 25 ? 0 : what < 50 ? 1 : what < 70 ? 2 : what < 90 ? 3 : what < 94 ? 4 : what < 97 ? 5 : what < 98 ? 6 : 7;
        if ((what == 0 || what == 2 || what == 3) && (start >= size || !size))
            start = size ? dice(size) : 0;
        if ((what == 0 || what == 2 || what == 3) && start + length > size)
            length = size - start;
        done[what]++;
        if (what == 0) {
            if (pread(fd, buffer, length, start) != (ssize_t)length)
                fail(names[what], op, start);
            compare(buffer, start, length, names[what], op);
        } else if (what == 1) {
            fill(length);
            if (pwrite(fd, buffer, length, start) != (ssize_t)length)
                fail(names[what], op, start);
            memcpy(expected + start, buffer, length);
            size = start + length > size ? start + length : size;
        } else if ((what == 2 || what == 3) && length) {
            size_t page = start & ~(size_t)4095;
            unsigned char *map = mmap(NULL, length + start - page, PROT_READ | (what == 3 ? PROT_WRITE : 0), MAP_SHARED, fd, page);

            if (map == MAP_FAILED)
                fail(names[what], op, start);
            compare(map + start - page, start, length, names[what], op);
            if (what == 3) {
                fill(length);
                memcpy(map + start - page, buffer, length);
                memcpy(expected + start, buffer, length);
                if (dice(4) == 0 && msync(map, length + start - page, MS_SYNC))
                    fail(names[what], op, start);
            }
            munmap(map, length + start - page);
        } else if (what == 4) {
            if (ftruncate(fd, start))
                fail(names[what], op, start);
            if (start < size)
                memset(expected + start, 0, size - start);
            size = start;
        } else if (what == 5) {
            if (fsync(fd))
                fail(names[what], op, 0);
        } else if (what == 6) {
            close(fd);
            fd = open(words[1], O_RDWR);
            if (fd < 0)
                fail(names[what], op, 0);
        } else if (what == 7 && size) {
            start = dice(size);
            length = start + length > size ? size - start : length;
            if (length && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, length) && errno != EOPNOTSUPP)
                fail(names[what], op, start);
            else if (length && errno != EOPNOTSUPP)
                memset(expected + start, 0, length);
        }
        if (fstat(fd, &found) || (size_t)found.st_size != size)
            fail("size", op, found.st_size);
    }
    fsync(fd);
    for (int what = 0; what < 8; what++)
        printf("%ld %s, ", done[what], names[what]);
    printf("%zu bytes\n", size);
    return 0;
}
