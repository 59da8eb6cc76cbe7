/* libblkio as a front-end to check: connects to a back-end, starts its queue, and waits for the end. */
#include <blkio.h>
#include <stdio.h>
#include <unistd.h>

static void check(int result)
{
    if (result < 0) {
        fprintf(stderr, "%s\n", blkio_get_error_msg());
        _exit(1);
    }
}

int main(int count, char **words)
{
    struct blkio *disk;
    struct blkio_mem_region region;

    check(count == 2 ? 0 : -1);
    check(blkio_create("virtio-blk-vhost-user", &disk));
    check(blkio_set_str(disk, "path", words[1]));
    check(blkio_connect(disk));
    check(blkio_start(disk));
    check(blkio_alloc_mem_region(disk, &region, 1 << 16));
    check(blkio_map_mem_region(disk, &region));
    sleep(120);
    return 0;
}
