/* How long a file system takes: `measure sequential|random|mapped FILE` or `measure metadata DIRECTORY COUNT`.
 *
 * Prints NAME VALUE a line: MB/s of reads of 128 KiB, or microseconds of one operation.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OPERATIONS = 4000, PIECE = 128 << 10, PAGE = 4096 };
static unsigned long long state = 42;
static char buffer[PIECE];

static unsigned dice(unsigned sides)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(state >> 33) % sides;
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void metadata(const char *folder, int files)
{
    struct dirent *entry;
    struct stat found;
    double began;
    int count = 0;
    DIR *dir;

    must(!chdir(folder), folder);
    began = now();
    for (int at = 0; at < files; at++) {
        snprintf(buffer, sizeof buffer, "file-%d", at);
        int fd = open(buffer, O_CREAT | O_EXCL | O_WRONLY, 0644);
        must(fd >= 0, "create");
        close(fd);
    }
    printf("create %.2f\n", (now() - began) / files);
    began = now();
    for (int at = 0; at < files; at++) {
        snprintf(buffer, sizeof buffer, "file-%d", at);
        must(!stat(buffer, &found), "stat");
    }
    printf("stat %.2f\n", (now() - began) / files);
    began = now();
    dir = opendir(".");
    while ((entry = readdir(dir)))
        count++;
    closedir(dir);
    must(count == files + 2, "readdir");
    printf("readdir %.2f\n", (now() - began) / files);
    began = now();
    for (int at = 0; at < files; at++) {
        snprintf(buffer, sizeof buffer, "file-%d", at);
        must(!unlink(buffer), "unlink");
    }
    printf("unlink %.2f\n", (now() - began) / files);
}

int main(int count, char **words)
{
    unsigned char sum = 0, *map;
    struct stat found;
    ssize_t got;
    double began;
    int fd;

    if (count == 4 && !strcmp(words[1], "metadata")) {
        metadata(words[2], atoi(words[3]));
        return 0;
    }
    fd = count == 3 ? open(words[2], O_RDONLY) : -1;
    must(fd >= 0 && !fstat(fd, &found) && found.st_size >= PAGE, "measure sequential|random|mapped FILE");
    began = now();
    if (!strcmp(words[1], "sequential")) {
        while ((got = read(fd, buffer, PIECE)) > 0)
            ;
        must(got == 0, "read");
        printf("sequential %.2f\n", found.st_size / (now() - began));
        return 0;
    }
    map = mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0);
    must(map != MAP_FAILED, "mmap");
    for (int at = 0; at < OPERATIONS; at++) {
        off_t where = (off_t)dice(found.st_size / PAGE) * PAGE;

        if (words[1][0] == 'm')
            sum += map[where];
        else
            must(pread(fd, buffer, PAGE, where) == PAGE, "pread");
    }
    printf("%s %.2f\n", words[1], (now() - began) / OPERATIONS);
    return sum == 1 && words[1][0] == 'x';
}
